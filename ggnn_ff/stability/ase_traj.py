"""Fast reading of ASE's .traj files of one system: the arrays themselves, without an Atoms of each frame."""

import json
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.io import ulm
from ase.io.trajectory import Trajectory as AseTrajectory

from ggnn_ff.stability.blocks import Rows, chunks
from ggnn_ff.stability.frames import Energies, Trajectory

_BYTES = 8  # of a number, and of the length before a record


def read_uniform_traj(path: Path) -> Trajectory | None:
    """Reads a .traj file by blocks, if all frames have the atoms of the first one.

    A frame of ASE's ulm format is its arrays and then a record in JSON that says where they are. The values are those
    that ASE reads.

    Returns:
        The trajectory. None if the file has another layout: ASE reads those, or says what is wrong with them.
    """
    try:
        with AseTrajectory(path) as frames, open(path, "rb") as file:
            return _read(path, file, frames[0])
    except Exception:  # whatever is wrong, ASE meets it too
        return None


def _read(path: Path, file: IO[bytes], first: Atoms) -> Trajectory | None:
    offsets = ulm.read_header(file)[-1]  # of the records
    n_atoms, masses = len(first), first.get_masses()
    positions, cell, momenta = Rows(n_atoms, 3), Rows(3, 3), Rows(n_atoms, 3)
    times, potential, kinetic = Rows(), Rows(), Rows()
    for part in chunks(len(offsets), 3 * n_atoms):
        start = int(offsets[part.start - 1]) // _BYTES * _BYTES if part.start else 0
        file.seek(start)
        data = file.read(int(offsets[part.stop]) - start if part.stop < len(offsets) else -1)
        found = _Found([], [], [], [], [])  # numbers only: dictionaries that are kept cost time to look through
        for index, offset in enumerate(offsets[part], start=part.start):
            record = _record(data, int(offset) - start)
            if index > 0 and "numbers." in record:
                return None  # other atoms than in the first frame
            found.add(record, n_atoms)
        positions.extend(_arrays(data, start, found.positions, n_atoms))
        cell.extend(np.array(found.cell, dtype=np.float64).reshape(-1, 3, 3))
        moving = _arrays(data, start, found.momenta, n_atoms)
        momenta.extend(moving)
        kinetic.extend(0.5 * np.einsum("tnk,tnk,n->t", moving, moving, 1.0 / masses))
        times.extend(np.array(found.times, dtype=np.float64))
        potential.extend(np.array(found.energies, dtype=np.float64))

    def complete(rows: Rows) -> np.ndarray | None:
        return rows.array() if rows.length == len(offsets) else None

    times_fs, energy = complete(times), complete(potential)
    return Trajectory(
        source=str(path),
        numbers=first.numbers.astype(np.int64),
        masses=masses,
        positions=positions.array(),
        cell=cell.array(),
        pbc=first.pbc.copy(),
        times_fs=times_fs,
        momenta=complete(momenta),
        energies=None if energy is None else Energies(times_fs, energy, complete(kinetic)),
    )


def _record(data: bytes, start: int) -> dict[str, Any]:
    """What is said of a frame: numbers, and where its arrays are."""
    end = start + _BYTES + int.from_bytes(data[start : start + _BYTES], "little")
    record = json.loads(data[start + _BYTES : end].decode())
    if "_little_endian" in record:
        raise ValueError("a file of another byte order")
    return record


class _Found(NamedTuple):
    """What the records of some frames say; of momenta, times and energies only those that there are."""

    positions: list[int]  # places in the file
    momenta: list[int]
    cell: list[float]
    times: list[float]
    energies: list[float]

    def add(self, record: dict[str, Any], n_atoms: int) -> None:
        self.positions.append(_place(record["positions."], n_atoms))
        if "momenta." in record:
            self.momenta.append(_place(record["momenta."], n_atoms))
        for vector in record["cell"]:
            self.cell.extend(vector)
        if "time_fs" in record.get("info", {}):
            self.times.append(record["info"]["time_fs"])
        if "energy" in record.get("calculator.", {}):
            self.energies.append(record["calculator."]["energy"])


def _place(entry: dict[str, Any], n_atoms: int) -> int:
    """Where the array (N, 3) of a frame begins in the file."""
    shape, dtype, place = entry["ndarray"]
    if shape != [n_atoms, 3] or dtype != "float64":
        raise ValueError("an array of another shape or type")
    return place


def _arrays(data: bytes, start: int, places: list[int], n_atoms: int) -> np.ndarray:
    """(K, N, 3) at K places in a file, of which the data begin at `start`."""
    first = np.array(places, dtype=np.int64) - start
    if np.any(first < 0) or np.any(first % _BYTES):
        raise ValueError("arrays at other places")
    values = np.frombuffer(data, np.float64, len(data) // _BYTES)
    return values[first[:, None] // _BYTES + np.arange(3 * n_atoms)].reshape(-1, n_atoms, 3)
