"""Splits are reproducible, disjoint and free of duplicates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import shared_data

from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.data.readers import read_frames
from ggnn_ff.data.splits import (
    Split,
    check_no_duplicates,
    find_duplicates,
    random_split,
    read_index_file,
    split_by_index,
)
from ggnn_ff.errors import InputError


def random_frames(n_frames: int, seed: int = 0, n_atoms: int = 3) -> LabelledFrames:
    generator = np.random.default_rng(seed)
    return LabelledFrames(
        numbers=np.tile(np.arange(1, n_atoms + 1), n_frames),
        positions=generator.normal(size=(n_frames * n_atoms, 3)),
        forces=np.zeros((n_frames * n_atoms, 3)),
        n_atoms=np.full(n_frames, n_atoms),
        energy=np.arange(n_frames, dtype=float),
        cell=np.zeros((n_frames, 3, 3)),
        pbc=np.zeros((n_frames, 3), dtype=bool),
        source="random",
    )


def test_random_split_is_disjoint_and_depends_on_the_seed_alone():
    train, valid, test = random_split(100, 50, 20, 30, seed=3)
    assert sorted(np.concatenate([train, valid, test]).tolist()) == list(range(100))
    np.testing.assert_array_equal(train, random_split(100, 50, 10, 5, seed=3)[0])
    assert set(train.tolist()) != set(random_split(100, 50, 20, 30, seed=4)[0].tolist())
    # written down once: a split must not change with the version of numpy
    assert random_split(10, 5, 2, 3, seed=0)[0].tolist() == [3, 2, 1, 8, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 8, 2, 1, 0), r"at most the 10 frames there are, got 8 \+ 2 \+ 1 = 11"),
        ((10, 0, 2, 1, 0), "`n_train` must be at least 1, got 0"),
        ((10, 1, -1, 1, 0), "`n_valid` must be at least 0, got -1"),
        ((10, 1, 1, 1, -1), "`seed` must not be negative"),
    ],
)
def test_impossible_split_is_refused(arguments: tuple[int, int, int, int, int], message: str):
    with pytest.raises(InputError, match=message):
        random_split(*arguments)


def test_index_files_choose_frames(tmp_path: Path):
    (tmp_path / "train.csv").write_text("4\n0\n7\n")
    train = read_index_file(tmp_path / "train.csv")
    assert train.tolist() == [4, 0, 7]
    frames = random_frames(10)
    split = split_by_index(frames, train, np.array([1]), np.array([2, 3]))
    assert split.train.energy.tolist() == [4.0, 0.0, 7.0]
    assert split.test.energy.tolist() == [2.0, 3.0]
    with pytest.raises(InputError, match=r"no index in common, got \[4\]"):
        split_by_index(frames, train, np.array([1]), np.array([4]))
    with pytest.raises(InputError, match="indices from 0 to 4"):
        split_by_index(random_frames(5), train, np.array([1]), np.array([2]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\nx\n", "got 'x' in line 2"),
        ("1\n-2\n", "got '-2' in line 2"),
        ("", "has no indices"),
        ("1\n2\n1\n", "must name each frame once, got 1"),
    ],
)
def test_bad_index_file_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "index.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_index_file(tmp_path / "index.csv")
    with pytest.raises(InputError, match="exists"):
        read_index_file(tmp_path / "absent.csv")


def test_duplicates_are_found_to_the_tolerance():
    train, test = random_frames(1000, seed=1), random_frames(500, seed=2)
    assert find_duplicates(train, test) == []
    for one, two, noise in ((17, 3, 0.0), (900, 4, 0.9e-6), (5, 5, 1.1e-6)):
        test.positions[test.rows(two)] = train.positions[train.rows(one)] + noise
    assert find_duplicates(train, test) == [(17, 3), (900, 4)]
    with pytest.raises(InputError, match=r"got 2 equal pairs .*17 = 3, 900 = 4"):
        check_no_duplicates(train, test)
    with pytest.raises(InputError, match="`train` and `test` must not share frames"):
        Split(train, test.select(np.empty(0, dtype=np.int64)), test)


def test_same_positions_of_other_atoms_or_cells_are_no_duplicates():
    frames = random_frames(4)
    assert find_duplicates(frames, replace(frames, numbers=frames.numbers + 1)) == []
    assert find_duplicates(frames, replace(frames, cell=frames.cell + 1.0)) == []
    assert len(find_duplicates(frames, frames)) == 4


def test_duplicates_among_frames_of_different_size():
    small, large = random_frames(3, n_atoms=2), random_frames(3, n_atoms=4)
    mixed = LabelledFrames(
        *(
            np.concatenate([getattr(small, name), getattr(large, name)])
            for name in ("numbers", "positions", "forces", "n_atoms", "energy", "cell", "pbc")
        )
    )
    assert find_duplicates(mixed, large) == [(3, 0), (4, 1), (5, 2)]


def test_customary_rmd17_split_has_no_duplicates():
    frames = read_frames(shared_data("rmd17_ethanol", "train.xyz"))
    train, valid, _ = random_split(len(frames), 950, 50, 0, seed=0)
    split = Split(frames.select(train), frames.select(valid), read_frames(shared_data("rmd17_ethanol", "test.xyz")))
    assert (len(split.train), len(split.valid), len(split.test)) == (950, 50, 1000)
