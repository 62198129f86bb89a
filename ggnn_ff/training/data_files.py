"""The files that the data section of a configuration names: their frames, divided, and their hashes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ggnn_ff.data.frames import UNKNOWN_LEVEL, LabelledFrames
from ggnn_ff.data.readers import read_frames
from ggnn_ff.data.reference_energies import (
    check_reference_energies,
    least_squares_reference_energies,
    reference_energies_from_atoms,
)
from ggnn_ff.data.splits import Split, random_split, read_index_file, split_by_index
from ggnn_ff.errors import InputError
from ggnn_ff.training.config import DataConfig


def hash_files(config: DataConfig) -> dict[str, str]:
    """SHA-256 of each file by its key, such as `data.train`.

    Raises:
        InputError: a file that cannot be read.
    """
    hashes = {}
    for key, path in config:
        if not isinstance(path, Path):
            continue
        try:
            with open(path, "rb") as file:
                hashes[f"data.{key}"] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"`data.{key}` must be a file that can be read, got {path}: {error.strerror}") from error
    return hashes


def load_split(config: DataConfig) -> Split:
    """Reads the files and divides their frames; no frame is in two sets.

    Raises:
        InputError: what cannot be read, by its key, does not say which frames train and which validate, or has
            elements that do not train; files of different levels of theory.
    """
    split = _divided(config)
    sets = [frames for frames in (split.train, split.valid, split.test) if len(frames)]
    levels = {frames.level_of_theory for frames in sets} - {UNKNOWN_LEVEL}
    if len(levels) > 1:
        raise InputError(
            f"`data`: all files must be of one level of theory, got {' and '.join(sorted(levels))}; errors would be "
            "differences of methods. Where they are the same by two names, state `data.level_of_theory`"
        )
    for name, frames in (("validation", split.valid), ("test", split.test)):
        if strange := [symbol for symbol in frames.elements if symbol not in split.train.elements]:
            raise InputError(
                f"`data`: the {name} frames must have elements of the training frames only "
                f"({', '.join(split.train.elements)}), got {', '.join(strange)} in {frames.source}; add such frames to "
                "the training set, or take these out"
            )
    return split


def _divided(config: DataConfig) -> Split:
    frames = _read(config, "train", config.train)
    if config.train_indices is not None:
        return _by_index(config, frames)
    for name in ("valid_indices", "test_indices"):
        if getattr(config, name) is not None:
            raise InputError(f"`data.{name}` needs `data.train_indices` beside it, which says what trains; give it too")
    valid = _read(config, "valid", config.valid) if config.valid is not None else None
    test = _read(config, "test", config.test) if config.test is not None else None
    n_valid = _count("valid", valid, config.n_valid)
    n_test = _count("test", test, config.n_test)
    if valid is None and n_valid == 0:
        raise InputError(
            "`data` must say which frames validate: a file `valid`, a number `n_valid`, or `valid_indices`"
        )
    n_train = config.n_train if config.n_train is not None else len(frames) - n_valid - n_test
    if config.n_train is None and n_train < 1:
        raise InputError(
            f"`data.n_valid` and `data.n_test` must leave frames that train, got {n_valid} and {n_test} of "
            f"{len(frames)} frames; lower them"
        )
    drawn = [frames.select(rows) for rows in random_split(len(frames), n_train, n_valid, n_test, config.seed)]
    return Split(drawn[0], valid if valid is not None else drawn[1], test if test is not None else drawn[2])


def load_reference_energies(config: DataConfig, frames: LabelledFrames) -> dict[int, float]:
    """Atomic number -> energy (eV), of the isolated atoms if there is a file of them, else by least squares.

    Raises:
        InputError: a file that cannot be used, or lacks an element of `frames`.
    """
    if config.isolated_atoms is None:
        return least_squares_reference_energies(frames)
    with _named("isolated_atoms"):
        energies = reference_energies_from_atoms(config.isolated_atoms, energy_unit=config.energy_unit or "eV")
        check_reference_energies(energies, frames)
    return energies


def _count(name: str, given: LabelledFrames | None, number: int | None) -> int:
    if given is not None and number is not None:
        raise InputError(f"`data.{name}` is a file, so `data.n_{name}` must not be given as well; remove one of them")
    return number or 0


def _by_index(config: DataConfig, frames: LabelledFrames) -> Split:
    if config.valid_indices is None:
        raise InputError("`data.train_indices` needs `data.valid_indices` beside it; give a file of what validates")
    others = ["valid", "n_train", "n_valid", "n_test"] + (["test"] if config.test_indices is not None else [])
    if given := [f"`data.{name}`" for name in others if getattr(config, name) is not None]:
        raise InputError(f"index files say which frames are taken, so {', '.join(given)} must not be given as well")
    train, valid, test = (
        _read_indices(name, path)
        for name, path in (
            ("train_indices", config.train_indices),
            ("valid_indices", config.valid_indices),
            ("test_indices", config.test_indices),
        )
    )
    split = split_by_index(frames, train, valid, test)
    return Split(split.train, split.valid, _read(config, "test", config.test)) if config.test is not None else split


def _read_indices(name: str, path: Path | None) -> np.ndarray:
    if path is None:
        return np.empty(0, dtype=np.int64)
    with _named(name):
        return read_index_file(path)


def _read(config: DataConfig, name: str, path: Path) -> LabelledFrames:
    with _named(name):
        return read_frames(
            path,
            energy_unit=config.energy_unit,
            length_unit=config.length_unit,
            level_of_theory=config.level_of_theory,
        )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Calls the arguments of a reader by their keys in the configuration, where it complains."""
    try:
        yield
    except InputError as error:
        message = str(error).replace("`path`", f"`data.{name}`").replace("`reference_energies`", f"`data.{name}`")
        for unit in ("energy_unit", "length_unit"):
            message = message.replace(f"`{unit}`", f"`data.{unit}`")
        raise InputError(message) from error
