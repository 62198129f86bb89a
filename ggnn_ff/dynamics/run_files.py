"""The files of a molecular-dynamics run: after a kill they are cut back to the last checkpoint."""

import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.io.extxyz import write_extxyz

from ggnn_ff.dynamics.guard import Guard, columns_of
from ggnn_ff.dynamics.integrators import Integrator
from ggnn_ff.dynamics.layout import ENERGY_COLUMNS, RUNNING, STOPPED
from ggnn_ff.dynamics.settings import MDSettings
from ggnn_ff.dynamics.start import degrees_of_freedom
from ggnn_ff.errors import InputError
from ggnn_ff.export import LoadedPotential
from ggnn_ff.files import holding, lock, unlock, write_atomically
from ggnn_ff.units import KELVIN_TO_EV

CHECKPOINT_SECONDS = 5.0


class RunFiles:
    """Energies, frames, checkpoint and record of one run."""

    def __init__(
        self, folder: Path, settings: MDSettings, start: Atoms, potential: LoadedPotential | Calculator, guard: Guard
    ) -> None:
        self.folder, self.guard = folder, guard
        self.energies_path, self.frames_path = folder / "energies.csv", folder / "trajectory.xyz"
        self.checkpoint_path = folder / "checkpoint.npz"
        if isinstance(potential, LoadedPotential):
            source = potential.source
            identity = f"{potential.contract.identity} {potential.dtype}"
        else:
            source = type(potential).__name__
            parameters = dict(getattr(potential, "parameters", {}))
            identity = f"{source} {json.dumps(parameters, default=_plain, skipkeys=True)}"
        arrays = (
            start.numbers,
            start.positions,
            start.get_momenta(),
            start.cell.array,
            start.pbc,
            start.get_masses(),
        )
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
        self.record: dict[str, Any] = {
            "potential": source,
            "potential_sha256": identity,
            "start_sha256": digest,
            "n_atoms": len(start),
            "degrees_of_freedom": degrees_of_freedom(start, settings),
            "ensemble": settings.ensemble,
            "host": settings.host,
            "timestep_fs": settings.timestep,
            "temperature_K": settings.temperature,
            "steps": settings.steps,
            "settings": settings.model_dump(),
        }
        self.milliseconds_per_step: float | None = None  # of an earlier call, until this one has its own
        self.steps_there = 0  # of an earlier call, by its record
        self.checkpoint_seconds, self.last_checkpoint = CHECKPOINT_SECONDS, time.monotonic()

    def resume(self, integrator: Integrator) -> int:
        """Opens the files, which no other process may write to; returns the step to go on from (0 for a new run)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.folder)
        try:
            return self._open(integrator)
        except BaseException:
            unlock(self.lock)
            raise

    def _open(self, integrator: Integrator) -> int:
        path = self.folder / "run.json"
        if path.exists():
            self._refuse_another_run(path)
        else:
            self._refuse_foreign_files()
        step, offsets = 0, (0, 0)
        if path.exists() and self.checkpoint_path.exists():
            step, offsets = self._restore(integrator)
        elif self.steps_there > 0:
            raise InputError(
                f"{self.checkpoint_path} is missing, though {path} says that {self.steps_there} steps were made; put "
                f"it back to go on, or choose another folder: starting anew would overwrite {self.energies_path}"
            )
        self.status(step, RUNNING)
        self.energies = _open_at(self.energies_path, offsets[0])
        self.frames = _open_at(self.frames_path, offsets[1])
        if step == 0:
            self.energies.write(",".join(ENERGY_COLUMNS) + "\n")
        return step

    def _restore(self, integrator: Integrator) -> tuple[int, tuple[int, int]]:
        """Brings the integrator to the checkpoint; returns its step, and how long the files were then."""
        try:
            with np.load(io.BytesIO(self.checkpoint_path.read_bytes()), allow_pickle=False) as stored:
                state = {name: stored[name] for name in stored.files}
            step, energies, frames = state.pop("progress").tolist()
            integrator.restore(state)
            self.guard.restore(state)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{self.checkpoint_path} is damaged or of another program ({type(error).__name__}); delete the folder "
                f"{self.folder} to start anew"
            ) from error
        for path, size in ((self.energies_path, energies), (self.frames_path, frames)):
            if not path.exists() or path.stat().st_size < size:
                raise InputError(
                    f"{path} must hold what was written before the last checkpoint ({size} bytes), but is shorter or "
                    f"missing; put it back, or delete the folder {self.folder} to start anew"
                )
        return step, (energies, frames)

    def _refuse_foreign_files(self) -> None:
        """Raises if a file would be overwritten that no run of this package wrote."""
        for path in (self.energies_path, self.frames_path, self.checkpoint_path):
            if path.exists():
                raise InputError(
                    f"`output`: {path} exists without a run.json and would be overwritten; choose another folder or "
                    "move it away"
                )

    def _refuse_another_run(self, path: Path) -> None:
        """Raises if `run.json` is not of this run; otherwise takes the time per step from it."""
        try:
            there = json.loads(path.read_text(encoding="utf8"))
            old = _essential(there)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is damaged or of another program ({error!r}); choose another folder, or delete {self.folder} "
                "to start anew"
            ) from error
        self.milliseconds_per_step = there.get("milliseconds_per_step")
        if not str(there.get("status")).startswith(STOPPED):  # which may be before the first checkpoint
            self.steps_there = there.get("steps_done", 0)
        new = _essential(self.record)
        different = sorted(key for key in new if old.get(key) != new[key])
        if different:
            changes = ", ".join(f"{key}: {old.get(key)} there, {new[key]} now" for key in different)
            raise InputError(
                f"`output` {self.folder} holds another run ({changes}); choose another "
                "folder, or delete it to start anew"
            )

    def look(self, step: int, state: Atoms, settings: MDSettings) -> str | None:
        """Lets the guard judge a state and writes what is due; why the run has to end here, or None."""
        known = len(self.guard.alarms)
        reason = self.guard.judge(step, state)
        if reason is not None or step % settings.log_every == 0 or step == settings.steps:
            self.log(step, state, settings, with_frame=reason is not None)
        if reason is None and len(self.guard.alarms) > known:
            self.status(step, RUNNING)
        return reason

    def log(self, step: int, state: Atoms, settings: MDSettings, with_frame: bool = False) -> None:
        """Writes what is due at this step; the frame also where it is not due, if `with_frame`."""
        potential, kinetic = state.calc.results["energy"], state.get_kinetic_energy()
        temperature = 2.0 * kinetic / (self.record["degrees_of_freedom"] * KELVIN_TO_EV)
        when = step * settings.timestep
        with _naming(self.energies_path):
            self.energies.write(
                f"{step},{when:.12g},{potential:.10f},{kinetic:.10f},{potential + kinetic:.10f},{temperature:.4f}\n"
            )
        if with_frame or step % settings.frame_every == 0:
            state.info = {"step": step, "time_fs": when}
            with _naming(self.frames_path):
                write_extxyz(self.frames, [state], columns=columns_of(state))

    def checkpoint(self, step: int, integrator: Integrator, force: bool = False) -> None:
        """Makes everything so far safe, every few seconds."""
        if not force and time.monotonic() - self.last_checkpoint < self.checkpoint_seconds:
            return
        offsets = []
        for path, file in ((self.energies_path, self.energies), (self.frames_path, self.frames)):
            with _naming(path):
                file.flush()
                os.fsync(file.fileno())
                offsets.append(file.tell())
        state = {**integrator.save(), **self.guard.save(), "progress": np.array([step, *offsets], dtype=np.int64)}
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **state)
        write_atomically(self.checkpoint_path, holding(content.getvalue()))
        self.last_checkpoint = time.monotonic()

    def status(self, step: int, status: str) -> None:
        """Records how far the run is."""
        progress = {
            "steps_done": step,
            "status": status,
            "alarms": self.guard.record(),
            "milliseconds_per_step": self.milliseconds_per_step,
        }
        text = json.dumps({**self.record, **progress}, indent=1) + "\n"
        write_atomically(self.folder / "run.json", holding(text))

    def close(self) -> None:
        """Closes the files, without hiding an error on the way here."""
        try:
            with _naming(self.energies_path):
                self.energies.close()
        finally:
            try:
                with _naming(self.frames_path):
                    self.frames.close()
            finally:
                unlock(self.lock)


def _essential(record: dict[str, Any]) -> dict[str, Any]:
    """What must not change when a run goes on."""
    settings = dict(record["settings"])
    settings.pop("steps")  # a run may be made longer
    settings.pop("on_alarm", None)  # which does not change what is computed; older runs have none
    return {**settings, "start_sha256": record["start_sha256"], "potential_sha256": record["potential_sha256"]}


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds to an error of writing which file it is, and that the run can go on."""
    try:
        yield
    except OSError as error:
        message = f"could not write {path}: {error.strerror or error}; run again to go on from the last checkpoint"
        raise OSError(error.errno, message) from error


def _open_at(path: Path, offset: int) -> io.TextIOWrapper:
    """Opens for writing from `offset` on, with what came after it cut off."""
    path.touch()
    os.truncate(path, offset)
    return open(path, "a", encoding="utf8")


def _plain(value: object) -> object:
    """What stands for a parameter that JSON has no form for: its values, or what it is."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else type(value).__name__
