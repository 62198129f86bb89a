"""A file that grows by one record at a time and survives being cut off anywhere."""

import json
import os
from pathlib import Path
from typing import Any

from ggnn_ff.errors import InputError
from ggnn_ff.files import lock, unlock

Record = dict[str, Any]


class Journal:
    """Records on disk, one line of JSON each, after a first line with the settings that made them.

    A line counts only when it is complete; what a kill left of a line is dropped when the file is opened
    again. Floats come back bit for bit.

    Args:
        path: the file; continued if it exists.
        settings: what the records depend on.

    Attributes:
        records: those on disk, in order.

    Raises:
        InputError: the file exists and is no journal, was made with other settings, or is in use by another process.
    """

    def __init__(self, path: Path, settings: Record) -> None:
        self.path = path
        self.records: list[Record] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._lock = lock(path)
        try:
            lines = _complete_lines(path)
            if len(lines) == 1:  # settings with which nothing was made, such as a name that there is not
                lines = []
            if lines:
                check_same_settings(lines[0][0], settings, path)
                self.records = [record for record, _ in lines[1:]]
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the journal
            self._file.truncate(lines[-1][1] if lines else 0)
            if not lines:
                self._write(settings)
        except BaseException:
            unlock(self._lock)
            raise

    def append(self, record: Record) -> None:
        """Adds a record; it is safe from a kill of this process when this returns."""
        self._write(record)
        self.records.append(record)

    def close(self) -> None:
        """Makes sure that everything is on disk and lets go of the file."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        finally:
            unlock(self._lock)

    def _write(self, record: Record) -> None:
        line = json.dumps(record).encode() + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]  # less than all of it where the disk is full
        except OSError as error:
            message = f"could not write {self.path}: {error.strerror or error}; run again to go on"
            raise OSError(error.errno, message) from error


def check_same_settings(before: Record, now: Record, path: Path) -> None:
    """Raises if the settings that made a file are not those of now.

    Raises:
        InputError: naming each difference.
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        differences = ", ".join(f"`{name}` was {before.get(name)} and is now {now.get(name)}" for name in names)
        raise InputError(
            f"{path} was made with other settings: {differences}. Use the same to continue, or another "
            "output, or delete this file to start over"
        )


def _complete_lines(path: Path) -> list[tuple[Record, int]]:
    """The records of a file up to the first damaged one, and the byte after each."""
    lines: list[tuple[Record, int]] = []
    end = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            if not lines and line.endswith(b"\n"):
                raise InputError(f"{path} is not a journal of a sampling run; move it away or choose another output")
            break
        end += len(line)
        lines.append((record, end))
    return lines
