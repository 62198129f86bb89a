"""Reading a trajectory: a run folder of ggnn-ff, whatever ASE reads, or DCD, XTC and HDF5 through mdtraj."""

import io
import json
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from ggnn_ff.dynamics.layout import COMPLETE, ENERGY_COLUMNS, STOPPED
from ggnn_ff.errors import InputError
from ggnn_ff.stability.frames import Energies, Trajectory
from ggnn_ff.stability.mdtraj_files import MDTRAJ_SUFFIXES, read_mdtraj

__all__ = ["Energies", "Trajectory", "read_trajectory"]


def read_trajectory(
    path: str | Path, topology: str | Path | None = None, *, frame_interval_fs: float | None = None
) -> Trajectory:
    """Reads a trajectory with everything that it says about energies, momenta and time.

    Args:
        path: a run folder (`run.json`, `trajectory.xyz`, `energies.csv`), any file ASE reads, or a DCD, XTC,
            TRR, NetCDF or HDF5 file through mdtraj.
        topology: file that names the atoms of a DCD, XTC, TRR or NetCDF file: PDB, or any file ASE reads.
        frame_interval_fs: time between frames, fs, for files without times; it replaces those of the file.

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
    if path.is_dir() and frame_interval_fs is not None:
        raise InputError("`frame_interval_fs` must not be given for a run folder, whose files have the times")
    if path.is_dir():
        trajectory = _read_run_folder(path)
    elif path.stat().st_size == 0:
        raise InputError(f"{path} is empty; give a trajectory with at least one frame")
    elif path.suffix.lower() in MDTRAJ_SUFFIXES:
        trajectory = read_mdtraj(path, None if topology is None else Path(topology))
    else:
        trajectory = _read_with_ase(path)
    if frame_interval_fs is not None:
        trajectory = _with_frame_interval(trajectory, frame_interval_fs)
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
    frames = _read_with_ase(folder / "trajectory.xyz")
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
    whole, _, tail = path.read_text().rpartition("\n")
    notes = (f"{path.name} ends in a half-written line, which was ignored",) if tail else ()
    lines = whole.splitlines()
    if not lines or lines[0].strip().split(",") != ENERGY_COLUMNS:
        raise InputError(f"{path} must start with the header {','.join(ENERGY_COLUMNS)}")
    if len(lines) < 2:
        raise InputError(f"{path} has no whole row of energies yet; run longer")
    try:
        rows = np.loadtxt(lines[1:], delimiter=",", ndmin=2)
    except ValueError as error:
        raise InputError(f"{path} must have {len(ENERGY_COLUMNS)} numbers in each row: {error}") from None
    if rows.shape[1] != len(ENERGY_COLUMNS):
        raise InputError(f"{path} must have {len(ENERGY_COLUMNS)} numbers in each row, got {rows.shape[1]}")
    return Energies(times_fs=rows[:, 1], potential=rows[:, 2], kinetic=rows[:, 3]), notes


def _read_with_ase(path: Path) -> Trajectory:
    notes: tuple[str, ...] = ()
    try:
        if path.suffix.lower() in (".xyz", ".extxyz"):
            text, cut = _whole_frames(path.read_text())
            if not text:
                raise InputError(
                    f"{path} has no whole frame; every line of a frame, the last too, must end in a newline"
                )
            if cut:
                notes = (f"{path.name} ends in a half-written frame, which was ignored",)
            frames = list(ase.io.iread(io.StringIO(text), index=":", format="extxyz"))
        else:
            frames = list(ase.io.iread(path, index=":"))
    except InputError:
        raise
    except Exception as error:  # each of ASE's readers fails in its own way
        detail = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{path} cannot be read as a trajectory ({detail}); it may be truncated or of another kind. Give "
            "a run folder, an ASE .traj or extxyz file, or DCD, XTC or HDF5 with a topology"
        ) from error
    if not frames:
        raise InputError(f"{path} has no frames; give a trajectory with at least one")
    return _from_frames(frames, path, notes)


def _whole_frames(text: str) -> tuple[str, bool]:
    """The xyz frames whose every line ends with a newline, and whether anything came after them."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    start = 0
    while start < len(lines):
        if not lines[start].strip():
            break
        try:
            end = start + 2 + int(lines[start])
        except ValueError:
            return text, False  # not an xyz frame: for the reader to complain about
        if end > len(lines):
            break
        start = end
    whole = "".join(lines[:start])
    return whole, bool(text[len(whole) :].strip())


def _from_frames(frames: list[Atoms], path: Path, notes: tuple[str, ...]) -> Trajectory:
    first = frames[0]
    for index, atoms in enumerate(frames):
        if len(atoms) != len(first) or not np.array_equal(atoms.numbers, first.numbers):
            raise InputError(
                f"{path} must have the same atoms in the same order in every frame, but frame {index} is "
                f"{atoms.get_chemical_formula()} and frame 0 is {first.get_chemical_formula()}; check each "
                "system alone"
            )
    if len(first) == 0:
        raise InputError(f"{path} has frames without atoms; give a trajectory with at least one atom")
    times = [atoms.info.get("time_fs") for atoms in frames]
    times_fs = None if any(time is None for time in times) else np.array(times, dtype=np.float64)
    momenta = kinetic = None
    if all(atoms.has("momenta") for atoms in frames):
        momenta = np.stack([atoms.get_momenta() for atoms in frames])
        kinetic = np.array([atoms.get_kinetic_energy() for atoms in frames])
    results = [{} if atoms.calc is None else atoms.calc.results for atoms in frames]
    energies = None
    if all("energy" in result for result in results):
        potential = np.array([result["energy"] for result in results], dtype=np.float64)
        energies = Energies(times_fs=times_fs, potential=potential, kinetic=kinetic)
    return Trajectory(
        source=str(path),
        numbers=first.numbers.astype(np.int64),
        masses=first.get_masses(),
        positions=np.stack([atoms.positions for atoms in frames]),
        cell=np.stack([atoms.cell.array for atoms in frames]),
        pbc=first.pbc.copy(),
        times_fs=times_fs,
        momenta=momenta,
        energies=energies,
        notes=notes,
    )


def _with_frame_interval(trajectory: Trajectory, frame_interval_fs: float) -> Trajectory:
    """The same frames, and the energies that were read with them, at 0, 1, 2, ... times the interval."""
    times = np.arange(len(trajectory)) * frame_interval_fs
    energies = trajectory.energies
    if energies is not None:
        energies = replace(energies, times_fs=times)
    return replace(trajectory, times_fs=times, energies=energies)


def _require_sound(trajectory: Trajectory) -> None:
    """Raises InputError at the first frame or row that cannot be right."""
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
        finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if not finite.all():
            bad = int(np.argmin(finite))
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
