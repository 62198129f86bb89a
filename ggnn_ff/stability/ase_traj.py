"""Fast reading of ASE's .traj files of one system: the arrays themselves, without an Atoms of each frame."""

import json
from pathlib import Path
from typing import IO, Any

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
        records = [_record(data, int(offset) - start) for offset in offsets[part]]
        if any("numbers." in record for record in records[1 if part.start == 0 else 0 :]):
            return None  # only the first frame names the atoms, if they stay the same
        positions.extend(_arrays(data, start, records, "positions.", n_atoms))
        cell.extend(np.array([record["cell"] for record in records], dtype=np.float64))
        moving = _arrays(data, start, records, "momenta.", n_atoms)
        momenta.extend(moving)
        kinetic.extend(0.5 * np.einsum("tnk,tnk,n->t", moving, moving, 1.0 / masses))
        times.extend(_numbers(records, "info", "time_fs"))
        potential.extend(_numbers(records, "calculator.", "energy"))

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
    record = json.loads(data[start + _BYTES : end])
    if "_little_endian" in record:
        raise ValueError("a file of another byte order")
    return record


def _arrays(data: bytes, start: int, records: list[dict[str, Any]], name: str, n_atoms: int) -> np.ndarray:
    """(K, N, 3) of the K records that have such an array; `start` is where the data begin in the file."""
    found = [record[name]["ndarray"] for record in records if name in record]
    if any(shape != [n_atoms, 3] or dtype != "float64" for shape, dtype, _ in found):
        raise ValueError("arrays of another shape or type")
    places = np.array([place for _, _, place in found], dtype=np.int64) - start
    if np.any(places < 0) or np.any(places % _BYTES):
        raise ValueError("arrays at other places")
    values = np.frombuffer(data, np.float64, len(data) // _BYTES)
    return values[places[:, None] // _BYTES + np.arange(3 * n_atoms)].reshape(-1, n_atoms, 3)


def _numbers(records: list[dict[str, Any]], group: str, key: str) -> np.ndarray:
    """(K,) of the K records that have such a number."""
    return np.array([record[group][key] for record in records if key in record.get(group, {})], dtype=np.float64)
