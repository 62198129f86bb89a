"""Reference energies come out as they went in."""

from pathlib import Path

import numpy as np
import pytest
from conftest import shared_data

from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.data.readers import read_frames
from ggnn_ff.data.reference_energies import (
    check_reference_energies,
    least_squares_reference_energies,
    reference_energies_from_atoms,
)
from ggnn_ff.errors import InputError

ATOM = 'Properties=species:S:1:pos:R:3 energy={energy} pbc="F F F"\n{symbol} 0.0 0.0 0.0\n'


def frames_of(compositions: list[list[int]], energy: list[float]) -> LabelledFrames:
    numbers = np.concatenate(compositions).astype(np.int64)
    n_frames = len(compositions)
    return LabelledFrames(
        numbers=numbers,
        positions=np.zeros((len(numbers), 3)),
        forces=np.zeros((len(numbers), 3)),
        n_atoms=np.array([len(composition) for composition in compositions]),
        energy=np.array(energy),
        cell=np.zeros((n_frames, 3, 3)),
        pbc=np.zeros((n_frames, 3), dtype=bool),
    )


def test_isolated_atoms_are_read(tmp_path: Path):
    path = tmp_path / "atoms.xyz"
    path.write_text("1\n" + ATOM.format(energy=-1030.5, symbol="C") + "1\n" + ATOM.format(energy=-13.6, symbol="H"))
    assert reference_energies_from_atoms(path) == {1: -13.6, 6: -1030.5}


def test_isolated_atoms_of_the_reference_data_are_read():
    energies = reference_energies_from_atoms(shared_data("rmd17_ethanol", "isolated_atoms.xyz"))
    assert energies[1] == -13.568422383046626
    assert sorted(energies) == [1, 6, 7, 8]
    frames = read_frames(shared_data("rmd17_ethanol", "train.xyz"))
    check_reference_energies(energies, frames)
    binding = frames.energy - sum(energies[number] for number in frames.numbers[:9].tolist())
    assert np.all((binding > -45) & (binding < -35))  # 34 eV to real atoms, 8 more to spherical closed-shell ones


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "2\nProperties=species:S:1:pos:R:3 energy=1.0\nH 0 0 0\nH 0 0 1\n",
            "one isolated atom, got 2 atoms in frame 0",
        ),
        ("1\nProperties=species:S:1:pos:R:3\nH 0 0 0\n", "finite `energy`"),
        (
            "1\n" + ATOM.format(energy=1.0, symbol="H") + "1\n" + ATOM.format(energy=2.0, symbol="H"),
            "1.0 and 2.0 eV for H",
        ),
    ],
)
def test_unusable_isolated_atoms_are_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "atoms.xyz").write_text(text)
    with pytest.raises(InputError, match=message):
        reference_energies_from_atoms(tmp_path / "atoms.xyz")
    with pytest.raises(InputError, match="exists"):
        reference_energies_from_atoms(tmp_path / "absent.xyz")


def test_least_squares_recovers_additive_energies():
    compositions = [[8, 1, 1], [6, 1, 1, 1, 1], [6, 8], [6, 8], [6, 8, 1, 1]]
    true = {1: -13.5, 6: -1029.0, 8: -2041.0}
    energy = [sum(true[number] for number in composition) for composition in compositions]
    fitted = least_squares_reference_energies(frames_of(compositions, energy))
    assert list(fitted) == [1, 6, 8]
    assert fitted == pytest.approx(true, abs=1e-8)


def test_least_squares_counts_every_frame():
    fitted = least_squares_reference_energies(frames_of([[1], [1], [1], [1, 1]], [1.0, 1.0, 4.0, 2.0]))
    assert fitted[1] == pytest.approx((1 + 1 + 4 + 2 * 2) / (3 + 4), abs=1e-12)


def test_least_squares_of_one_composition_has_least_norm_and_the_mean():
    fitted = least_squares_reference_energies(frames_of([[8, 1, 1], [1, 8, 1]], [-10.0, -20.0]))
    assert fitted == pytest.approx({1: -15.0 * 2 / 5, 8: -15.0 * 1 / 5}, abs=1e-12)


def test_missing_element_and_no_frames_are_refused():
    with pytest.raises(InputError, match="got none for C, O"):
        check_reference_energies({1: 0.0}, frames_of([[8, 6, 1]], [0.0]))
    with pytest.raises(InputError, match="at least one frame"):
        least_squares_reference_energies(frames_of([[1]], [0.0]).select(np.empty(0, dtype=np.int64)))
