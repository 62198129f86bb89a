"""Dividing frames into training, validation and test sets, with no frame in two of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.errors import InputError

_SAME_POSITION = 1e-6  # angstrom


@dataclass(frozen=True)
class Split:
    """Three sets of frames of which no two share a frame.

    Attributes:
        train: fitted to.
        valid: for early stopping and learning-rate reduction; may have no frames.
        test: for the reported errors; may have no frames.

    Raises:
        InputError: a frame occurs in two sets.
    """

    train: LabelledFrames
    valid: LabelledFrames
    test: LabelledFrames

    def __post_init__(self) -> None:
        check_no_duplicates(self.train, self.test, names=("train", "test"))
        check_no_duplicates(self.train, self.valid, names=("train", "valid"))
        check_no_duplicates(self.valid, self.test, names=("valid", "test"))


def random_split(
    n_frames: int, n_train: int, n_valid: int, n_test: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of disjoint random sets of frames; the same for the same arguments on any machine.

    Args:
        n_frames: how many there are.
        n_train: at least 1.
        n_valid: at least 0.
        n_test: at least 0.
        seed: not negative.

    Returns:
        train (n_train,), valid (n_valid,) and test (n_test,), int64, in random order.

    Raises:
        InputError: more frames are asked for than there are, or a number is out of range.
    """
    for name, value, least in (("n_train", n_train, 1), ("n_valid", n_valid, 0), ("n_test", n_test, 0)):
        if value < least:
            raise InputError(f"`{name}` must be at least {least}, got {value}")
    if seed < 0:
        raise InputError(f"`seed` must not be negative, got {seed}")
    asked = n_train + n_valid + n_test
    if asked > n_frames:
        raise InputError(
            f"`n_train` + `n_valid` + `n_test` must be at most the {n_frames} frames there are, got "
            f"{n_train} + {n_valid} + {n_test} = {asked}; ask for fewer"
        )
    # Raw output of a bit generator never changes between numpy versions; `permutation` may.
    order = np.argsort(np.random.PCG64(seed).random_raw(n_frames), kind="stable").astype(np.int64)
    return order[:n_train], order[n_train : n_train + n_valid], order[n_train + n_valid : asked]


def split_by_index(frames: LabelledFrames, train: np.ndarray, valid: np.ndarray, test: np.ndarray) -> Split:
    """One file's frames into the sets that index arrays name (int64, counted from 0).

    Raises:
        InputError: an index is out of range or in two sets, or two sets share a frame.
    """
    indices = {"train": train, "valid": valid, "test": test}
    for name, chosen in indices.items():
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(frames):
            raise InputError(
                f"`{name}` must have indices from 0 to {len(frames) - 1}, one for each frame of "
                f"{frames.source}, got {chosen.min()} to {chosen.max()}; the index file belongs to another "
                "data set"
            )
    for first, second in (("train", "test"), ("train", "valid"), ("valid", "test")):
        common = np.intersect1d(indices[first], indices[second])
        if len(common):
            raise InputError(
                f"`{first}` and `{second}` must have no index in common, got {common[:5].tolist()} in both "
                f"({len(common)} in all); use index files of the same split"
            )
    return Split(frames.select(train), frames.select(valid), frames.select(test))


def read_index_file(path: str | Path) -> np.ndarray:
    """Frame indices from a text file with one per line, as in rMD17's `index_train_01.csv`.

    Returns:
        (n,) int64, counted from 0, in the order of the file.

    Raises:
        InputError: the file is missing or empty, or a line is not an index, or one occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"`path` must be an index file that exists, got {path}")
    indices = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        entry = line.strip().rstrip(",")
        if not entry:
            continue
        if not (entry.isascii() and entry.isdigit()):
            raise InputError(
                f"`path`: every line of {path} must be one frame index, counted from 0, got '{entry[:40]}' "
                f"in line {number}"
            )
        indices.append(int(entry))
    if not indices:
        raise InputError(f"`path`: {path} has no indices; one per line is needed")
    values, counts = np.unique(indices, return_counts=True)
    if counts.max() > 1:
        raise InputError(f"`path`: {path} must name each frame once, got {values[counts.argmax()]} more than once")
    return np.array(indices, dtype=np.int64)


def find_duplicates(first: LabelledFrames, second: LabelledFrames) -> list[tuple[int, int]]:
    """Pairs of equal frames: the same atoms in the same order, positions and cell equal to 1e-6 angstrom.

    Frames that differ by a rotation, translation or permutation are not found. Every frame is projected on
    one random direction; only frames whose projections are close are compared, so that the cost is that of
    sorting.

    Returns:
        (index in `first`, index in `second`), sorted by the second.
    """
    groups_first, groups_second = _by_composition(first), _by_composition(second)
    pairs = []
    for numbers in groups_first.keys() & groups_second.keys():
        rows_first, rows_second = groups_first[numbers], groups_second[numbers]
        vectors_first, vectors_second = _vectors(first, rows_first), _vectors(second, rows_second)
        direction = np.random.default_rng(0).uniform(0.5, 1.0, (vectors_first.shape[1],))
        projection = vectors_first @ direction
        order = np.argsort(projection)
        window = 1.001 * _SAME_POSITION * np.sum(direction)
        target = vectors_second @ direction
        start = np.searchsorted(projection[order], target - window, side="left")
        stop = np.searchsorted(projection[order], target + window, side="right")
        for index in np.flatnonzero(stop > start):
            near = order[start[index] : stop[index]]
            difference = np.abs(vectors_first[near] - vectors_second[index]).max(axis=1)
            pairs += [(int(rows_first[i]), int(rows_second[index])) for i in near[difference <= _SAME_POSITION]]
    return sorted(pairs, key=lambda pair: (pair[1], pair[0]))


def check_no_duplicates(
    first: LabelledFrames, second: LabelledFrames, names: tuple[str, str] = ("train", "test")
) -> None:
    """Raises if a frame occurs in both sets: the errors measured on one would flatter a fit to the other.

    Raises:
        InputError: naming the first such pairs; `names` are what the message calls the sets.
    """
    pairs = find_duplicates(first, second)
    if pairs:
        shown = ", ".join(f"{one} = {two}" for one, two in pairs[:3])
        raise InputError(
            f"`{names[0]}` and `{names[1]}` must not share frames, got {len(pairs)} equal pairs (frame of "
            f"{names[0]} = frame of {names[1]}, counted from 0 within each set: "
            f"{shown}{', ...' if len(pairs) > 3 else ''}); remove them from one"
        )


def _by_composition(frames: LabelledFrames) -> dict[bytes, np.ndarray]:
    """Indices of the frames that have the same atoms in the same order."""
    groups: dict[bytes, list[int]] = {}
    for index in range(len(frames)):
        groups.setdefault(frames.numbers[frames.rows(index)].tobytes(), []).append(index)
    return {numbers: np.array(indices) for numbers, indices in groups.items()}


def _vectors(frames: LabelledFrames, indices: np.ndarray) -> np.ndarray:
    """(n, 3 A + 9) positions and cell of frames of the same size."""
    atoms = frames.offsets[indices][:, None] + np.arange(frames.n_atoms[indices[0]])
    positions = frames.positions[atoms].reshape(len(indices), -1)
    return np.concatenate([positions, frames.cell[indices].reshape(len(indices), 9)], axis=1)
