"""Long trajectories in little memory: arrays that grow into temporary files, and work in blocks of frames."""

import math
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from ggnn_ff.errors import InputError

LARGEST_IN_MEMORY = 100_000_000
"""Bytes of an array above which it lies in a temporary file, of which memory holds what has room there."""

CHUNK_VALUES = 200_000
"""Distances, or coordinates, that a check holds at once: few enough for the cache, with what is made of them."""

_BLOCK_CHARACTERS = 16_000_000  # of a text file, read at once


def chunk_length(values_per_frame: int) -> int:
    """How many frames make at most `CHUNK_VALUES` values; one if that is still too much."""
    return max(1, CHUNK_VALUES // max(1, values_per_frame))


def chunks(n_frames: int, values_per_frame: int) -> Iterator[slice]:
    """Consecutive blocks of the frames, each of `chunk_length`."""
    length = chunk_length(values_per_frame)
    for start in range(0, n_frames, length):
        yield slice(start, min(start + length, n_frames))


class Rows:
    """A float64 array that grows along its first axis.

    Beyond `LARGEST_IN_MEMORY` it is written into a temporary file (in `$TMPDIR`) that has no name, so that it is gone
    when nobody uses the array any more, also after a kill.
    """

    def __init__(self, *shape: int) -> None:
        self.shape = shape  # of one row
        self.length = 0
        self._parts: list[np.ndarray] = []
        self._file: IO[bytes] | None = None

    def extend(self, rows: np.ndarray) -> None:
        """Adds rows (K, *shape), which are not copied unless they have another type."""
        self._parts.append(np.ascontiguousarray(rows, dtype=np.float64))
        self.length += len(rows)
        if self._file is None and 8 * self.length * math.prod(self.shape) > LARGEST_IN_MEMORY:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  the array keeps what is in it
            weakref.finalize(self, self._file.close)
        if self._file is not None:
            for part in self._parts:
                self._file.write(part.data)
            self._parts.clear()

    def array(self) -> np.ndarray:
        """(length, *shape); what is changed in it is changed in memory only."""
        shape = (self.length, *self.shape)
        if self._file is None:
            return np.concatenate([np.empty((0, *self.shape)), *self._parts])
        self._file.flush()
        return np.memmap(self._file, dtype=np.float64, mode="c", shape=shape).view(np.ndarray)


def read_rows(file: IO[str], path: Path, separator: str, columns: Sequence[int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Columns of a table of numbers, without a last line that was cut while it was written.

    Args:
        file: open behind the header.
        path: of the file, for people.
        separator: of the columns.
        columns: which of them, from 0.

    Returns:
        (K, C), and a note if a line was left out.

    Raises:
        InputError: if there is no whole row, or something else than numbers.
    """
    rows, notes = Rows(len(columns)), tuple[str, ...]()
    while lines := file.readlines(_BLOCK_CHARACTERS):
        if not lines[-1].endswith("\n"):
            lines.pop()
            notes = (f"{path.name} ends in a half-written line, which was ignored",)
        try:
            found = (
                np.loadtxt(lines, delimiter=separator, usecols=columns, ndmin=2)
                if lines
                else np.empty((0, len(columns)))
            )
        except (ValueError, IndexError) as error:
            raise InputError(f"{path} must have {len(columns)} numbers in each row: {error}") from None
        rows.extend(found)
    if rows.length == 0:
        raise InputError(f"{path} has no whole row of energies yet; run longer")
    return rows.array(), notes
