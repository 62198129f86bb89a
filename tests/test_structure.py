"""Bonds, their deviations, and the distribution of distances."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ggnn_ff.bonds import bond_lengths, bond_name, bonds
from ggnn_ff.errors import InputError
from ggnn_ff.stability.structure import bond_deviations, distance_distribution, distribution_error, pair_blocks

ETHANOL_BONDS = ["C0-C1", "C0-H6", "C0-H7", "C0-H8", "C1-O2", "C1-H4", "C1-H5", "O2-H3"]
NO_CELL, NO_PBC = np.zeros((3, 3)), np.zeros(3, dtype=bool)


def names(numbers, pairs):
    return [bond_name(numbers, pair) for pair in pairs]


def test_bonds_of_ethanol():
    atoms = molecule("CH3CH2OH")
    pairs = bonds(atoms.numbers, atoms.positions, NO_CELL, NO_PBC)
    assert sorted(names(atoms.numbers, pairs)) == sorted(ETHANOL_BONDS)
    lengths = bond_lengths(atoms.positions, pairs, NO_CELL, NO_PBC)
    expected = [atoms.get_distance(*pair) for pair in pairs]
    np.testing.assert_allclose(lengths, expected, atol=1e-12)


@pytest.mark.parametrize("skew", [0.0, 4.0])
def test_bonds_cross_periodic_boundaries(skew):
    atoms = molecule("CH3CH2OH", cell=[[7, 0, 0], [skew, 7, 0], [0, skew, 8]], pbc=True)
    whole = bonds(atoms.numbers, atoms.positions, NO_CELL, NO_PBC)
    lengths = bond_lengths(atoms.positions, whole, NO_CELL, NO_PBC)
    atoms.translate([0.3, 6.9, 0.1])
    atoms.wrap()
    assert np.abs(bond_lengths(atoms.positions, whole, NO_CELL, NO_PBC) - lengths).max() > 3  # cut by wrapping
    pairs = bonds(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    np.testing.assert_array_equal(pairs, whole)
    np.testing.assert_allclose(bond_lengths(atoms.positions, pairs, atoms.cell.array, atoms.pbc), lengths, atol=1e-12)


def test_large_system_has_the_bonds_of_its_parts():
    atoms = molecule("CH3CH2OH", vacuum=3.0) * (5, 4, 3)  # 540 atoms: the cell list instead of all pairs
    pairs = bonds(atoms.numbers, atoms.positions, NO_CELL, NO_PBC)
    assert len(pairs) == 60 * len(ETHANOL_BONDS)
    assert np.all(pairs[:, 0] < pairs[:, 1])
    assert np.all(pairs[:, 0] // 9 == pairs[:, 1] // 9)


@pytest.mark.parametrize(
    ("name", "n_bonds"),
    [
        ("C3H6_D3h", 9),
        ("CH2OCH2", 7),
        ("CH2SCH2", 7),
        ("bicyclobutane", 11),
        ("F2", 1),
        ("H2", 1),
        ("P2", 1),
        ("SiCl4", 4),
    ],
)
def test_rings_of_three_and_long_bonds_are_whole(name, n_bonds):
    atoms = molecule(name)
    assert len(bonds(atoms.numbers, atoms.positions, NO_CELL, NO_PBC)) == n_bonds


def test_hydrogen_bridges_are_bonds():
    """B2H6, the boron atoms 1.77 and the bridges 1.33 angstrom long."""
    bridge = np.sqrt(1.33**2 - 0.885**2)
    atoms = Atoms("B2H2", [[0.885, 0, 0], [-0.885, 0, 0], [0, 0, bridge], [0, 0, -bridge]])
    assert len(bonds(atoms.numbers, atoms.positions, NO_CELL, NO_PBC)) == 5


def test_silicon_has_four_bonds_per_atom():
    atoms = bulk("Si", cubic=True) * 2
    pairs = bonds(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    np.testing.assert_array_equal(np.bincount(pairs.ravel()), np.full(len(atoms), 4))


@pytest.mark.parametrize("symbols", ["H", "He2"])
def test_no_bonds(symbols):
    numbers = np.array([1]) if symbols == "H" else np.array([2, 2])
    positions = 3.0 * np.eye(3)[: len(numbers)]
    pairs = bonds(numbers, positions, NO_CELL, NO_PBC)
    assert pairs.shape == (0, 2)
    assert bond_lengths(positions, pairs, NO_CELL, NO_PBC).shape == (0,)


def breaking(frames=40, break_at=25, stretch=0.61):
    """Ethanol that trembles; H4 leaves C1 at a known frame and comes back five frames later."""
    atoms = molecule("CH3CH2OH")
    rng = np.random.default_rng(0)
    positions = atoms.positions + rng.normal(scale=0.02, size=(frames, 9, 3))
    bond = atoms.positions[4] - atoms.positions[1]
    positions[break_at : break_at + 5, 4] += stretch * bond / np.linalg.norm(bond)
    return atoms.numbers, positions, np.zeros((frames, 3, 3))


def test_first_broken_bond_is_named_with_its_frame_and_length():
    numbers, positions, cell = breaking()
    result = bond_deviations(numbers, positions, cell, NO_PBC, threshold=0.5)
    assert result.first_frame == 25
    assert result.broken == "C1-H4"
    assert result.broken_length == pytest.approx(1.10 + 0.61, abs=0.1)
    assert result.broken_reference == pytest.approx(1.10, abs=0.1)
    assert result.worst == "C1-H4"
    assert np.all(np.delete(result.largest, slice(25, 30)) < 0.2)


def test_bond_within_the_threshold_is_not_broken():
    numbers, positions, cell = breaking(stretch=0.3)
    result = bond_deviations(numbers, positions, cell, NO_PBC, threshold=0.5)
    assert result.first_frame is None
    assert result.broken is None
    assert 0.2 < result.largest.max() < 0.5


def test_reference_lengths_are_the_mean_of_the_reference():
    numbers, positions, cell = breaking(stretch=0.0)
    shifted = positions[:3] * 1.4  # a hot start would blame the frames that follow
    stretched = np.concatenate([shifted, positions])
    frames = np.zeros((43, 3, 3))
    result = bond_deviations(numbers, stretched, frames, NO_PBC, threshold=0.5, reference=(positions, cell))
    assert result.first_frame == 0  # not frame 3, where the trajectory returns to the reference
    assert result.broken == "C0-C1"
    expected = np.linalg.norm(positions[:, 0] - positions[:, 1], axis=1).mean()
    assert result.reference[result.names.index("C0-C1")] == pytest.approx(expected)


def test_reference_that_breaks_is_refused():
    numbers, positions, cell = breaking()
    with pytest.raises(InputError, match=r"C1-H4 is 1\.\d+ angstrom in frame 25"):
        bond_deviations(numbers, positions[:5], cell[:5], NO_PBC, threshold=0.5, reference=(positions, cell))


def test_reference_with_other_atoms_is_refused():
    numbers, positions, cell = breaking()
    with pytest.raises(InputError, match="9 atoms of the trajectory, got 8"):
        bond_deviations(numbers, positions, cell, NO_PBC, threshold=0.5, reference=(positions[:, 1:], cell))


def test_bonds_follow_a_cell_that_changes():
    numbers = np.array([6, 6])
    lengths = np.array([8.0, 9.0, 10.0])
    positions = np.stack([[[0.1, 0, 0], [length - 1.3, 0, 0]] for length in lengths])
    cell = lengths[:, None, None] * np.eye(3)
    result = bond_deviations(numbers, positions, cell, np.ones(3, dtype=bool), threshold=0.5)
    np.testing.assert_allclose(result.largest, 0.0, atol=1e-12)


def test_distances_of_a_rigid_triangle():
    positions = np.array([[0, 0, 0], [3, 0, 0], [0, 4, 0]], dtype=float)  # distances 3, 4, 5
    trajectory = np.stack([positions, positions + 7.0])
    r, h = distance_distribution(trajectory, np.zeros((2, 3, 3)), NO_PBC)
    width = 10.0 / 500
    assert len(r) == len(h) == 500
    np.testing.assert_allclose(r[h > 0], [3 + width / 2, 4 + width / 2, 5 + width / 2], atol=1e-12)
    np.testing.assert_allclose(h[h > 0], 1 / 3 / width)


def test_distances_beyond_the_last_bin_are_not_counted_in_it():
    positions = np.array([[[0, 0, 0], [3.0, 0, 0], [50.0, 0, 0]]])
    _, h = distance_distribution(positions, np.zeros((1, 3, 3)), NO_PBC)
    assert h[-1] == 0
    assert h.sum() * 10.0 / 500 == pytest.approx(1 / 3)


def test_distances_use_the_nearest_image_of_each_frame():
    positions = np.array([[[0.5, 0, 0], [6.99, 0, 0]], [[0.5, 0, 0], [7.99, 0, 0]]])
    cell = np.array([8.0, 9.0])[:, None, None] * np.eye(3)
    r, h = distance_distribution(positions, cell, np.ones(3, dtype=bool))
    np.testing.assert_allclose(r[h > 0], [1.51])


def test_distances_are_the_same_in_chunks(monkeypatch):
    numbers, positions, cell = breaking()
    _, whole = distance_distribution(positions, cell, NO_PBC)
    monkeypatch.setattr("ggnn_ff.stability.blocks.CHUNK_VALUES", 36 * 7)
    _, chunks = distance_distribution(positions, cell, NO_PBC)
    np.testing.assert_array_equal(whole, chunks)
    assert len(numbers) == 9
    monkeypatch.setattr("ggnn_ff.stability.structure._PAIRS_AT_ONCE", 20)
    np.testing.assert_array_equal(distance_distribution(positions, cell, NO_PBC)[1], whole)


@pytest.mark.parametrize("second", [range(7), range(20, 25)])
def test_blocks_have_each_pair_once(monkeypatch, second):
    expected = {(i, j) for i in range(7) for j in second if i < j}
    monkeypatch.setattr("ggnn_ff.stability.structure._PAIRS_AT_ONCE", 15)
    blocks = list(pair_blocks(np.arange(7), np.array(second)))
    assert len(blocks) > 1
    pairs = [tuple(pair) for block in blocks for pair in block.tolist()]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected


def test_distribution_error_is_zero_for_equal_and_two_for_disjoint():
    first, second = np.zeros(500), np.zeros(500)
    first[10], second[20] = 50.0, 50.0  # each integrates to one over bins of 0.02 angstrom
    assert distribution_error(first, first) == 0
    assert distribution_error(first, second) == pytest.approx(2.0)
