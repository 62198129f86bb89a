"""The protocol md17-stability: how long simulations at 500 K stay whole, as in arXiv 2210.07237, section 4 (MD17)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from ggnn_ff.bonds import LONGEST_DEVIATION
from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.data.readers import read_frames
from ggnn_ff.dynamics.replicas import run_replicas
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.errors import InputError
from ggnn_ff.export import LoadedPotential
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.structure import bond_deviations, distance_distribution, distribution_error
from ggnn_ff.stability.topology import collapse_times, same_atoms
from ggnn_ff.stability.trajectory import read_trajectory

NAME = "md17-stability"
TIMESTEP, TEMPERATURE, PICOSECONDS, SEEDS = 0.5, 500.0, 300.0, 5  # fs, K
LOG_EVERY, FRAME_EVERY = 20, 100  # steps


@dataclass(frozen=True)
class StabilityRow:
    """One potential.

    Attributes:
        name: for people.
        architecture: key of `MODELS`; None of a calculator.
        forces_mae: meV/angstrom on the test frames that the contract names, or None.
        stability_ps: one per seed: when a bond first deviated by more than 0.5 angstrom from its mean length in the
            reference, or the length of the run.
        stopped: one per seed: why the run was stopped, or None.
        distribution_errors: one per seed: mean absolute error of h(r) up to then.
        steps_per_second: of each seed, all seeds running together; None if it is not known.
    """

    name: str
    architecture: str | None
    forces_mae: float | None
    stability_ps: tuple[float, ...]
    stopped: tuple[str | None, ...]
    distribution_errors: tuple[float, ...]
    steps_per_second: float | None


def md17_stability(
    potential: LoadedPotential | Calculator,
    atoms: Atoms,
    reference_data: Path,
    folder: Path,
    name: str,
    *,
    picoseconds: float = PICOSECONDS,
    seeds: int = SEEDS,
    progress: bool = True,
) -> StabilityRow:
    """Runs the protocol, or goes on with it: 0.5 fs, 500 K, a Nose-Hoover thermostat, all seeds together.

    Args:
        potential: on the CPU; or any ASE calculator.
        atoms: first structure.
        reference_data: labelled frames of this molecule, sampled at 500 K; its atoms may be numbered otherwise.
        folder: receives a run folder per seed.
        name: of the row.
        picoseconds: 300 in the paper.
        seeds: 5 in the paper.
        progress: show a progress bar.

    Raises:
        InputError: frames of another molecule or with a bond that is gone, or a folder with other runs.
    """
    reference = whole_molecules(read_frames(reference_data), atoms)
    settings = make_settings(
        host="batched",
        ensemble="nose-hoover",
        temperature=TEMPERATURE,
        timestep=TIMESTEP,
        steps=max(1, round(1000.0 * picoseconds / TIMESTEP)),
        log_every=LOG_EVERY,
        frame_every=FRAME_EVERY,
    )
    results = run_replicas(potential, atoms, folder, settings, seeds, progress=progress)
    expected = distance_distribution(reference.positions, reference.cell, reference.pbc)[1]
    runs = [read_trajectory(result.folder) for result in results]
    collapse = collapse_times(runs, reference)
    assert not isinstance(collapse, str)  # the runs have times
    pairs = zip(runs, collapse.times_ps, strict=True)
    errors = tuple(_distribution_error(run, stable_ps, expected) for run, stable_ps in pairs)
    records = [json.loads((one.folder / "run.json").read_text()) for one in results]
    milliseconds = min(records, key=lambda one: one["steps_done"])["milliseconds_per_step"]  # while all were running
    contract = potential.contract if isinstance(potential, LoadedPotential) else None
    test_errors = None if contract is None else contract.test_errors
    return StabilityRow(
        name=name,
        architecture=None if contract is None else contract.architecture,
        forces_mae=None if test_errors is None else test_errors.forces_mae_mev_per_angstrom,
        stability_ps=collapse.times_ps,
        stopped=tuple(result.stopped for result in results),
        distribution_errors=errors,
        steps_per_second=None if milliseconds is None else 1000.0 / (milliseconds * len(results)),
    )


def frames_as_trajectory(frames: LabelledFrames, atoms: Atoms) -> Trajectory:
    """Labelled frames as a trajectory without times, with the atoms in the order of `atoms`.

    Raises:
        InputError: frames of another molecule.
    """
    all_atoms = [frames.atoms(k) for k in range(len(frames))]
    order = same_atoms(atoms, all_atoms[0])
    for k, one in enumerate(all_atoms):
        if order is None or not np.array_equal(one.numbers, all_atoms[0].numbers):
            raise InputError(
                f"`reference_data` must hold the molecule of `structure`, {atoms.get_chemical_formula()} with the same "
                f"bonds, but frame {k} of {frames.source} is another, {one.get_chemical_formula()}; give a frame of "
                "it as `structure`"
            )
    positions = np.stack([one.positions[order] for one in all_atoms])
    cell = np.stack([one.cell.array for one in all_atoms])
    return Trajectory(frames.source, atoms.numbers, atoms.get_masses(), positions, cell, all_atoms[0].pbc.copy())


def whole_molecules(frames: LabelledFrames, atoms: Atoms) -> Trajectory:
    """`frames_as_trajectory`, with every bond in all frames, as a reference must be.

    Raises:
        InputError: frames of another molecule, or with a bond that is gone.
    """
    found = frames_as_trajectory(frames, atoms)
    first = found.positions[:1], found.cell[:1]
    bond_deviations(
        found.numbers, *first, found.pbc, threshold=LONGEST_DEVIATION, reference=(found.positions, found.cell)
    )
    return found


def _distribution_error(run: Trajectory, stable_ps: float, expected: np.ndarray) -> float:
    """Of h(r) over the frames of the time that the run was stable."""
    assert run.times_fs is not None  # run folders have them
    kept = max(1, int(np.searchsorted(run.times_fs, 1000.0 * stable_ps)))
    h = distance_distribution(run.positions[:kept], run.cell[:kept], run.pbc)[1]
    return distribution_error(h, expected)


def stability_table(rows: Sequence[StabilityRow]) -> str:
    """Markdown; mean and standard deviation over the seeds."""
    lines = [
        "| potential | architecture | force MAE (meV/Å) | stability (ps) | h(r) MAE | steps/s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        forces = "-" if row.forces_mae is None else f"{row.forces_mae:.1f}"
        speed = "-" if row.steps_per_second is None else f"{row.steps_per_second:.0f}"
        stability = f"{np.mean(row.stability_ps):.0f} ± {_deviation(row.stability_ps):.0f}"
        errors = f"{np.mean(row.distribution_errors):.3f} ± {_deviation(row.distribution_errors):.3f}"
        lines.append(f"| {row.name} | {row.architecture or '-'} | {forces} | {stability} | {errors} | {speed} |")
    return "\n".join(lines) + "\n"


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation over the seeds, of the population they are drawn from."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
