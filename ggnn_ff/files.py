"""Writing files so that neither a kill, nor a full disk, nor a second process leaves half a file."""

import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from ggnn_ff.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file beside `path`, then renames it to `path` in one step.

    Args:
        path: final name; its folder is created.
        write: called with the temporary path, which has the same suffix as `path`.

    Raises:
        OSError: naming `path`, with what is there left as it was, when the disk is full or not writable.
    """
    write_together({path: write})


def holding(data: str | bytes) -> Callable[[Path], None]:
    """What fills a file with `data`, text as UTF-8.

    By Python: on a full disk safetensors raises an error of its own, and TorchScript aborts the process.
    """
    encoded = data.encode() if isinstance(data, str) else data

    def write(path: Path) -> None:
        path.write_bytes(encoded)

    return write


def write_together(writers: dict[Path, Callable[[Path], None]]) -> None:
    """As `write_atomically`, for files that belong together: no file is renamed before all are complete."""
    staged: dict[Path, Path] = {}  # final name -> temporary file
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.parent / f".{path.stem}-{secrets.token_hex(8)}{path.suffix}"
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less what the umask takes
            staged[path] = temporary
            write(staged[path])
            with open(staged[path], "rb+") as file:
                os.fsync(file.fileno())
        for path, temporary in staged.items():
            temporary.replace(path)
    except OSError as error:
        message = f"could not write {path}: {error.strerror or error}; what was there before is unchanged"
        raise OSError(error.errno, message) from error
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def lock(path: Path) -> int:
    """Keeps a file or folder for this process until `unlock`, or until the process ends.

    Raises:
        InputError: another process has it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(
            f"`output`: another process writes to {path}; wait until it ends, or choose another"
        ) from error
    return descriptor


def unlock(descriptor: int) -> None:
    """Lets go of what `lock` returned."""
    os.close(descriptor)
