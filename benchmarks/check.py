"""Seconds and memory of `ggnn-ff check` on run folders of 10 million atom-steps: a molecule and a box of water.

uv run benchmarks/check.py                  # both; writes benchmarks/check.json
uv run benchmarks/check.py --atom-steps 1e6 # smaller; only prints

The run folders are made first, in a temporary folder of 1 GB each: atoms that oscillate about a structure, with the
momenta and energies that belong to it, a frame and a row of energies every femtosecond. Each check is one process of
one thread, whose CPU time and largest resident memory (of which the temporary files of the check are part) are printed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import molecule

from ggnn_ff.comparison.speed import water_box
from ggnn_ff.dynamics.layout import COMPLETE, ENERGY_COLUMNS

ATOM_STEPS = 10_000_000
TEMPERATURE = 300.0  # K
PERIODS = (10.0, 40.0)  # fs, of the atoms
SYSTEMS = {"ethanol": lambda: molecule("CH3CH2OH"), "water": lambda: water_box()}
LIMITS = {"cpu_seconds": 60.0, "peak_gigabytes": 2.0}
_FRAMES_AT_ONCE = 1000


def write_run(folder: Path, atoms: Atoms, n_frames: int) -> None:
    """A run folder as `ggnn-ff md` leaves it, of independent oscillators."""
    random = np.random.default_rng(0)
    masses, shape = atoms.get_masses()[:, None], atoms.positions.shape
    frequencies = 2 * np.pi / random.uniform(*PERIODS, shape) / units.fs
    phases = random.uniform(0, 2 * np.pi, shape)
    amplitudes = np.sqrt(2 * units.kB * TEMPERATURE / masses) / frequencies  # of the energy kT in each direction
    properties = "Properties=species:S:1:pos:R:3:momenta:R:3"
    lattice = ""
    if atoms.pbc.any():
        lattice = f'Lattice="{" ".join(str(float(value)) for value in atoms.cell.array.ravel())}" '
    pbc = " ".join("FT"[int(periodic)] for periodic in atoms.pbc)
    layout = "".join(f"{symbol:<2s}" + 6 * " %16.8f" + "\n" for symbol in atoms.symbols)
    record = {"ensemble": "nve", "n_atoms": len(atoms), "timestep_fs": 1.0, "status": COMPLETE}
    (folder / "run.json").write_text(json.dumps(record))
    with open(folder / "trajectory.xyz", "w") as frames, open(folder / "energies.csv", "w") as energies:
        energies.write(",".join(ENERGY_COLUMNS) + "\n")
        for start in range(0, n_frames, _FRAMES_AT_ONCE):
            steps = np.arange(start, min(start + _FRAMES_AT_ONCE, n_frames))
            angles = frequencies * steps[:, None, None] * units.fs + phases
            displacements, momenta = amplitudes * np.cos(angles), -masses * amplitudes * frequencies * np.sin(angles)
            potential = np.sum(0.5 * masses * (frequencies * displacements) ** 2, axis=(1, 2)) - 1000.0
            kinetic = np.sum(0.5 * momenta**2 / masses, axis=(1, 2))
            temperatures = kinetic / (1.5 * len(atoms) * units.kB)
            places = np.concatenate([atoms.positions + displacements, momenta], axis=2)
            for step, frame, e, k, kelvin in zip(steps, places, potential, kinetic, temperatures, strict=True):
                energies.write(f"{step},{step:.12g},{e:.10f},{k:.10f},{e + k:.10f},{kelvin:.4f}\n")
                text = f'{lattice}{properties} step={step} time_fs={float(step)} energy={e} pbc="{pbc}"'
                frames.write(f"{len(atoms)}\n{text}\n{layout % tuple(frame.ravel())}")


def measure(folder: Path) -> dict[str, Any]:
    """One check as the command line does it, in a process of its own."""
    command = [str(Path(sys.executable).with_name("ggnn-ff")), "check", str(folder), "-o", str(folder / "check")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if not (folder / "check" / "check.json").exists():
        raise RuntimeError(f"the check failed with status {status}:\n{output}")
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "wall_seconds": round(wall, 1),
        "peak_gigabytes": round(usage.ru_maxrss * 1024 / 1e9, 2),  # kilobytes on Linux
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atom-steps", type=float, default=ATOM_STEPS)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.systems.split(","):
        atoms = SYSTEMS[name]()
        n_frames = int(arguments.atom_steps) // len(atoms)
        with tempfile.TemporaryDirectory() as folder:
            write_run(Path(folder), atoms, n_frames)
            rows.append({"system": name, "n_atoms": len(atoms), "n_frames": n_frames, **measure(Path(folder))})
        print(json.dumps(rows[-1]), flush=True)
    if arguments.atom_steps == ATOM_STEPS and len(rows) == len(SYSTEMS):
        result = {
            "atom_steps": ATOM_STEPS,
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, one thread",
            "versions": {name: version(name) for name in ("ggnn-ff", "numpy", "scipy", "ase")},
            "limits": LIMITS,
            "checks": rows,
        }
        text = json.dumps(result, indent=1) + "\n"
        (Path(__file__).parent / "check.json").write_text(text, encoding="utf8")
    slow = [row["system"] for row in rows if any(row[name] > limit for name, limit in LIMITS.items())]
    if slow:
        sys.exit(f"beyond the limits of {LIMITS}: {', '.join(slow)}")


if __name__ == "__main__":
    main()
