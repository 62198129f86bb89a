"""A molecular-dynamics run in a folder: energies and frames as it goes, resumed after a kill, stopped when broken."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ggnn_ff.bonds import LONGEST_DEVIATION, bond_lengths, bond_name, bonds
from ggnn_ff.compiled import fast_form
from ggnn_ff.contract import check_elements
from ggnn_ff.dynamics.engines import ASEEngine, Engine, OpenMMEngine
from ggnn_ff.dynamics.layout import COMPLETE, STOPPED
from ggnn_ff.dynamics.run_files import RunFiles
from ggnn_ff.dynamics.settings import MDSettings
from ggnn_ff.dynamics.start import first_state
from ggnn_ff.errors import InputError, UnstableDynamics
from ggnn_ff.export import LoadedPotential
from ggnn_ff.hosts.ase import GGNNCalculator

NOT_FINITE = (
    "positions, forces or energy are not finite by step {step}; the last good frame is in last_good.xyz. Use a shorter "
    "time step, or train on more structures of this kind"
)
COLLAPSED = "the structure broke by step {step}: {reason}; the last good frame is in last_good.xyz"


@dataclass(frozen=True)
class MDResult:
    """A finished run.

    Attributes:
        folder: with `energies.csv`, `trajectory.xyz` and `run.json`.
        milliseconds_per_step: median over the intervals between logged steps of the last call that took any; None if
            it is not known.
    """

    folder: Path
    milliseconds_per_step: float | None


def run_md(
    potential: LoadedPotential | Calculator,
    atoms: Atoms,
    folder: Path,
    settings: MDSettings,
    *,
    progress: bool = True,
    compile: bool | None = None,
) -> MDResult:
    """Runs molecular dynamics, or goes on with an interrupted run.

    An NVE run that starts from a relaxed structure settles near half of its first temperature, since half of the
    kinetic energy goes into the bonds; start from a structure of a Langevin run, or ask for twice the temperature.

    Args:
        potential: from `load_potential`, or (host "ase") any ASE calculator.
        atoms: the first structure; with momenta where `settings.temperature` is None.
        folder: receives `energies.csv` (a row each `log_every` steps), `trajectory.xyz` (extxyz with momenta),
            `run.json`, `checkpoint.npz`, and `last_good.xyz` if the run is stopped; a frame with a broken bond is then
            the last of `trajectory.xyz`.
        settings: how.
        progress: show a progress bar.
        compile: run the potential as machine code; by default where that is possible (see `fast_form`).

    Raises:
        InputError: a structure or setting that does not fit, or a folder with another run.
        UnstableDynamics: a bond deviates by more than 0.5 angstrom from its first length, or a number is not finite.
    """
    start = first_state(atoms, settings)
    if isinstance(potential, LoadedPotential):
        check_elements(potential.contract, start.numbers)
        potential = fast_form(potential, compile)
    engine = _make_engine(potential, start, settings)
    files = RunFiles(folder, settings, start, potential)
    step = files.resume(engine)
    watch = Watch(start)
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
            watch.last_good = first = watch.read(step, engine)
            if step == 0:
                files.log(0, first, settings)
            while step < settings.steps:
                n_steps = min(settings.log_every - step % settings.log_every, settings.steps - step)
                began = time.perf_counter()
                try:
                    engine.step(n_steps)
                except FloatingPointError as error:
                    raise UnstableDynamics(NOT_FINITE.format(step=step + n_steps)) from error
                except InputError as error:  # the structure can no longer be evaluated
                    raise UnstableDynamics(COLLAPSED.format(step=step + n_steps, reason=error)) from error
                durations.append((time.perf_counter() - began) / n_steps)
                step += n_steps
                state = watch.read(step, engine)
                broken = watch.broken_bond(step, state)
                files.log(step, state, settings, with_frame=broken is not None)
                if broken is not None:
                    raise UnstableDynamics(broken)
                watch.last_good = state
                files.checkpoint(step, engine)
                rate = 1.0 / float(np.median(durations[-100:]))
                ns_per_day = rate * settings.timestep * 86400e-6
                bar.update(task, completed=step, description=f"{rate:.0f} steps/s, {ns_per_day:.2f} ns/day")
        files.checkpoint(step, engine, force=True)
    except UnstableDynamics as error:
        files.write_last_good(watch.last_good)
        files.status(step, f"{STOPPED}{error}")
        raise
    finally:
        files.close()
    if durations:
        files.milliseconds_per_step = 1e3 * float(np.median(durations))
    files.status(step, COMPLETE)
    return MDResult(folder, files.milliseconds_per_step)


def _make_engine(potential: LoadedPotential | Calculator, start: Atoms, settings: MDSettings) -> Engine:
    if settings.host == "batched":
        raise InputError("`host` must be 'ase' or 'openmm' for one run, got 'batched'; use run_replicas")
    if settings.host == "openmm":
        if not isinstance(potential, LoadedPotential):
            raise InputError("`host` must be 'ase' for an ASE calculator, got 'openmm'")
        if potential.device.type != "cpu":
            raise InputError(
                f"`potential` must be on the CPU for host 'openmm', got {potential.device}; load it with device='cpu'"
            )
        return OpenMMEngine(start, potential, settings)
    moving = start.copy()
    moving.calc = GGNNCalculator(potential, compile=False) if isinstance(potential, LoadedPotential) else potential
    return ASEEngine(moving, settings)


class Watch:
    """Reads and judges states; `last_good` is the last one that was in order."""

    def __init__(self, start: Atoms) -> None:
        self.last_good = start.copy()
        self.bonds = bonds(start.numbers, start.positions, start.cell.array, start.pbc)
        self.first_lengths = self._lengths(start.positions)

    def _lengths(self, positions: np.ndarray) -> np.ndarray:
        return bond_lengths(positions, self.bonds, self.last_good.cell.array, self.last_good.pbc)

    def read(self, step: int, engine: Engine) -> Atoms:
        """The state as Atoms with its potential energy.

        Raises:
            UnstableDynamics: a number is not finite.
        """
        positions, momenta, energy = engine.read()
        if not (np.isfinite(positions).all() and np.isfinite(momenta).all() and np.isfinite(energy)):
            raise UnstableDynamics(NOT_FINITE.format(step=step))
        state = self.last_good.copy()
        state.positions = positions
        state.set_momenta(momenta, apply_constraint=False)
        state.calc = SinglePointCalculator(state, energy=energy)
        return state

    def broken_bond(self, step: int, state: Atoms) -> str | None:
        """What to say of the bond that deviates most, or None if all are in order."""
        deviations = np.abs(self._lengths(state.positions) - self.first_lengths)
        if not deviations.size or deviations.max() <= LONGEST_DEVIATION:
            return None
        bond = bond_name(state.numbers, self.bonds[int(deviations.argmax())])
        return (
            f"the bond {bond} deviates by {deviations.max():.2f} angstrom from its first length at step {step}, more "
            f"than {LONGEST_DEVIATION}; the last good frame is in last_good.xyz. Use a lower temperature or time step, "
            "or train on structures like it"
        )
