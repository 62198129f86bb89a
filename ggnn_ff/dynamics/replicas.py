"""Many replicas of one structure, evaluated together: each is a run of its own, in a folder of its own."""

import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ggnn_ff.compiled import fast_form
from ggnn_ff.contract import check_elements, tell_of_contract
from ggnn_ff.dynamics.guard import COLLAPSED, FIRST_NOT_FINITE, NOT_FINITE
from ggnn_ff.dynamics.layout import COMPLETE, STOPPED
from ggnn_ff.dynamics.run import make_guard, steps_to_look
from ggnn_ff.dynamics.run_files import CHECKPOINT_SECONDS, RunFiles
from ggnn_ff.dynamics.settings import MDSettings
from ggnn_ff.dynamics.start import degrees_of_freedom, first_state
from ggnn_ff.dynamics.thermostats import CHAIN_LENGTH, nose_hoover_half_step, ornstein_uhlenbeck_step
from ggnn_ff.errors import InputError, UnstableDynamics
from ggnn_ff.export import LoadedPotential
from ggnn_ff.graph import Structure, from_atoms
from ggnn_ff.neighbors import SKIN, neighbor_list
from ggnn_ff.steps import make_steps
from ggnn_ff.units import FEMTOSECOND, KELVIN_TO_EV


@dataclass(frozen=True)
class ReplicaResult:
    """How one replica ended.

    Attributes:
        folder: a run folder, as from `run_md`.
        stopped: why it was stopped, or None if it is complete.
    """

    folder: Path
    stopped: str | None


def run_replicas(
    potential: LoadedPotential | Calculator,
    atoms: Atoms,
    folder: Path,
    settings: MDSettings,
    n_replicas: int,
    *,
    progress: bool = True,
    compile: bool | None = None,
) -> list[ReplicaResult]:
    """Runs replicas that differ in their seed, or goes on with them; one that breaks leaves the others running.

    Args:
        potential: on the CPU; or any ASE calculator, which evaluates one after another.
        atoms: the first structure of all.
        folder: receives `replica-000`, `replica-001`, ...
        settings: with host "batched"; replica k has the seed `settings.seed` + k.
        n_replicas: how many.
        progress: as for `run_md`.
        compile: as for `run_md`.

    Raises:
        InputError: a structure or setting that does not fit, or a folder with other runs.
        UnstableDynamics: the first structure cannot be evaluated.
    """
    if settings.host != "batched":
        raise InputError(f"`settings.host` must be 'batched', got {settings.host!r}; or use run_md")
    if n_replicas < 1:
        raise InputError(f"`replicas` must be at least 1, got {n_replicas}")
    if isinstance(potential, LoadedPotential):
        check_elements(potential.contract, atoms.numbers)
        if progress:
            tell_of_contract(potential.source, potential.contract)
        potential = fast_form(potential, compile)
    each = [settings.model_copy(update={"seed": settings.seed + k}) for k in range(n_replicas)]
    starts = [first_state(atoms, one) for one in each]
    try:
        batch = Batch(potential, starts, settings)
    except BrokenReplicasError as error:
        raise UnstableDynamics(FIRST_NOT_FINITE) from error
    runs: list[_Run] = []
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    try:
        for k, start in enumerate(starts):
            one = folder / f"replica-{k:03d}"
            files = RunFiles(one, each[k], start, potential, make_guard(potential, start, one, each[k]))
            files.checkpoint_seconds = n_replicas * CHECKPOINT_SECONDS
            runs.append(_Run(files, each[k], Replica(batch, k)))
        with Progress(TextColumn(f"{n_replicas} replicas"), *columns, disable=not progress) as bar:
            task = bar.add_task("", total=settings.steps)
            while going := [run for run in runs if run.stopped is None and run.step < settings.steps]:
                step = min(run.step for run in going)  # a kill may have left some behind the others
                _advance(batch, [run for run in going if run.step == step])
                bar.update(task, completed=step)
        for run in runs:
            if run.stopped is None:
                run.files.status(run.step, COMPLETE)
    finally:
        for run in runs:
            run.files.close()
    return [ReplicaResult(run.files.folder, run.stopped) for run in runs]


def _advance(batch: "Batch", runs: list["_Run"]) -> None:
    """Some replicas, all at one step, to the next look."""
    settings, step = runs[0].settings, runs[0].step
    n_steps = steps_to_look(step, settings)
    began = time.perf_counter()
    try:
        batch.step([run.replica.index for run in runs], n_steps)
    except BrokenReplicasError as error:
        for run in runs:
            if run.replica.index in error.reasons:
                run.lose(error.reasons[run.replica.index])
        return  # nothing has moved; the others go on without it
    seconds = (time.perf_counter() - began) / (n_steps * len(runs))
    for run in runs:
        run.log(step + n_steps, 1e3 * seconds)


class BrokenReplicasError(Exception):
    """Replicas that cannot go on, and why; no replica has moved."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons


class Batch:
    """The state of all replicas: (S, N, 3) arrays, positions in angstrom, the rest in ASE's units."""

    def __init__(self, potential: LoadedPotential | Calculator, starts: Sequence[Atoms], settings: MDSettings) -> None:
        self.potential, self.settings = potential, settings
        self.first, self.one = starts[0], from_atoms(starts[0])
        self.masses = starts[0].get_masses()[:, None]  # (N, 1)
        self.degrees_of_freedom = degrees_of_freedom(starts[0], settings)
        self.positions = np.stack([atoms.positions for atoms in starts])
        self.momenta = np.stack([atoms.get_momenta() for atoms in starts])
        self.chain = np.zeros((len(starts), 2, CHAIN_LENGTH))  # of Nose-Hoover thermostats
        self.random = [np.random.default_rng([settings.seed + k, 1]) for k in range(len(starts))]
        self.active: list[int] = []
        self.energies, self.forces = self.evaluate(list(range(len(starts))), self.positions)

    def step(self, active: list[int], n_steps: int) -> None:
        """Integrates some of the replicas.

        Raises:
            BrokenReplicasError: some cannot go on.
        """
        settings, masses = self.settings, self.masses
        dt = settings.timestep * FEMTOSECOND
        thermal_energy = (settings.temperature or 0.0) * KELVIN_TO_EV
        x, p, f, chain = (a[active] for a in (self.positions, self.momenta, self.forces, self.chain))  # copies
        e, random = self.energies[active], [self.random[k].bit_generator.state for k in active]
        bath = (masses, chain, dt, thermal_energy, self.degrees_of_freedom)
        try:
            for _ in range(n_steps):
                if settings.ensemble == "nose-hoover":
                    p = nose_hoover_half_step(p, *bath)
                p = p + 0.5 * dt * f
                x = x + 0.5 * dt * p / masses
                if settings.ensemble == "langevin":
                    noise = np.stack([self.random[k].standard_normal(x.shape[1:]) for k in active])
                    friction = settings.friction * settings.timestep
                    p = ornstein_uhlenbeck_step(p, masses, noise, friction, thermal_energy)
                x = x + 0.5 * dt * p / masses
                e, f = self.evaluate(active, x)
                p = p + 0.5 * dt * f
                if settings.ensemble == "nose-hoover":
                    p = nose_hoover_half_step(p, *bath)
            _refuse(active, np.asarray(np.isfinite(p).all(axis=(1, 2))))
        except BrokenReplicasError:
            for k, state in zip(active, random, strict=True):
                self.random[k].bit_generator.state = state
            raise
        self.positions[active], self.momenta[active], self.forces[active] = x, p, f
        self.energies[active], self.chain[active] = e, chain

    def evaluate(self, active: list[int], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies (S,) and forces (S, N, 3) of some replicas at positions `x` (S, N, 3).

        Raises:
            BrokenReplicasError: positions or forces that are not finite, or atoms on one place.
        """
        _refuse(active, np.isfinite(x).all(axis=(1, 2)))
        if isinstance(self.potential, LoadedPotential):
            energies, forces = self._together(self.potential, active, x)
        else:
            energies, forces = self._one_by_one(self.potential, active, x)
        _refuse(active, np.isfinite(forces).all(axis=(1, 2)) & np.isfinite(energies))
        return energies, forces

    def _together(self, potential: LoadedPotential, active: list[int], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if active != self.active:
            self.active, self.together = active, _copies(self.one, len(active))
            self.predict = make_steps(potential)
        structure = self.together._replace(positions=torch.from_numpy(x.reshape(-1, 3).copy()))
        try:
            prediction = self.predict(structure)
        except InputError as error:
            raise BrokenReplicasError(self._collapsed(potential.contract.cutoff, active, x, error)) from error
        return prediction.energy.numpy().copy(), prediction.forces.numpy().reshape(x.shape)

    def _one_by_one(self, calculator: Calculator, active: list[int], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energies, forces = np.empty(len(active)), np.empty(x.shape)
        reasons, moving = {}, self.first.copy()
        for number, k in enumerate(active):
            moving.positions = x[number]
            try:
                energies[number] = calculator.get_potential_energy(moving)
                forces[number] = calculator.get_forces(moving)
            except (InputError, CalculatorError) as error:
                reasons[k] = COLLAPSED.format(step="{step}", reason=error)
        if reasons:
            raise BrokenReplicasError(reasons)
        return energies, forces

    def _collapsed(self, cutoff: float, active: list[int], x: np.ndarray, error: InputError) -> dict[int, str]:
        """Which have no neighbour list: atoms on one place, or too far apart; all, if none is to blame alone."""
        reasons = {}
        for k, positions in zip(active, x, strict=True):
            try:
                neighbor_list(self.one._replace(positions=torch.from_numpy(positions.copy())), cutoff + SKIN)
            except InputError as own:
                reasons[k] = COLLAPSED.format(step="{step}", reason=own)
        return reasons or dict.fromkeys(active, COLLAPSED.format(step="{step}", reason=error))


def _copies(one: Structure, number: int) -> Structure:
    return Structure(
        positions=one.positions.repeat(number, 1),
        numbers=one.numbers.repeat(number),
        cell=one.cell.repeat(number, 1, 1),
        pbc=one.pbc.repeat(number, 1),
        batch=torch.arange(number).repeat_interleave(len(one.numbers)),
        n_structures=number,
    )


def _refuse(active: list[int], finite: np.ndarray) -> None:
    if not finite.all():
        raise BrokenReplicasError({active[number]: NOT_FINITE for number in np.flatnonzero(~finite)})


class Replica:
    """One replica of a batch, as far as reading, saving and restoring go; see `integrators.Integrator`."""

    def __init__(self, batch: Batch, index: int) -> None:
        self.batch, self.index = batch, index

    def step(self, n_steps: int) -> None:
        """Integrates `n_steps`, without the others."""
        self.batch.step([self.index], n_steps)

    def read(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Positions, momenta, potential energy."""
        batch, k = self.batch, self.index
        return batch.positions[k].copy(), batch.momenta[k].copy(), float(batch.energies[k])

    def save(self) -> dict[str, np.ndarray]:
        """Positions, momenta, thermostat and the state of the random numbers."""
        batch, k = self.batch, self.index
        generator = json.dumps(batch.random[k].bit_generator.state).encode()
        return {
            "positions": batch.positions[k],
            "momenta": batch.momenta[k],
            "chain": batch.chain[k],
            "random": np.frombuffer(generator, dtype=np.uint8),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes back to a saved state."""
        batch, k = self.batch, self.index
        batch.positions[k], batch.momenta[k], batch.chain[k] = state["positions"], state["momenta"], state["chain"]
        batch.random[k].bit_generator.state = json.loads(state["random"].tobytes())
        batch.energies[[k]], batch.forces[[k]] = batch.evaluate([k], batch.positions[[k]])


class _Run:
    """The files and the guard of one replica."""

    def __init__(self, files: RunFiles, settings: MDSettings, replica: Replica) -> None:
        self.files, self.guard, self.settings, self.replica = files, files.guard, settings, replica
        self.stopped: str | None = None
        self.milliseconds: deque[float] = deque(maxlen=100)  # per step, of the last intervals
        self.step = files.resume(replica)
        try:
            first = self.guard.state(self.step, *replica.read())
            if self.step == 0:
                self._stop(files.look(0, first, settings))
        except BaseException:
            files.close()
            raise

    def log(self, step: int, milliseconds: float) -> None:
        """Writes what is due after a step, and judges it."""
        self.step = step
        self.milliseconds.append(milliseconds)
        self.files.milliseconds_per_step = float(np.median(self.milliseconds))
        state = self.guard.state(step, *self.replica.read())
        self._stop(self.files.look(step, state, self.settings))
        if self.stopped is None:
            self.files.checkpoint(step, self.replica, force=step == self.settings.steps)

    def lose(self, reason: str) -> None:
        """Ends the run here, since it cannot go on."""
        self._stop(str(self.guard.lost(self.step, reason.format(step=self.step))))

    def _stop(self, reason: str | None) -> None:
        if reason is not None:
            self.stopped = reason
            self.guard.write_last_good()
            self.files.status(self.step, f"{STOPPED}{reason}")
