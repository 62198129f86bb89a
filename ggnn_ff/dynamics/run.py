"""A molecular-dynamics run in a folder: energies and frames as it goes, resumed after a kill, stopped when broken."""

import hashlib
import io
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ggnn_ff.bonds import bond_lengths, bonds
from ggnn_ff.contract import check_elements
from ggnn_ff.dynamics.engines import ASEEngine, Engine, OpenMMEngine
from ggnn_ff.dynamics.settings import MDSettings
from ggnn_ff.errors import InputError
from ggnn_ff.export import LoadedPotential
from ggnn_ff.files import write_atomically
from ggnn_ff.graph import from_atoms
from ggnn_ff.hosts.ase import GGNNCalculator
from ggnn_ff.units import KELVIN_TO_EV

LONGEST_DEVIATION = 0.5  # angstrom, of a bond from its first length: arXiv 2210.07237, section 3
CHECKPOINT_SECONDS = 5.0
HEADER = "step,time_fs,potential_eV,kinetic_eV,total_eV,temperature_K\n"


class UnstableDynamics(RuntimeError):
    """The run was stopped because the structure broke or numbers blew up."""


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
    files = _RunFiles(folder, settings, start, potential)
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
            if step == 0:
                files.log(0, watch.check(0, engine), settings)
            while step < settings.steps:
                n_steps = min(settings.log_every, settings.steps - step)
                began = time.perf_counter()
                engine.step(n_steps)
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
    MaxwellBoltzmannDistribution(start, temperature_K=settings.temperature, rng=random)
    Stationary(start)
    if not start.pbc.any() and len(start) > 1:
        ZeroRotation(start)
    return start


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
            raise UnstableDynamics(
                f"positions, momenta or energy are not finite at step {step}; use a shorter time step, or train on "
                "more structures of this kind"
            )
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


class _RunFiles:
    """The files of one run; after a kill they are cut back to the last checkpoint."""

    def __init__(
        self, folder: Path, settings: MDSettings, start: Atoms, potential: LoadedPotential | Calculator
    ) -> None:
        self.folder = folder
        self.energies_path, self.frames_path = folder / "energies.csv", folder / "trajectory.xyz"
        self.checkpoint_path = folder / "checkpoint.npz"
        source = potential.source if isinstance(potential, LoadedPotential) else type(potential).__name__
        arrays = (
            start.numbers,
            start.positions,
            start.get_momenta(),
            start.cell.array,
            start.pbc,
            start.get_masses(),
        )
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
        self.record = {
            "potential": source,
            "start_sha256": digest,
            "n_atoms": len(start),
            "ensemble": settings.ensemble,
            "host": settings.host,
            "timestep_fs": settings.timestep,
            "temperature_K": settings.temperature,
            "steps": settings.steps,
            "settings": settings.model_dump(),
        }
        self.last_checkpoint = time.monotonic()

    def resume(self, engine: Engine) -> int:
        """Opens the files; returns the step to go on from (0 for a new run)."""
        path = self.folder / "run.json"
        if path.exists():
            self._refuse_another_run(json.loads(path.read_text(encoding="utf8")))
        step, offsets = 0, (0, 0)
        if path.exists() and self.checkpoint_path.exists():
            with np.load(self.checkpoint_path, allow_pickle=False) as stored:
                state = {name: stored[name] for name in stored.files}
            step, *cuts = state.pop("progress").tolist()
            offsets = (cuts[0], cuts[1])
            engine.restore(state)
        self.status(step, "running")
        self.energies = _open_at(self.energies_path, offsets[0])
        self.frames = _open_at(self.frames_path, offsets[1])
        if step == 0:
            self.energies.write(HEADER)
        return step

    def _refuse_another_run(self, there: dict[str, object]) -> None:
        def essential(record: dict[str, object]) -> dict[str, object]:
            settings = dict(record["settings"])  # type: ignore[call-overload]
            settings.pop("steps")  # a run may be made longer
            return {**settings, "start_sha256": record["start_sha256"]}

        old, new = essential(there), essential(self.record)
        different = sorted(key for key in new if old.get(key) != new[key])
        if different:
            changes = ", ".join(f"{key}: {old.get(key)} there, {new[key]} now" for key in different)
            raise InputError(
                f"`output` {self.folder} holds another run ({changes}); choose another "
                "folder, or delete it to start anew"
            )

    def log(self, step: int, state: Atoms, settings: MDSettings) -> None:
        """Writes what is due at this step."""
        potential, kinetic = state.get_potential_energy(), state.get_kinetic_energy()
        temperature = 2.0 * kinetic / (3.0 * len(state) * KELVIN_TO_EV)
        when = step * settings.timestep
        self.energies.write(
            f"{step},{when:.6g},{potential:.10f},{kinetic:.10f},{potential + kinetic:.10f},{temperature:.4f}\n"
        )
        if step % settings.frame_every == 0:
            state.info = {"step": step, "time_fs": when}
            write_extxyz(self.frames, [state], columns=["symbols", "positions", "momenta"])

    def checkpoint(self, step: int, engine: Engine, force: bool = False) -> None:
        """Makes everything so far safe, every few seconds."""
        if not force and time.monotonic() - self.last_checkpoint < CHECKPOINT_SECONDS:
            return
        offsets = []
        for file in (self.energies, self.frames):
            file.flush()
            os.fsync(file.fileno())
            offsets.append(file.tell())
        state = {**engine.save(), "progress": np.array([step, *offsets], dtype=np.int64)}
        write_atomically(self.checkpoint_path, lambda path: np.savez(path, allow_pickle=False, **state))
        self.last_checkpoint = time.monotonic()

    def write_last_good(self, atoms: Atoms) -> None:
        """Keeps the last frame that was in order."""
        text = io.StringIO()
        write_extxyz(text, [atoms], columns=["symbols", "positions", "momenta"])
        write_atomically(self.folder / "last_good.xyz", lambda path: _write(path, text.getvalue()))

    def status(self, step: int, status: str) -> None:
        """Records how far the run is."""
        text = json.dumps({**self.record, "steps_done": step, "status": status}, indent=1) + "\n"
        write_atomically(self.folder / "run.json", lambda path: _write(path, text))

    def close(self) -> None:
        """Closes the files."""
        self.energies.close()
        self.frames.close()


def _open_at(path: Path, offset: int) -> io.TextIOWrapper:
    """Opens for writing from `offset` on, with what came after it cut off."""
    path.touch()
    os.truncate(path, offset)
    return open(path, "a", encoding="utf8")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf8")
