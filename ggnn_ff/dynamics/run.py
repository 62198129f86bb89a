"""A molecular-dynamics run in a folder: energies and frames as it goes, resumed after a kill, stopped when broken."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ggnn_ff.compiled import fast_form
from ggnn_ff.contract import check_elements, tell_of_contract
from ggnn_ff.dynamics.guard import COLLAPSED, DOMAIN_EVERY, NOT_FINITE, Guard
from ggnn_ff.dynamics.integrators import ASEIntegrator, Integrator, OpenMMIntegrator
from ggnn_ff.dynamics.layout import COMPLETE, STOPPED
from ggnn_ff.dynamics.run_files import RunFiles
from ggnn_ff.dynamics.settings import MDSettings
from ggnn_ff.dynamics.start import degrees_of_freedom, first_state
from ggnn_ff.errors import InputError, UnstableDynamics
from ggnn_ff.export import LoadedPotential
from ggnn_ff.hosts.ase import GGNNCalculator


@dataclass(frozen=True)
class MDResult:
    """A finished run.

    Attributes:
        folder: with `energies.csv`, `trajectory.xyz` and `run.json`.
        steps: in it; more than asked for where an earlier call made more.
        milliseconds_per_step: median over the intervals between looks of the last call that took any; None if it is
            not known.
    """

    folder: Path
    steps: int
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

    The guard looks at each row of energies, and at least every 100 steps, also where no row is due.

    An NVE run that starts from a relaxed structure settles near half of its first temperature, since half of the
    kinetic energy goes into the bonds; start from a structure of a Langevin run, or ask for twice the temperature.

    Args:
        potential: from `load_potential`, or (host "ase") any ASE calculator.
        atoms: the first structure; with momenta where `settings.temperature` is None.
        folder: receives `energies.csv` (a row each `log_every` steps), `trajectory.xyz` (extxyz with momenta),
            `run.json`, `checkpoint.npz`, `alarm-KIND.xyz` with the frames that led to an alarm (see `Guard`), and
            `last_good.xyz` if the run is stopped; the frame of the alarm is then the last of `trajectory.xyz`.
        settings: how.
        progress: show a progress bar, and say what the contract of the potential lacks.
        compile: run the potential as machine code; by default where that is possible (see `fast_form`).

    Raises:
        InputError: a structure or setting that does not fit, or a folder with another run.
        UnstableDynamics: a bond deviates by more than 0.5 angstrom from its first length, a number is not finite, or
            with `settings.on_alarm` "stop" any other alarm.
    """
    start = first_state(atoms, settings)
    if isinstance(potential, LoadedPotential):
        check_elements(potential.contract, start.numbers)
        if progress:
            tell_of_contract(potential.source, potential.contract)
        potential = fast_form(potential, compile)
    integrator = _make_integrator(potential, start, settings)
    guard = make_guard(potential, start, folder, settings)
    files = RunFiles(folder, settings, start, potential, guard)
    step = files.resume(integrator)
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
            first = guard.state(step, *integrator.read())
            if step == 0:
                _look(files, step, first, settings)
            while step < settings.steps:
                n_steps = steps_to_look(step, settings)
                began = time.perf_counter()
                try:
                    integrator.step(n_steps)
                except FloatingPointError as error:
                    raise guard.lost(step + n_steps, NOT_FINITE.format(step=step + n_steps)) from error
                except (InputError, CalculatorError) as error:  # the structure can no longer be evaluated
                    text = COLLAPSED.format(step=step + n_steps, reason=error)
                    raise guard.lost(step + n_steps, text) from error
                durations.append((time.perf_counter() - began) / n_steps)
                step += n_steps
                _look(files, step, guard.state(step, *integrator.read()), settings)
                files.checkpoint(step, integrator)
                rate = 1.0 / float(np.median(durations[-100:]))
                ns_per_day = rate * settings.timestep * 86400e-6
                bar.update(task, completed=step, description=f"{rate:.0f} steps/s, {ns_per_day:.2f} ns/day")
        files.checkpoint(step, integrator, force=True)
        if durations:
            files.milliseconds_per_step = 1e3 * float(np.median(durations))
        files.status(step, COMPLETE)
    except UnstableDynamics as error:
        guard.write_last_good()
        files.status(step, f"{STOPPED}{error}")
        raise
    finally:
        files.close()
    return MDResult(folder, step, files.milliseconds_per_step)


def steps_to_look(step: int, settings: MDSettings) -> int:
    """How many to take until the guard looks: to the next row of energies, and at most `DOMAIN_EVERY`."""
    return min(settings.log_every - step % settings.log_every, settings.steps - step, DOMAIN_EVERY)


def _look(files: RunFiles, step: int, state: Atoms, settings: MDSettings) -> None:
    if (reason := files.look(step, state, settings)) is not None:
        raise UnstableDynamics(reason)


def make_guard(potential: LoadedPotential | Calculator, start: Atoms, folder: Path, settings: MDSettings) -> Guard:
    """The guard of a run."""
    return Guard(
        start,
        folder,
        degrees_of_freedom(start, settings),
        bath=None if settings.ensemble == "nve" else settings.temperature,
        domain=potential.contract.domain if isinstance(potential, LoadedPotential) else None,
        on_alarm=settings.on_alarm,
    )


def _make_integrator(potential: LoadedPotential | Calculator, start: Atoms, settings: MDSettings) -> Integrator:
    if settings.host == "batched":
        raise InputError("`host` must be 'ase' or 'openmm' for one run, got 'batched'; use run_replicas")
    if settings.host == "openmm":
        if not isinstance(potential, LoadedPotential):
            raise InputError("`host` must be 'ase' for an ASE calculator, got 'openmm'")
        if potential.device.type != "cpu":
            raise InputError(
                f"`potential` must be on the CPU for host 'openmm', got {potential.device}; load it with device='cpu'"
            )
        return OpenMMIntegrator(start, potential, settings)
    moving = start.copy()
    moving.calc = GGNNCalculator(potential, compile=False) if isinstance(potential, LoadedPotential) else potential
    return ASEIntegrator(moving, settings)
