"""A folder with what OpenMM's reporters write: a trajectory, a topology and the table of a `StateDataReporter`."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ggnn_ff import units
from ggnn_ff.errors import InputError
from ggnn_ff.stability.blocks import read_rows
from ggnn_ff.stability.frames import Energies, Trajectory
from ggnn_ff.stability.mdtraj_files import HDF5_SUFFIXES, MDTRAJ_SUFFIXES, TOPOLOGY_SUFFIXES, read_mdtraj

_TIME, _TEMPERATURE = "Time (ps)", "Temperature (K)"
_POTENTIAL, _KINETIC, _TOTAL = (f"{kind} Energy (kJ/mole)" for kind in ("Potential", "Kinetic", "Total"))
_FS_PER_PS = 1000.0
_LONGEST_HEADER = 1000  # characters
_SAME = 1e-6  # share by which a ratio of printed numbers may change that is constant


def read_openmm_folder(folder: Path, topology: Path | None) -> Trajectory:
    """Reads the trajectory in a folder, with the energies that a `StateDataReporter` wrote beside it.

    Where the table has temperatures, the number of degrees of freedom is OpenMM's, N = 2 E_kin / (k T): three for each
    particle with a mass, less the constraints, less 3 with a `CMMotionRemover`.

    Args:
        folder: has one DCD, XTC, TRR, NetCDF or HDF5 file, and one table whose first line is that of a
            `StateDataReporter`; its separator and its columns are free.
        topology: file that names the atoms; by default the only one in the folder. HDF5 files need none.

    Raises:
        InputError: if the folder has none or several of one of them, or one cannot be read.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    frames = _only(folder, files, "trajectory", MDTRAJ_SUFFIXES)
    if topology is None and frames.suffix.lower() not in HDF5_SUFFIXES:
        suffixes = [suffix for suffix in TOPOLOGY_SUFFIXES if suffix not in HDF5_SUFFIXES]
        topology = _only(folder, files, "topology", suffixes)
    tables = [path for path in files if _header(path)]
    table = _only(folder, tables, "table of energies by openmm.app.StateDataReporter")
    trajectory = read_mdtraj(frames, topology)
    energies, degrees_of_freedom, notes = _read_table(table)
    return replace(
        trajectory,
        source=str(folder),
        energies=energies or trajectory.energies,
        degrees_of_freedom=degrees_of_freedom,
        notes=trajectory.notes + notes,
    )


def _only(folder: Path, files: list[Path], what: str, suffixes: Sequence[str] = ()) -> Path:
    """The only one of the files that has one of the suffixes."""
    found = [path for path in files if not suffixes or path.suffix.lower() in suffixes]
    if len(found) == 1:
        return found[0]
    kinds = f" ({', '.join(suffixes)})" if suffixes else ""
    names = ", ".join(path.name for path in found)
    choice = "give `topology`" if what == "topology" else "leave one there, or give a trajectory file"
    raise InputError(
        f"{folder} has no run.json of `ggnn-ff md` and must then have one {what}{kinds} as OpenMM writes it, but has "
        f"{names or 'none'}; {choice if found else 'add it, or give a trajectory file'}"
    )


def _header(path: Path) -> list[tuple[str, str]]:
    """The columns of a `StateDataReporter`, each with what separates it from the next; none for other files."""
    with open(path, encoding="utf8", errors="replace") as file:
        line = file.readline(_LONGEST_HEADER).strip()
    return re.findall(r'"([^"]+)"([^"]+|$)', line) if line.startswith('#"') else []


def _read_table(path: Path) -> tuple[Energies | None, int | None, tuple[str, ...]]:
    """Energies, degrees of freedom, and what to say of them."""
    header = _header(path)
    names = [name for name, _ in header]
    if sum(name in names for name in (_POTENTIAL, _KINETIC, _TOTAL)) < 2:
        note = f"{path.name} lacks energies: give potentialEnergy, kineticEnergy and time=True to the StateDataReporter"
        return None, None, (note,)
    wanted = [name for name in (_TIME, _POTENTIAL, _KINETIC, _TOTAL, _TEMPERATURE) if name in names]
    with open(path, encoding="utf8", errors="replace") as file:
        rows, notes = read_rows(file, path, header[0][1], [names.index(name) for name in wanted])
    columns = dict(zip(wanted, rows.T, strict=True))
    kinetic = columns[_KINETIC] if _KINETIC in columns else columns[_TOTAL] - columns[_POTENTIAL]
    potential = columns[_POTENTIAL] if _POTENTIAL in columns else columns[_TOTAL] - kinetic
    times, kinetic = columns.get(_TIME), kinetic * units.EV_PER_KJ_PER_MOL
    energies = Energies(None if times is None else times * _FS_PER_PS, potential * units.EV_PER_KJ_PER_MOL, kinetic)
    return energies, _degrees_of_freedom(kinetic, columns.get(_TEMPERATURE)), notes


def _degrees_of_freedom(kinetic: np.ndarray, temperatures: np.ndarray | None) -> int | None:
    """N of T = 2 E_kin / (N k), or None where there is no such number, as with a temperature of some particles only."""
    moving = kinetic > 0
    if temperatures is None or not moving.any() or not np.all(temperatures[moving] > 0):
        return None
    counts = 2.0 * kinetic[moving] / (units.KELVIN_TO_EV * temperatures[moving])
    return round(float(np.median(counts))) if np.ptp(counts) <= _SAME * np.median(counts) else None
