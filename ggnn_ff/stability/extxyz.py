"""Fast reading of extxyz files of one layout, as `ggnn-ff md` writes them; others are left to ASE."""

import io
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO

import ase.io
import numpy as np
from ase import Atoms

from ggnn_ff.stability.blocks import Rows
from ggnn_ff.stability.frames import Energies, Trajectory

_BLOCK_BYTES = 16_000_000  # read at once
_NUMBER = rb"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_ENTRY = re.compile(rb'(Lattice)="([^"]*)"|\w+="[^"]*"|(\w+)=(' + _NUMBER + rb")(?!\S)")
_COLUMNS = re.compile(rb"(?:^|\s)Properties=species:S:1((?::(?:pos|momenta|forces):R:3)+)(?!\S)")


@dataclass(frozen=True)
class _Layout:
    """What all frames share.

    Attributes:
        first: the first frame, as ASE reads it.
        count: the line with the number of atoms.
        comments: matches the comment lines of any number of frames; its groups are the values of `keys`.
        keys: of "Lattice", "time_fs" and "energy", those in the comment line, in its order.
        names: of the columns behind the symbol, three each.
        symbols: (N,) as they are written.
    """

    first: Atoms
    count: bytes
    comments: re.Pattern[bytes]
    keys: list[str]
    names: list[str]
    symbols: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        """Of a line with an atom."""
        return np.dtype([("species", "S8"), *((name, np.float64, (3,)) for name in self.names)])


def read_uniform(path: Path) -> tuple[Trajectory, bool] | None:
    """Reads an extxyz file by blocks, if all frames have the atoms, columns and keys of the first one.

    The values are those that ASE reads. The end of the file may be half-written.

    Returns:
        The trajectory, and whether anything came after its whole frames. None if the file has another layout, or none:
        ASE reads those, or says what is wrong with them.
    """
    try:
        with open(path, "rb") as file:
            layout = _layout(file)
            return None if layout is None else _read(path, file, layout)
    except ValueError:  # a number that is none, or a line with too few
        return None


def _layout(file: IO[bytes]) -> _Layout | None:
    """The layout of the first frame, or None if it is not known or not whole."""
    count = file.readline()
    if not count.strip().isdigit():
        return None
    lines = [count, *islice(file, 1 + int(count))]
    if len(lines) != 2 + int(count) or not lines[-1].endswith(b"\n"):
        return None
    columns = _COLUMNS.search(lines[1])
    names = [] if columns is None else columns[1].decode().split(":")[1::3]
    if "pos" not in names or len(set(names)) < len(names):
        return None
    try:
        (first,) = ase.io.iread(io.StringIO(b"".join(lines).decode()), index=":", format="extxyz")
    except (KeyError, OSError, ValueError):
        return None
    comments, keys = _pattern(lines[1])
    symbols = np.array([line.split()[0] for line in lines[2:]])
    return _Layout(first, count, comments, keys, names, symbols)


def _pattern(comment: bytes) -> tuple[re.Pattern[bytes], list[str]]:
    """What matches this line with other numbers in it, and which numbers are its groups."""
    pattern, keys, end = b"", [], 0
    for entry in _ENTRY.finditer(comment):
        key, start = (entry[1], entry.start(2)) if entry[1] else (entry[3], entry.start(4))
        if key is None:
            continue  # text, which is the same in all frames
        value = b'[^"\\n]*' if key == b"Lattice" else _NUMBER
        wanted = key in (b"Lattice", b"time_fs", b"energy")
        pattern += re.escape(comment[end:start]) + (b"(" + value + b")" if wanted else value)
        keys += [key.decode()] if wanted else []
        end = entry.end() - (key == b"Lattice")
    return re.compile(b"^" + pattern + re.escape(comment[end:].rstrip()) + rb"[ \r]*$", re.MULTILINE), keys


def _read(path: Path, file: IO[bytes], layout: _Layout) -> tuple[Trajectory, bool] | None:
    first, n_atoms = layout.first, len(layout.first)
    columns = {name: Rows(n_atoms, 3) for name in layout.names if name != "forces"}
    values = {key: Rows(*((3, 3) if key == "Lattice" else ())) for key in layout.keys}
    kinetic, masses = Rows(), first.get_masses()
    file.seek(0)
    left: list[bytes] = []
    while more := file.readlines(_BLOCK_BYTES):
        lines, left = _whole_frames(left + more, n_atoms + 2)
        comments = lines[1 :: n_atoms + 2]
        if set(lines[:: n_atoms + 2]) - {layout.count}:
            return None
        found = layout.comments.findall(b"".join(comments))
        del lines[:: n_atoms + 2], lines[:: n_atoms + 1]
        if len(found) != len(comments):
            return None
        if not lines:
            continue
        atoms = np.loadtxt(lines, dtype=layout.dtype, comments=None, ndmin=1).reshape(-1, n_atoms)
        if np.any(atoms["species"] != layout.symbols):
            return None
        for name, rows in columns.items():
            rows.extend(atoms[name])
        for number, (key, rows) in enumerate(values.items()):
            texts = [one if len(values) == 1 else one[number] for one in found]
            rows.extend(np.array([_cell(text) for text in texts] if key == "Lattice" else texts, dtype=np.float64))
        if "momenta" in columns:
            kinetic.extend(0.5 * np.einsum("tnk,tnk,n->t", atoms["momenta"], atoms["momenta"], 1.0 / masses))
    positions = columns["pos"].array()
    times = values["time_fs"].array() if "time_fs" in values else None
    energies = None
    if "energy" in values:
        energies = Energies(times, values["energy"].array(), kinetic.array() if "momenta" in columns else None)
    return Trajectory(
        source=str(path),
        numbers=first.numbers.astype(np.int64),
        masses=masses,
        positions=positions,
        cell=values["Lattice"].array() if "Lattice" in values else np.zeros((len(positions), 3, 3)),
        pbc=first.pbc.copy(),
        times_fs=times,
        momenta=columns["momenta"].array() if "momenta" in columns else None,
        energies=energies,
    ), bool(b"".join(left).strip())


def _whole_frames(lines: list[bytes], n_lines: int) -> tuple[list[bytes], list[bytes]]:
    """The lines of whole frames, and those behind them."""
    whole = len(lines) - (not lines[-1].endswith(b"\n"))
    whole -= whole % n_lines
    return lines[:whole], lines[whole:]


@lru_cache(maxsize=4)
def _cell(text: bytes) -> np.ndarray:
    """Rows are cell vectors."""
    return np.array(text.split(), dtype=np.float64).reshape(3, 3)
