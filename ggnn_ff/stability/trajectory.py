"""Reading a trajectory: a run folder of ggnn-ff or OpenMM, whatever ASE reads, or DCD, XTC and HDF5 through mdtraj."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from ggnn_ff.dynamics.layout import COMPLETE, ENERGY_COLUMNS, STOPPED
from ggnn_ff.errors import InputError
from ggnn_ff.stability.ase_traj import read_uniform_traj
from ggnn_ff.stability.blocks import Rows, chunks, read_rows
from ggnn_ff.stability.extxyz import read_uniform
from ggnn_ff.stability.frames import Energies, Trajectory
from ggnn_ff.stability.mdtraj_files import MDTRAJ_SUFFIXES, read_mdtraj
from ggnn_ff.stability.openmm_files import read_openmm_folder

__all__ = ["Energies", "Trajectory", "read_trajectory"]

XYZ_SUFFIXES = (".xyz", ".extxyz")

_CUT = "{} ends in a half-written frame, which was ignored"


def read_trajectory(
    path: str | Path, topology: str | Path | None = None, *, frame_interval_fs: float | None = None
) -> Trajectory:
    """Reads a trajectory with everything that it says about energies, momenta and time.

    Args:
        path: a run folder (`run.json`, `trajectory.xyz`, `energies.csv`), a folder of OpenMM's (see
            `read_openmm_folder`), any file ASE reads, or a DCD, XTC, TRR, NetCDF or HDF5 file through mdtraj.
        topology: file that names the atoms of a DCD, XTC, TRR or NetCDF file: PDB, or any file ASE reads.
        frame_interval_fs: time between frames, fs, for files without times; it replaces those of the file. The
            energies of an OpenMM folder keep theirs.

    Returns:
        The trajectory. The half-written end of a killed run is left out, with a note.

    Raises:
        InputError: if the file is missing, empty, truncated or of no known format; has no whole frame; has
            positions or energies that are not finite, times that do not increase or a changing number of
            atoms; or if mdtraj or a topology is needed and missing.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"`path` must be a trajectory file or a run folder, but {path} does not exist")
    if frame_interval_fs is not None and not (0 < frame_interval_fs < np.inf):
        raise InputError(f"`frame_interval_fs` must be a positive number of fs, got {frame_interval_fs}")
    if (path / "run.json").is_file() and frame_interval_fs is not None:
        raise InputError("`frame_interval_fs` must not be given for a run folder, whose files have the times")
    if (path / "run.json").is_file():
        trajectory = _read_run_folder(path)
    elif path.is_dir():
        trajectory = read_openmm_folder(path, None if topology is None else Path(topology))
    elif path.stat().st_size == 0:
        raise InputError(f"{path} is empty; give a trajectory with at least one frame")
    elif path.suffix.lower() in MDTRAJ_SUFFIXES:
        trajectory = read_mdtraj(path, None if topology is None else Path(topology))
    elif path.suffix.lower() in XYZ_SUFFIXES:
        trajectory = _read_extxyz(path)
    else:
        trajectory = _read_with_ase(path)
    if frame_interval_fs is not None:
        trajectory = _with_frame_interval(trajectory, frame_interval_fs, path.is_dir())
    _require_sound(trajectory)
    return trajectory


def _read_run_folder(folder: Path) -> Trajectory:
    for name in ("run.json", "trajectory.xyz", "energies.csv"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} must be a run folder of `ggnn-ff md` or a trajectory file, but it has no {name}"
            )
    try:
        run = json.loads((folder / "run.json").read_text())
        ensemble, n_atoms = str(run["ensemble"]), int(run["n_atoms"])
        status = str(run.get("status", COMPLETE))  # folders of other programs need not say
        temperature = None if ensemble == "nve" or run.get("temperature_K") is None else float(run["temperature_K"])
        degrees = None if run.get("degrees_of_freedom") is None else int(run["degrees_of_freedom"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'run.json'} must be JSON with `ensemble` and `n_atoms` ({error!r}); run `ggnn-ff md` again"
        ) from None
    stopped = status if status.startswith(STOPPED) else None
    if stopped is not None and (folder / "trajectory.xyz").stat().st_size == 0:
        raise InputError(f"{folder} has no frame to check: the run was {stopped}")
    frames = _read_extxyz(folder / "trajectory.xyz")
    if len(frames.numbers) != n_atoms:
        raise InputError(
            f"{folder}: run.json says {n_atoms} atoms but trajectory.xyz has {len(frames.numbers)}; "
            "these files are not from one run"
        )
    energies, notes = _read_energies(folder / "energies.csv")
    if stopped is None and status != COMPLETE:
        notes += (f"the run is not complete: {run.get('steps_done')} of {run.get('steps')} steps at last count",)
    notes = frames.notes + notes
    return replace(
        frames,
        source=str(folder),
        energies=energies,
        ensemble=ensemble,
        temperature=temperature,
        degrees_of_freedom=degrees,
        stopped=stopped,
        notes=notes,
    )


def _read_energies(path: Path) -> tuple[Energies, tuple[str, ...]]:
    """The rows of an `energies.csv`, without a last line that was cut while it was written."""
    with open(path, encoding="utf8", errors="replace") as file:  # what is no text is no number either
        if file.readline().strip().split(",") != ENERGY_COLUMNS:
            raise InputError(f"{path} must start with the header {','.join(ENERGY_COLUMNS)}")
        rows, notes = read_rows(file, path, ",", range(len(ENERGY_COLUMNS)))
    times, potential, kinetic = (column.copy() for column in rows[:, 1:4].T)
    return Energies(times_fs=times, potential=potential, kinetic=kinetic), notes


def _read_extxyz(path: Path) -> Trajectory:
    uniform = read_uniform(path)
    if uniform is None:
        return _read_with_ase(path)
    trajectory, cut = uniform
    return replace(trajectory, notes=(_CUT.format(path.name),)) if cut else trajectory


def _read_with_ase(path: Path) -> Trajectory:
    uniform = read_uniform_traj(path) if path.suffix.lower() == ".traj" else None
    if uniform is not None:
        return uniform
    notes: list[str] = []
    frames = _xyz_frames(path, notes) if path.suffix.lower() in XYZ_SUFFIXES else ase.io.iread(path, index=":")
    trajectory = _from_frames(_explained(frames, path), path)
    return replace(trajectory, notes=tuple(notes))


def _explained(frames: Iterator[Atoms], path: Path) -> Iterator[Atoms]:
    """The same frames; what keeps them from being read is said in a sentence."""
    try:
        yield from frames
    except InputError:
        raise
    except Exception as error:  # each of ASE's readers fails in its own way
        detail = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{path} cannot be read as a trajectory ({detail}); it may be truncated or of another kind. Give "
            "a run folder, an ASE .traj or extxyz file, or DCD, XTC or HDF5 with a topology"
        ) from error


def _xyz_frames(path: Path, notes: list[str]) -> Iterator[Atoms]:
    """The frames whose every line ends with a newline; what comes after them is noted."""
    n_frames, left = 0, ""
    with open(path, encoding="utf8") as file:
        while (count := file.readline()).strip():
            lines = [count]
            if count.strip().isdigit():  # otherwise no xyz frame: for ASE to complain about
                lines += islice(file, 1 + int(count))
                if len(lines) < 2 + int(count) or not lines[-1].endswith("\n"):
                    left = count
                    break
            yield from ase.io.iread(io.StringIO("".join(lines)), index=":", format="extxyz")
            n_frames += 1
        left = left or file.read()
    if n_frames == 0:
        raise InputError(f"{path} has no whole frame; every line of a frame, the last too, must end in a newline")
    if left.strip():
        notes.append(_CUT.format(path.name))


def _from_frames(frames: Iterator[Atoms], path: Path) -> Trajectory:
    """What all of the frames have, read one by one."""
    first = next(frames, None)
    if first is None:
        raise InputError(f"{path} has no frames; give a trajectory with at least one")
    if len(first) == 0:
        raise InputError(f"{path} has frames without atoms; give a trajectory with at least one atom")
    positions, cell, momenta = Rows(len(first), 3), Rows(3, 3), Rows(len(first), 3)
    times, potential, kinetic = Rows(), Rows(), Rows()
    for index, atoms in enumerate(chain([first], frames)):
        if len(atoms) != len(first) or not np.array_equal(atoms.numbers, first.numbers):
            raise InputError(
                f"{path} must have the same atoms in the same order in every frame, but frame {index} is "
                f"{atoms.get_chemical_formula()} and frame 0 is {first.get_chemical_formula()}; check each "
                "system alone"
            )
        positions.extend(atoms.positions[None])
        cell.extend(atoms.cell.array[None])
        try:
            if atoms.has("momenta"):
                momenta.extend(atoms.get_momenta()[None])
                kinetic.extend(np.array([atoms.get_kinetic_energy()]))
            if (time := atoms.info.get("time_fs")) is not None:
                times.extend(np.array([time], dtype=np.float64))
            if atoms.calc is not None and "energy" in atoms.calc.results:
                potential.extend(np.array([atoms.calc.results["energy"]], dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{path}: momenta must be three numbers for each atom, `time_fs` and `energy` one, but are something "
                f"else in frame {index} ({error}); correct the file"
            ) from error

    def complete(rows: Rows) -> np.ndarray | None:
        return rows.array() if rows.length == positions.length else None

    energies, times_fs, energy = None, complete(times), complete(potential)
    if energy is not None:
        energies = Energies(times_fs=times_fs, potential=energy, kinetic=complete(kinetic))
    return Trajectory(
        source=str(path),
        numbers=first.numbers.astype(np.int64),
        masses=first.get_masses(),
        positions=positions.array(),
        cell=cell.array(),
        pbc=first.pbc.copy(),
        times_fs=times_fs,
        momenta=complete(momenta),
        energies=energies,
    )


def _with_frame_interval(trajectory: Trajectory, frame_interval_fs: float, own_energies: bool) -> Trajectory:
    """The same frames, and the energies unless they have times of their own, at 0, 1, 2, ... times the interval."""
    times = np.arange(len(trajectory)) * frame_interval_fs
    energies = trajectory.energies
    if energies is not None and not own_energies:
        energies = replace(energies, times_fs=times)
    return replace(trajectory, times_fs=times, energies=energies)


def _require_sound(trajectory: Trajectory) -> None:
    """Raises InputError at the first frame or row that cannot be right."""
    if n_periodic := int(trajectory.pbc.sum()):
        same = np.all(trajectory.cell == trajectory.cell[:1])
        cells = trajectory.cell[:1] if same else trajectory.cell
        flat = np.flatnonzero(np.linalg.matrix_rank(cells[:, trajectory.pbc]) < n_periodic)
        if len(flat):
            raise InputError(
                f"{trajectory.source}: the cell must have a vector in each periodic direction, but frame {flat[0]} "
                f"(from 0) is periodic in {n_periodic} with the cell {cells[flat[0]].tolist()}; give the cell, or "
                "set pbc to F"
            )
    rows: dict[str, np.ndarray | None] = {
        "positions": trajectory.positions,
        "momenta": trajectory.momenta,
        "cell vectors": trajectory.cell,
        "time": trajectory.times_fs,
    }
    if trajectory.energies is not None:
        rows["time of the energies"] = trajectory.energies.times_fs
        rows["potential energy"] = trajectory.energies.potential
        rows["kinetic energy"] = trajectory.energies.kinetic
    for name, values in rows.items():
        if values is None:
            continue
        bad = _first_not_finite(values)
        if bad is not None:
            raise InputError(
                f"{trajectory.source}: {name} must be finite, but row {bad} (from 0) has NaN or infinity: "
                "the simulation blew up there. Check only what comes before it"
            )
        if name.startswith("time") and np.any(np.diff(values) <= 0):
            bad = int(np.argmax(np.diff(values) <= 0)) + 1
            raise InputError(
                f"{trajectory.source}: {name} must increase, but row {bad} (from 0) is at {values[bad]:g} fs "
                f"after {values[bad - 1]:g} fs; are several runs in one file? Check each alone"
            )


def _first_not_finite(values: np.ndarray) -> int | None:
    """The first row with NaN or infinity."""
    for part in chunks(len(values), values[:1].size):
        finite = np.isfinite(values[part].reshape(part.stop - part.start, -1)).all(axis=1)
        if not finite.all():
            return part.start + int(np.argmin(finite))
    return None
