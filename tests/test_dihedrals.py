"""Dihedral angles: which bonds rotate, by how much, and distributions that differ."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from ggnn_ff.errors import InputError
from ggnn_ff.stability.dihedrals import (
    dihedral_angles,
    dihedral_distributions,
    dihedral_verdict,
    rotatable_bonds,
)
from ggnn_ff.stability.frames import Trajectory

BUTANE = molecule("trans-butane")  # carbons 0 to 3, the chain is 2-0-1-3


def chain(atoms):
    (quadruple,) = rotatable(atoms)
    return quadruple


def rotatable(atoms):
    return rotatable_bonds(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc).tolist()


def rotated(angles, atoms=BUTANE, cell=None):
    """Frames in which the chain has these dihedral angles, in degrees."""
    i, j, k, ell = chain(atoms)
    axis = atoms.positions[k] - atoms.positions[j]
    side = [a for a in range(len(atoms)) if (atoms.positions[a] - atoms.positions[[j, k]].mean(axis=0)) @ axis > 0]
    frames = []
    for angle in angles:
        frame = atoms.copy()
        frame.set_dihedral(i, j, k, ell, angle, indices=side)
        frames.append(frame.positions)
    n_frames = len(frames)
    return Trajectory(
        source="made",
        numbers=atoms.numbers,
        masses=atoms.get_masses(),
        positions=np.stack(frames),
        cell=np.broadcast_to(np.eye(3) * (cell or 0.0), (n_frames, 3, 3)),
        pbc=np.full(3, cell is not None),
        times_fs=np.arange(n_frames) * 10.0,
    )


def test_only_bonds_that_change_the_shape_are_rotatable():
    assert len(rotatable(BUTANE)) == 1
    assert sorted(chain(BUTANE)) == [0, 1, 2, 3]  # the two methyl groups do not count
    (ethanol,) = rotatable(molecule("CH3CH2OH"))
    assert Atoms(molecule("CH3CH2OH").symbols[ethanol]).get_chemical_formula() == "C2HO"
    for name in ("C6H6", "cyclobutane", "C2H6", "CH3CN", "CH3NO2", "H2O", "CH4"):
        assert rotatable(molecule(name)) == []
    line = Atoms("CC2CN", [[0, 0, 0], [1.4, 0, 0], [2.6, 0, 0], [4.0, 0, 0], [4.5, 1.2, 0]])
    assert rotatable(line) == []  # both ends in line


@pytest.mark.parametrize("cell", [None, 8.0])
def test_angles_are_those_that_were_set(cell):
    angles = np.array([-179.0, -60.0, 0.0, 35.0, 120.0, 179.0])
    frames = rotated(angles, cell=cell)
    if cell:
        frames.positions[:] = frames.positions % cell
    np.testing.assert_allclose(dihedral_angles(frames, np.array([chain(BUTANE)]))[:, 0], angles, atol=1e-6)


@pytest.fixture(scope="module")
def full_turn():
    return rotated(np.arange(-177.5, 180.0, 5.0))


def sample(full_turn, shares, n_frames=4000, seed=0):
    """Trans, gauche+ and gauche- with given shares, in random order."""
    rng = np.random.default_rng(seed)
    angles = rng.choice([180.0, 65.0, -65.0], p=shares, size=n_frames) + rng.normal(size=n_frames) * 8.0
    positions = full_turn.positions[((angles + 180.0) // 5.0).astype(int) % 72]
    return replace(full_turn, positions=positions, cell=np.zeros((n_frames, 3, 3)), times_fs=None)


@pytest.fixture(scope="module")
def reference(full_turn):
    return sample(full_turn, [0.6, 0.2, 0.2])


def test_equal_distributions_pass_and_others_fail(full_turn, reference):
    (same,) = dihedral_distributions(sample(full_turn, [0.6, 0.2, 0.2], seed=1), reference)
    assert same.found.sum() == pytest.approx(1.0)
    assert same.difference < 0.05
    assert dihedral_verdict([same]).passed is True
    (other,) = dihedral_distributions(sample(full_turn, [0.2, 0.4, 0.4], seed=1), reference)
    assert other.difference == pytest.approx(0.4, abs=0.03)
    verdict = dihedral_verdict([other])
    assert verdict.passed is False
    assert verdict.explanation.startswith(other.name)
    assert "C0" in other.name


def test_a_rotation_that_was_sampled_once_is_not_judged(reference):
    once = rotated(np.repeat([180.0, 65.0], 20))
    (result,) = dihedral_distributions(once, reference)
    assert result.sampling == 1.0
    verdict = dihedral_verdict([result])
    assert verdict.passed is None
    assert "run longer" in verdict.explanation


def test_without_rotatable_bonds_or_with_other_atoms_nothing_is_compared(reference):
    assert dihedral_verdict([]).passed is None
    water = rotated([0.0], BUTANE)
    with pytest.raises(InputError, match="`reference` must have the same atoms"):
        dihedral_distributions(
            Trajectory("w", np.array([8, 1]), np.ones(2), np.zeros((1, 2, 3)), water.cell, water.pbc), reference
        )
