"""Stability of molecular dynamics by the protocol of arXiv 2210.07237, section 4 (MD17), for any number of potentials.

uv run benchmarks/stability.py ethanol-pbe schnet=runs/comparison/schnet/potential.pt \
    --structure ethanol --reference ../shared/data/rmd17_ethanol/test.xyz -o runs/stability

300 ps at 0.5 fs and 500 K with a Nose-Hoover thermostat, 5 seeds, all in one evaluation and compiled. A run is stable
until a bond deviates by more than 0.5 angstrom from its mean length in the reference; h(r) counts until then. Writes
stability.json and stability.md. Run it again to go on after a kill, or with more potentials.
"""

import argparse
import json
import platform
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ggnn_ff.bonds import LONGEST_DEVIATION
from ggnn_ff.data.readers import read_frames
from ggnn_ff.data.structures import find_structure
from ggnn_ff.dynamics.replicas import run_replicas
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.export import load_potential
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.structure import bond_deviations, distance_distribution, distribution_error
from ggnn_ff.stability.trajectory import read_trajectory

TIMESTEP, TEMPERATURE = 0.5, 500.0  # fs, K
EQUILIBRATION_PS = 10.0  # left out of h(r)


def measure(
    name: str, source: str, structure: str, reference: Trajectory, folder: Path, picoseconds: float, seeds: int
):
    """One row of the table."""
    potential = load_potential(source)
    settings = make_settings(
        host="batched",
        ensemble="nose-hoover",
        temperature=TEMPERATURE,
        timestep=TIMESTEP,
        steps=round(1000 * picoseconds / TIMESTEP),
        log_every=20,
        frame_every=100,
    )
    results = run_replicas(potential, find_structure(structure), folder / name, settings, seeds)
    times, errors, rates = [], [], []
    expected = distance_distribution(reference.positions, reference.cell, reference.pbc)[1]
    for result in results:
        run = read_trajectory(result.folder)
        bonds = bond_deviations(
            run.numbers, run.positions, run.cell, run.pbc, threshold=LONGEST_DEVIATION,
            reference=(reference.positions, reference.cell),
        )  # fmt: skip
        assert run.times_fs is not None
        end = len(run) if bonds.first_frame is None else bonds.first_frame
        times.append(picoseconds if result.stopped is None and end == len(run) else run.times_fs[end - 1] / 1000.0)
        kept = np.flatnonzero(run.times_fs[:end] >= 1000.0 * EQUILIBRATION_PS)
        if kept.size:
            h = distance_distribution(run.positions[kept], run.cell[kept], run.pbc)[1]
            errors.append(distribution_error(h, expected))
        milliseconds = json.loads((result.folder / "run.json").read_text())["milliseconds_per_step"]
        if milliseconds is not None:
            rates.append(1000.0 / milliseconds)
    errors_of_forces = potential.contract.test_errors
    return {
        "name": name,
        "architecture": potential.contract.architecture,
        "force_mae_mev_per_angstrom": None
        if errors_of_forces is None
        else errors_of_forces.forces_mae_mev_per_angstrom,
        "stability_ps": times,
        "stopped": [result.stopped for result in results],
        "h_mae": errors,
        "steps_per_second_of_all_seeds": float(np.sum(rates)) / len(rates) if rates else None,
    }


def reference_trajectory(path: Path) -> Trajectory:
    """Labelled frames of one molecule as a trajectory without times."""
    frames = read_frames(path)
    first = frames.atoms(0)
    positions = np.stack([frames.atoms(k).positions for k in range(len(frames.energy))])
    cell = np.zeros((len(positions), 3, 3))
    return Trajectory(str(path), first.numbers, first.get_masses(), positions, cell, np.zeros(3, dtype=bool))


def table(rows: list[dict[str, Any]], about: str) -> str:
    lines = [about, "", "| potential | architecture | force MAE | stability (ps) | h(r) error | steps/s |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for row in rows:
        times, errors = np.array(row["stability_ps"]), np.array(row["h_mae"])
        force = "-" if row["force_mae_mev_per_angstrom"] is None else f"{row['force_mae_mev_per_angstrom']:.1f}"
        spread = "-" if not errors.size else f"{errors.mean():.3f} ± {errors.std():.3f}"
        rate = row["steps_per_second_of_all_seeds"]
        speed = "-" if rate is None else f"{rate:.0f}"
        stability = f"{times.mean():.0f} ± {times.std():.0f}"
        lines.append(f"| {row['name']} | {row['architecture']} | {force} | {stability} | {spread} | {speed} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potentials", nargs="+", help="shipped names, or NAME=PATH")
    parser.add_argument("--structure", required=True)
    parser.add_argument("--reference", type=Path, required=True, help="frames of the reference method at 500 K")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--picoseconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = arguments.output
    reference = reference_trajectory(arguments.reference)
    rows = []
    about = (
        f"{arguments.seeds} seeds of {arguments.picoseconds:g} ps, {TIMESTEP} fs, {TEMPERATURE:g} K, Nose-Hoover; "
        f"mean and standard deviation; {date.today()}, {platform.machine()}, torch {torch.__version__}, one thread, "
        "compiled."
    )
    for item in arguments.potentials:
        name, _, source = item.partition("=")
        row = measure(
            name, source or name, arguments.structure, reference, folder, arguments.picoseconds, arguments.seeds
        )
        rows.append(row)
        (folder / "stability.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
        (folder / "stability.md").write_text(table(rows, about))
    print(table(rows, about))


if __name__ == "__main__":
    main()
