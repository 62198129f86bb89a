"""The frames that the data section of a configuration asks for."""

from pathlib import Path

import numpy as np

from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.data.readers import read_frames
from ggnn_ff.data.splits import Split, random_split, read_index_file, split_by_index
from ggnn_ff.errors import InputError
from ggnn_ff.training.config import DataConfig


def load_split(config: DataConfig) -> Split:
    """Reads the files and divides them; no frame is in two sets.

    Raises:
        InputError: what cannot be read, or does not say which frames train and which validate.
    """
    frames = _read(config, config.train)
    if config.train_indices is not None:
        return _by_index(config, frames)
    valid = _read(config, config.valid) if config.valid is not None else None
    test = _read(config, config.test) if config.test is not None else None
    n_valid = _count("valid", valid, config.n_valid)
    n_test = _count("test", test, config.n_test)
    if valid is None and n_valid == 0:
        raise InputError(
            "`data` must say which frames validate: a file `valid`, a number `n_valid`, or `valid_indices`"
        )
    n_train = config.n_train if config.n_train is not None else len(frames) - n_valid - n_test
    drawn = [frames.select(rows) for rows in random_split(len(frames), n_train, n_valid, n_test, config.seed)]
    return Split(drawn[0], valid if valid is not None else drawn[1], test if test is not None else drawn[2])


def _count(name: str, given: LabelledFrames | None, number: int | None) -> int:
    if given is not None and number is not None:
        raise InputError(f"`data.{name}` is a file, so `data.n_{name}` must not be given as well; remove one of them")
    return number or 0


def _by_index(config: DataConfig, frames: LabelledFrames) -> Split:
    if config.valid_indices is None or config.valid is not None or config.n_train is not None:
        raise InputError(
            "`data.train_indices` needs `data.valid_indices`, and neither `data.valid` nor `data.n_train` beside it"
        )
    test = read_index_file(config.test_indices) if config.test_indices is not None else np.empty(0, dtype=np.int64)
    assert config.train_indices is not None
    split = split_by_index(frames, read_index_file(config.train_indices), read_index_file(config.valid_indices), test)
    return Split(split.train, split.valid, _read(config, config.test)) if config.test is not None else split


def _read(config: DataConfig, path: Path) -> LabelledFrames:
    return read_frames(
        path,
        energy_unit=config.energy_unit,
        length_unit=config.length_unit,
        level_of_theory=config.level_of_theory,
    )
