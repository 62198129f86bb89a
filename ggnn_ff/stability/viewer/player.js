"use strict";
// Plays the frames of #frames in #stage. `data-drawn` of #stage is the frame on show, "none" without WebGL.
(() => {
  const data = JSON.parse(document.getElementById("frames").textContent);
  const bytes = Uint8Array.from(atob(data.positions), (character) => character.charCodeAt(0));
  const positions = new Float32Array(bytes.buffer); // frame by frame, atom by atom, x y z
  const count = data.symbols.length;
  const stage = document.getElementById("stage");
  const slider = document.getElementById("frame");
  const play = document.getElementById("play");
  const where = document.getElementById("where");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const place = (row, atom) => {
    const [x, y, z] = positions.subarray(3 * (row * count + atom));
    return { x, y, z };
  };
  const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y, a.z - b.z);
  const lengths = data.bonds.map(([first, second]) => distance(place(0, first), place(0, second)));

  const canvas = document.createElement("canvas");
  if (!canvas.getContext("webgl2") && !canvas.getContext("webgl")) {
    stage.textContent = "This browser has no WebGL, which the 3D view needs.";
    stage.dataset.drawn = "none";
    document.querySelector(".controls").hidden = true;
    return;
  }
  const viewer = $3Dmol.createViewer(stage, { disableFog: true, antialias: true, minimumZoomToDistance: 2 });
  const model = viewer.addModel();
  const start = data.symbols.map((elem, atom) => ({ elem, ...place(0, atom), bonds: [], bondOrder: [] }));
  model.addAtoms(start);
  const atoms = model.selectedAtoms({});

  const cellEdges = () => {
    if (!data.cell) return;
    const corner = (i, j, k) => {
      const at = (axis) => [i, j, k].reduce((sum, n, row) => sum + n * data.cell[row][axis], 0);
      return { x: at(0), y: at(1), z: at(2) };
    };
    for (const [a, b] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {
      viewer.addLine({ start: corner(0, a, b), end: corner(1, a, b), color: color("--muted") });
      viewer.addLine({ start: corner(a, 0, b), end: corner(a, 1, b), color: color("--muted") });
      viewer.addLine({ start: corner(a, b, 0), end: corner(a, b, 1), color: color("--muted") });
    }
  };

  const brokenBond = (row) => {
    if (!data.highlight || row < data.highlight.row) return;
    const [first, second] = data.highlight.atoms.map((atom) => place(row, atom));
    const red = color("--fail");
    for (const center of [first, second]) viewer.addSphere({ center, radius: 0.6, color: "#ff2010", opacity: 0.5 });
    if (data.cell) return; // the nearest image of the second atom may be another
    viewer.addCylinder({ start: first, end: second, radius: 0.07, color: red, dashed: true, fromCap: 1, toCap: 1 });
    const middle = { x: (first.x + second.x) / 2, y: (first.y + second.y) / 2, z: (first.z + second.z) / 2 };
    const text = `${data.highlight.name} ${distance(first, second).toFixed(2)} Å`;
    const look = { alignment: "bottomCenter", backgroundColor: red, backgroundOpacity: 1, fontColor: color("--paper"), fontSize: 14 };
    viewer.addLabel(text, { position: middle, screenOffset: { x: 0, y: 60 }, ...look });
  };

  const draw = () => {
    const row = Number(slider.value);
    for (const [index, atom] of atoms.entries()) Object.assign(atom, place(row, index), { bonds: [], bondOrder: [] });
    for (const [bond, [first, second]] of data.bonds.entries()) {
      if (distance(atoms[first], atoms[second]) > 1.5 * lengths[bond]) continue; // broken, or across the cell
      atoms[first].bonds.push(second);
      atoms[second].bonds.push(first);
      atoms[first].bondOrder.push(1);
      atoms[second].bondOrder.push(1);
    }
    model.setStyle({}, { sphere: { scale: 0.25 }, stick: { radius: 0.11 } });
    viewer.setBackgroundColor(color("--paper"));
    viewer.removeAllShapes();
    viewer.removeAllLabels();
    cellEdges();
    brokenBond(row);
    viewer.render();
    const time = data.times_ps ? `, ${data.times_ps[row].toFixed(3)} ps` : "";
    where.value = `${data.frames[row]}${time}`;
    slider.setAttribute("aria-valuetext", `frame ${where.value}`);
    stage.dataset.drawn = data.frames[row];
  };

  let timer = null;
  const pause = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  const step = () => {
    slider.value = (Number(slider.value) + 1) % data.frames.length;
    draw();
  };
  play.addEventListener("click", () => {
    if (timer) return pause();
    timer = setInterval(step, 60);
    play.textContent = "Pause";
  });
  slider.addEventListener("input", () => { pause(); draw(); });
  for (const jump of document.querySelectorAll("[data-jump]")) {
    jump.addEventListener("click", () => { pause(); slider.value = data.highlight.row; draw(); });
  }
  const turns = { ArrowLeft: [-10, "y"], ArrowRight: [10, "y"], ArrowUp: [-10, "x"], ArrowDown: [10, "x"] };
  stage.addEventListener("keydown", (event) => {
    if (!(event.key in turns)) return;
    event.preventDefault();
    viewer.rotate(...turns[event.key]);
  });
  // the wheel alone scrolls the page
  stage.addEventListener("wheel", (event) => event.ctrlKey || event.stopPropagation(), { capture: true });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
  viewer.zoomTo();
  viewer.zoom(0.8);
  if (data.cell) { // along an axis most atoms hide others
    viewer.rotate(25, "y");
    viewer.rotate(15, "x");
  }
})();
