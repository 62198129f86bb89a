"""The HTML page of a check: complete, closed in itself, safe with any text, readable by all, and drawn by a browser."""

import base64
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ggnn_ff.errors import InputError
from ggnn_ff.stability.frames import Energies, Trajectory
from ggnn_ff.stability.html import render_html, write_html
from ggnn_ff.stability.plots import new_figure
from ggnn_ff.stability.report import check
from ggnn_ff.stability.show import write_report
from ggnn_ff.stability.verdict import Verdict
from ggnn_ff.stability.viewer import MOST_ATOMS, MOST_FRAMES, Highlight

N_FRAMES = 500
BREAKS = 300
HOSTILE = "<script>alert(1)</script> & \"quotes\" 'too' <b>"

VERDICTS = [
    Verdict("a", 1.0, "eV", 2.0, True, "fine"),
    Verdict("b", 1.0, "", None, None, "a figure"),
    Verdict("c", None, "eV", 2.0, None, "no data"),
    Verdict("d", 3.0, "eV", 2.0, False, "too large"),
]


def trajectory(atoms, n_frames=N_FRAMES, **others):
    """Small displacements of all atoms about their places, every 2 fs."""
    noise = np.random.default_rng(0).normal(scale=0.01, size=(n_frames, len(atoms), 3))
    cell = np.repeat(atoms.cell.array[None], n_frames, axis=0)
    given = {"source": "run", "times_fs": 2.0 * np.arange(n_frames), **others}
    return Trajectory(
        numbers=atoms.numbers, masses=atoms.get_masses(), positions=atoms.positions + noise, cell=cell, pbc=atoms.pbc,
        **given,
    )  # fmt: skip


def water(drift=0.0, breaks=None, **others):
    """Water whose total energy rises by `drift` eV/fs and whose second hydrogen leaves from frame `breaks` on."""
    times = 2.0 * np.arange(N_FRAMES)
    swing = 0.01 * np.sin(times)
    result = trajectory(molecule("H2O"), energies=Energies(times, drift * times - swing, 0.05 + swing), **others)
    if breaks is not None:
        steps = np.arange(N_FRAMES - breaks)[:, None]
        direction = result.positions[0, 2] - result.positions[0, 0]
        result.positions[breaks:, 2] += (0.6 + 0.005 * steps) * direction / np.linalg.norm(direction)
    return result


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a run in order and of one that drifts and breaks."""
    folder = tmp_path_factory.mktemp("pages")
    write_html(check(water()), folder / "passed.html")
    write_html(check(water(drift=1e-3, breaks=BREAKS)), folder / "failed.html")
    return {name: (folder / f"{name}.html").read_text(encoding="utf-8") for name in ("passed", "failed")}


class Page(HTMLParser):
    """Elements, as (name, attributes), and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.depth = [], [], []
        self.feed(text)
        self.close()
        assert not self.depth

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input", "use", "path"):
            self.depth.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in ("use", "path"):
            assert self.depth.pop() == tag

    def handle_data(self, data):
        if self.depth and self.depth[-1] not in ("script", "style"):
            self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def frames_of(page):
    data = json.loads(re.search(r'<script type="application/json" id="frames">(.*?)</script>', page)[1])
    positions = np.frombuffer(base64.b64decode(data["positions"]), "<f4")
    return data, positions.reshape(len(data["frames"]), len(data["symbols"]), 3)


def test_page_of_a_check_says_what_the_report_says(pages):
    for name, drift, breaks in (("passed", 0.0, None), ("failed", 1e-3, BREAKS)):
        report = check(water(drift=drift, breaks=breaks))
        assert report.summary.lower().startswith(name)
        text = " ".join("".join(Page(pages[name]).text).split())
        for part in (report.summary, "H2O · 3 atoms · 500 frames", "ggnn-ff", "Redistribution and use in source"):
            assert part in text
        for verdict in report.verdicts:
            assert f"{verdict.name}{verdict.explanation}" in text
            assert verdict.value is None or verdict.text in text
        assert len(Page(pages[name]).named("figure")) == 4
    assert f"O0-H2 breaks in frame {BREAKS} (0.6 ps)" in text


def test_failed_verdicts_come_first_and_are_told_by_words():
    page = render_html("t", "FAILED", VERDICTS, {}, None, None)
    assert re.findall(r"<h3>(.)</h3>", page) == ["d", "a", "c", "b"]
    assert re.findall(r"</span> ([a-z ]+)</p>", page) == ["failed", "passed", "not judged", "measured"]
    assert "width:75.0%" in page  # 3 of a threshold of 2, which is in the middle
    assert 'class="summary fail"' in page


def test_summary_is_coloured_as_passed_only_if_it_is():
    for summary, verdicts, state in (
        ("passed", VERDICTS[:3], "pass"),
        ("passed", VERDICTS, "fail"),
        ("inconclusive", VERDICTS[:3], "open"),
    ):
        assert f'class="summary {state}"' in render_html("t", summary, verdicts, {}, None, None)


def test_page_needs_neither_trajectory_nor_figures():
    page = Page(render_html("certificate", "passed", VERDICTS[:1], {}, None, None))
    assert not page.named("script")
    assert not page.named("svg")
    figure = new_figure(4, 3)
    figure.subplots().plot([0, 1])
    drawn = Page(render_html("certificate", "passed", [], {"A line. It rises.": figure}, None, None))
    assert len(drawn.named("svg")) == 1
    assert "".join(drawn.text).count(" It rises.") == 1


def test_all_text_is_escaped():
    noted = water(notes=("n",))
    plain = render_html("t", "s", VERDICTS[:1], {"c": new_figure(1, 1)}, noted, Highlight(3, (0, 1), "h"))
    hostile = render_html(
        HOSTILE,
        HOSTILE,
        [Verdict(HOSTILE, 1.0, HOSTILE, 2.0, True, HOSTILE)],
        {HOSTILE: new_figure(1, 1)},
        water(source=HOSTILE, notes=(HOSTILE,), ensemble=HOSTILE),
        Highlight(3, (0, 1), HOSTILE),
    )
    page = Page(hostile)
    assert [name for name, _ in page.elements] == [name for name, _ in Page(plain).elements]
    assert "".join(page.text).count(HOSTILE) >= 9
    assert any(HOSTILE in attributes.get("aria-label", "") for attributes in page.named("div"))
    assert "$" not in render_html("$title", "", [], {}, None, None).replace("$title", "")


def test_page_refers_to_nothing_outside(pages):
    for text in pages.values():
        page = Page(text)
        for _, attributes in page.elements:
            for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
                assert attributes.get(name, "#").startswith(("#", "data:,")), attributes
        policy = next(meta["content"] for meta in page.named("meta") if "http-equiv" in meta)
        assert policy.startswith("default-src 'none';")
        assert "http" not in policy
        style = text[text.index("<style>") : text.index("</style>")]
        assert "url(" not in style
        assert "@import" not in style


def test_page_can_be_read_by_all(pages):
    for text in pages.values():
        page = Page(text)
        assert page.named("html") == [{"lang": "en"}]
        assert len(page.named("h1")) == len(page.named("main")) == len(page.named("title")) == 1
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        for _, attributes in page.elements:
            for name in ("aria-labelledby", "aria-describedby", "for"):
                assert attributes.get(name, ids[0]) in ids
            for name in ("href", "xlink:href", "clip-path"):
                for target in re.findall(r"#([^)]+)", attributes.get(name, "")):
                    assert target in ids
        for drawing in page.named("svg"):
            assert drawing["role"] == "img"
            assert drawing["aria-labelledby"].startswith("caption-")
        assert {attributes["id"] for attributes in page.named("input")} == {
            attributes["for"] for attributes in page.named("label")
        }


def test_frames_are_thinned_and_keep_what_is_pointed_at(pages):
    for name in pages:
        data, positions = frames_of(pages[name])
        assert MOST_FRAMES <= len(positions) <= MOST_FRAMES + 1
        assert (data["frames"][0], data["frames"][-1]) == (0, N_FRAMES - 1)
        np.testing.assert_allclose(data["times_ps"], 0.002 * np.asarray(data["frames"]))
    assert data["highlight"] == {"row": data["frames"].index(BREAKS), "atoms": [0, 2], "name": "O0-H2"}
    assert f"{len(positions)} of {N_FRAMES} frames are shown" in pages["failed"]
    assert len(pages["failed"].encode()) < 1_000_000


def test_large_trajectories_stay_below_three_megabytes():
    atoms = Atoms(f"Ar{MOST_ATOMS}", positions=3.2 * np.argwhere(np.ones((20, 25, 10))))
    page = render_html("t", "s", [], {}, trajectory(atoms, n_frames=30), None)
    assert len(frames_of(page)[1]) == 18
    assert len(page) < 2_500_000
    more = Atoms(f"Ar{MOST_ATOMS + 1}", positions=8.0 * np.arange(3 * MOST_ATOMS + 3).reshape(-1, 3))
    left_out = render_html("t", "s", [], {}, trajectory(more, n_frames=2), None)
    assert not Page(left_out).named("script")
    assert f"left out: more than {MOST_ATOMS} atoms" in left_out


def test_molecule_is_turned_and_held_but_not_changed():
    moving = trajectory(molecule("CH3CH2OH"), n_frames=50)
    moving.positions[:] += np.arange(50)[:, None, None] * [1.0, 2.0, 3.0]
    data, shown = frames_of(render_html("t", "s", [], {}, moving, None))

    def shape(positions):
        vectors = positions[:, :, None] - positions[:, None]
        handedness = np.linalg.det(positions[:, 1:4] - positions[:, :1])  # differs for the mirror image
        return np.concatenate([np.linalg.norm(vectors, axis=3).reshape(50, -1), handedness[:, None]], axis=1)

    np.testing.assert_allclose(shape(shown.astype(float)), shape(moving.positions), atol=1e-5)
    centres = np.einsum("a,tak->tk", moving.masses, shown) / moving.masses.sum()
    np.testing.assert_allclose(centres, 0.0, atol=1e-5)
    assert np.all(np.diff(np.ptp(shown[0], axis=0)) < 0)  # longest along x, thinnest along the view
    assert len(data["bonds"]) == 8


def test_crystal_is_shown_as_it_is_in_its_cell():
    crystal = trajectory(bulk("Si", cubic=True), n_frames=3)
    data, shown = frames_of(render_html("t", "s", [], {}, crystal, None))
    np.testing.assert_allclose(shown, crystal.positions, atol=1e-5)
    np.testing.assert_allclose(data["cell"], 5.43 * np.eye(3))
    lengths = [np.linalg.norm(shown[0, first] - shown[0, second]) for first, second in data["bonds"]]
    assert max(lengths) < 2.6  # none crosses the cell


def test_highlight_must_be_in_the_trajectory():
    with pytest.raises(InputError, match="needs the trajectory"):
        render_html("t", "s", [], {}, None, Highlight(0, (0, 1), ""))
    for highlight in (Highlight(N_FRAMES, (0, 1), ""), Highlight(0, (0, 3), ""), Highlight(-1, (0, 1), "")):
        with pytest.raises(InputError, match="`highlight` must be within 500 frames of 3 atoms"):
            render_html("t", "s", [], {}, water(), highlight)


def test_figures_that_have_nothing_to_show_are_left_out(tmp_path):
    write_html(check(trajectory(molecule("H2O"), n_frames=9)), tmp_path / "bare.html")
    page = Page((tmp_path / "bare.html").read_text(encoding="utf-8"))
    assert len(page.named("figure")) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "bare.html"]


def test_file_names_are_not_taken_for_mathematics(tmp_path):
    report = check(replace(trajectory(molecule("H2O"), n_frames=9), source="a$_{$b.xyz"))
    write_report(report, tmp_path)
    assert (tmp_path / "check.png").stat().st_size > 0


def liquid(n_frames=200, **others):
    """Oxygen hydride in a periodic box, with momenta, every fs."""
    atoms = molecule("H2O")
    atoms.set_cell(5.0 * np.eye(3))
    atoms.pbc = True
    atoms = atoms.repeat((2, 2, 2))
    momenta = np.random.default_rng(1).normal(size=(n_frames, len(atoms), 3))
    return trajectory(atoms, n_frames, times_fs=1.0 * np.arange(n_frames), momenta=momenta, **others)


def test_liquids_and_vibrations_are_drawn_and_stored(tmp_path):
    report = check(liquid(), reference=liquid())
    write_html(report, tmp_path / "liquid.html")
    text = (tmp_path / "liquid.html").read_text(encoding="utf-8")
    for name in ("Radial distribution functions.", "Mean square displacement.", "Vibrational density of states."):
        assert f"<strong>{name}</strong>" in text
    assert len(Page(text).named("figure")) == 5  # no energies
    curves = report.to_dict()["curves"]
    radial = curves["radial distribution functions"]
    assert list(radial) == ["r (angstrom)", "H-H", "H-O", "O-O"]
    np.testing.assert_allclose(radial["H-O"], report.radial.functions["H-O"], rtol=1e-3)
    squares = curves["mean square displacement"]
    assert list(squares) == ["time (ps)", "H (angstrom^2)", "O (angstrom^2)"]
    assert squares["time (ps)"][-1] == 0.02  # half of a fifth of the frames
    density = curves["density of states"]
    assert max(density["wavenumber (1/cm)"]) <= 5000
    assert len(density["density (cm)"]) == len(density["wavenumber (1/cm)"]) > 20
    assert len(json.dumps(check(liquid(3000)).to_dict()["curves"])) < 50_000


def test_what_could_not_be_measured_is_not_drawn(tmp_path):
    rare = check(replace(liquid(), times_fs=5.0 * np.arange(200)))
    write_html(rare, tmp_path / "rare.html")
    assert "Vibrational density of states." not in (tmp_path / "rare.html").read_text(encoding="utf-8")
    verdict = next(v for v in rare.verdicts if v.name == "density of states")
    assert "frames every 5 fs" in verdict.explanation
    assert list(rare.to_dict()["curves"]) == ["radial distribution functions", "mean square displacement"]
    assert check(water()).to_dict()["curves"] == {}


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

PROBE = """<script>
const stage = document.getElementById("stage"), play = document.getElementById("play");
const picture = () => document.querySelector("#stage canvas").toDataURL();
const found = { first: stage.dataset.drawn, resources: performance.getEntriesByType("resource").length };
const before = picture();
stage.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
found.turned = picture() !== before;
play.click();
setTimeout(() => {
  found.played = stage.dataset.drawn;
  play.click();
  setTimeout(() => {
    found.paused = stage.dataset.drawn === found.played && play.textContent === "Play";
    document.querySelector("a[data-jump]").click();
    found.jumped = stage.dataset.drawn;
    document.body.dataset.found = JSON.stringify(found);
  }, 200);
}, 500);
</script></body>"""


def browse(page, folder, *options):
    """Standard output of a headless browser that opens the page; fails if its console says anything."""
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars",
        "--enable-logging=stderr", "--virtual-time-budget=4000", "--window-size=800,700",
        f"--user-data-dir={folder / 'profile'}", *options, path.as_uri(),
    ]  # fmt: skip
    if os.geteuid() == 0:
        command.insert(1, "--no-sandbox")
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = [line for line in result.stderr.splitlines() if "CONSOLE" in line and "GL Driver Message" not in line]
    assert not said
    return result.stdout


@needs_browser
def test_browser_plays_turns_and_jumps_without_loading_anything(pages, tmp_path):
    dom = browse(pages["failed"].replace("</body>", PROBE), tmp_path, "--dump-dom")
    found = json.loads(next(a["data-found"] for a in Page(dom).named("body")).replace("&quot;", '"'))
    shown = frames_of(pages["failed"])[0]["frames"]
    assert found["first"] == found["jumped"] == str(BREAKS)
    assert found["resources"] == 0
    assert found["turned"]
    assert found["paused"]
    assert shown.index(int(found["played"])) > shown.index(BREAKS)


@needs_browser
def test_browser_draws_the_atoms(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    page = render_html("t", "s", [], {}, water(), None)
    browse(page, tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    pixels = image.imread(tmp_path / "page.png")[..., :3]
    red = (pixels[..., 0] > 0.6) & (pixels[..., 1:].max(axis=-1) < 0.2)
    assert red.sum() > 1000  # oxygen


@needs_browser
def test_browser_without_webgl_says_so(pages, tmp_path):
    without = "<head><script>HTMLCanvasElement.prototype.getContext = () => null;</script>"
    dom = browse(pages["passed"].replace("<head>", without), tmp_path, "--dump-dom")
    assert "This browser has no WebGL" in dom
    assert 'data-drawn="none"' in dom
