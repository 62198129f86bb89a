"""A molecular-dynamics run in a folder: energies and frames as it goes, resumed after a kill, stopped when broken."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ggnn_ff.bonds import bond_lengths, bonds
from ggnn_ff.contract import check_elements
from ggnn_ff.dynamics.engines import ASEEngine, Engine, OpenMMEngine
from ggnn_ff.dynamics.run_files import RunFiles
from ggnn_ff.dynamics.settings import MDSettings
from ggnn_ff.errors import InputError, UnstableDynamics
from ggnn_ff.export import LoadedPotential
from ggnn_ff.graph import from_atoms
from ggnn_ff.hosts.ase import GGNNCalculator
from ggnn_ff.units import KELVIN_TO_EV

LONGEST_DEVIATION = 0.5  # angstrom, of a bond from its first length: arXiv 2210.07237, section 3
NOT_FINITE = (
    "positions, forces or energy are not finite by step {step}; the last good frame is in last_good.xyz. Use a shorter "
    "time step, or train on more structures of this kind"
)


@dataclass(frozen=True)
class MDResult:
    """A finished run.

    Attributes:
        folder: with `energies.csv`, `trajectory.xyz` and `run.json`.
        milliseconds_per_step: median over the intervals between logged steps of this call; NaN if nothing was left.
    """

    folder: Path
    milliseconds_per_step: float


def run_md(
    potential: LoadedPotential | Calculator,
    atoms: Atoms,
    folder: Path,
    settings: MDSettings,
    *,
    progress: bool = True,
) -> MDResult:
    """Runs molecular dynamics, or goes on with an interrupted run.

    Args:
        potential: from `load_potential`, or (host "ase") any ASE calculator.
        atoms: the first structure; with momenta where `settings.temperature` is None.
        folder: receives `energies.csv` (a row each `log_every` steps), `trajectory.xyz` (extxyz with momenta),
            `run.json`, `checkpoint.npz`, and `last_good.xyz` if the run is stopped.
        settings: how.
        progress: show a progress bar.

    Raises:
        InputError: a structure or setting that does not fit, or a folder with another run.
        UnstableDynamics: a bond deviates by more than 0.5 angstrom from its first length, or a number is not finite.
    """
    start = first_state(atoms, settings)
    engine = _make_engine(potential, start, settings)
    files = RunFiles(folder, settings, start, potential)
    step = files.resume(engine)
    watch = _Watch(start)
    durations = []
    bar = Progress(
        TextColumn(f"{settings.host} {settings.ensemble}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        disable=not progress,
    )
    try:
        with bar:
            task = bar.add_task("", total=settings.steps, completed=step)
            first = watch.check(step, engine)
            if step == 0:
                files.log(0, first, settings)
            while step < settings.steps:
                n_steps = min(settings.log_every - step % settings.log_every, settings.steps - step)
                began = time.perf_counter()
                try:
                    engine.step(n_steps)
                except FloatingPointError as error:
                    raise UnstableDynamics(NOT_FINITE.format(step=step + n_steps)) from error
                durations.append((time.perf_counter() - began) / n_steps)
                step += n_steps
                files.log(step, watch.check(step, engine), settings)
                files.checkpoint(step, engine)
                rate = 1.0 / float(np.median(durations[-100:]))
                ns_per_day = rate * settings.timestep * 86400e-6
                bar.update(task, completed=step, description=f"{rate:.0f} steps/s, {ns_per_day:.2f} ns/day")
        files.checkpoint(step, engine, force=True)
    except UnstableDynamics as error:
        files.write_last_good(watch.last_good)
        files.status(step, f"stopped: {error}")
        raise
    finally:
        files.close()
    files.status(step, "complete")
    return MDResult(folder, 1e3 * float(np.median(durations)) if durations else float("nan"))


def first_state(atoms: Atoms, settings: MDSettings) -> Atoms:
    """A copy of `atoms` with momenta: its own, or drawn at `settings.temperature`, without total (angular) momentum.

    Raises:
        InputError: no momenta where none are drawn, or partial periodicity in OpenMM.
    """
    from_atoms(atoms)  # finite, not empty, periodic only with a cell
    start = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    start.set_masses(atoms.get_masses())
    if settings.host == "openmm" and atoms.pbc.any() and not atoms.pbc.all():
        raise InputError(
            f"`structure` must be periodic in no or all directions in OpenMM, got pbc={atoms.pbc.tolist()}"
        )
    if settings.temperature is None:
        momenta = atoms.get_momenta()
        if not momenta.any():
            raise InputError("`structure` must have momenta when no temperature is given, got none; give --temperature")
        start.set_momenta(momenta)
        return start
    random = np.random.default_rng([settings.seed, 0])
    widths = np.sqrt(start.get_masses() * KELVIN_TO_EV * settings.temperature)  # Maxwell and Boltzmann
    start.set_momenta(widths[:, None] * random.standard_normal((len(start), 3)))
    _stop_rigid_motion(start)
    return start


def _stop_rigid_motion(atoms: Atoms) -> None:
    """Takes out translation and, without periodicity, rotation, also of linear molecules; keeps the kinetic energy."""
    masses, kinetic = atoms.get_masses()[:, None], atoms.get_kinetic_energy()
    velocities = atoms.get_velocities() - atoms.get_momenta().sum(axis=0) / masses.sum()
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        inertia = (masses * arms**2).sum() * np.eye(3) - (masses * arms).T @ arms
        angular_momentum = (masses * np.cross(arms, velocities)).sum(axis=0)
        velocities -= np.cross(np.linalg.pinv(inertia, rcond=1e-10, hermitian=True) @ angular_momentum, arms)
    left = 0.5 * float((masses * velocities**2).sum())
    if left > 1e-12 * kinetic:  # else there is no other motion, such as in one atom
        velocities *= np.sqrt(kinetic / left)
    atoms.set_velocities(velocities)


def _make_engine(potential: LoadedPotential | Calculator, start: Atoms, settings: MDSettings) -> Engine:
    if isinstance(potential, LoadedPotential):
        check_elements(potential.contract, start.numbers)
    if settings.host == "openmm":
        if not isinstance(potential, LoadedPotential):
            raise InputError("`host` must be 'ase' for an ASE calculator, got 'openmm'")
        return OpenMMEngine(start, potential, settings)
    moving = start.copy()
    moving.calc = GGNNCalculator(potential) if isinstance(potential, LoadedPotential) else potential
    return ASEEngine(moving, settings)


class _Watch:
    """Looks at each logged state, and keeps the last one that was in order."""

    def __init__(self, start: Atoms) -> None:
        self.last_good = start.copy()
        self.bonds = bonds(start.numbers, start.positions, start.cell.array, start.pbc)
        self.first_lengths = self._lengths(start.positions)

    def _lengths(self, positions: np.ndarray) -> np.ndarray:
        return bond_lengths(positions, self.bonds, self.last_good.cell.array, self.last_good.pbc)

    def check(self, step: int, engine: Engine) -> Atoms:
        """The state as Atoms with its potential energy.

        Raises:
            UnstableDynamics: it is broken.
        """
        positions, momenta, energy = engine.read()
        if not (np.isfinite(positions).all() and np.isfinite(momenta).all() and np.isfinite(energy)):
            raise UnstableDynamics(NOT_FINITE.format(step=step))
        deviations = np.abs(self._lengths(positions) - self.first_lengths)
        if deviations.size and deviations.max() > LONGEST_DEVIATION:
            i, j = self.bonds[int(deviations.argmax())]
            symbols = self.last_good.get_chemical_symbols()
            raise UnstableDynamics(
                f"the bond {symbols[i]}{i}-{symbols[j]}{j} deviates by {deviations.max():.2f} angstrom from its first "
                f"length at step {step}, more than {LONGEST_DEVIATION}; the last good frame is in last_good.xyz. Use a "
                "lower temperature or time step, or train on structures like it"
            )
        state = self.last_good.copy()
        state.positions = positions
        state.set_momenta(momenta, apply_constraint=False)
        state.calc = SinglePointCalculator(state, energy=energy)
        self.last_good = state
        return state
