"""Structures from ASE, and what is refused."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from ggnn_ff.errors import InputError
from ggnn_ff.graph import edge_vectors, from_atoms


def test_molecule():
    atoms = molecule("CH3CH2OH")
    structure = from_atoms(atoms)
    assert structure.n_structures == 1
    np.testing.assert_array_equal(structure.positions.numpy(), atoms.positions)
    np.testing.assert_array_equal(structure.numbers.numpy(), atoms.numbers)
    assert (structure.positions.dtype, structure.numbers.dtype) == (torch.float64, torch.int64)
    assert torch.equal(structure.cell, torch.zeros(1, 3, 3, dtype=torch.float64))
    assert torch.equal(structure.pbc, torch.zeros(1, 3, dtype=torch.bool))
    assert torch.equal(structure.batch, torch.zeros(9, dtype=torch.int64))


def test_shares_no_memory_with_the_atoms():
    atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.74]], cell=[5.0, 5.0, 5.0], pbc=True)
    structure = from_atoms(atoms)
    before = [tensor.clone() for tensor in structure[:5]]
    atoms.positions += 1.0
    atoms.cell *= 2.0
    atoms.pbc = False
    atoms.numbers[:] = 2
    assert all(torch.equal(one, other) for one, other in zip(structure[:5], before, strict=True))


def test_positions_outside_the_cell_stay_outside():
    atoms = Atoms("H", positions=[[11.0, -7.0, 3.0]], cell=[5.0, 5.0, 5.0], pbc=True)
    assert from_atoms(atoms).positions.tolist() == [[11.0, -7.0, 3.0]]


def test_missing_cell_vectors_of_open_directions_are_completed():
    atoms = Atoms("H", cell=[[0.0, 3.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 4.0]], pbc=[True, False, True])
    cell = from_atoms(atoms).cell[0]
    assert cell[0].tolist() == [0.0, 3.0, 0.0]
    assert cell[2].tolist() == [1.0, 0.0, 4.0]
    assert abs(float(torch.linalg.det(cell))) > 1.0


def test_a_cell_without_a_periodic_direction_is_only_a_box():
    atoms = molecule("H2O", cell=[[5.0, 0.0, 0.0], [1.0, 6.0, 0.0], [0.0, 0.0, 7.0]], pbc=False)
    assert torch.equal(from_atoms(atoms).cell, torch.zeros(1, 3, 3, dtype=torch.float64))


def test_edge_vectors_point_from_centre_to_the_image_of_the_neighbour():
    positions = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    cell = torch.stack([torch.eye(3), torch.tensor([[3.0, 1.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 5.0]])])
    edge_index = torch.tensor([[0, 2, 3], [1, 3, 2]])
    shifts = torch.tensor([[0.0, 0.0, 2.0], [1.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    vectors = edge_vectors(positions, cell, edge_index, shifts, torch.tensor([0, 0, 1, 1]))
    assert vectors.tolist() == [[1.0, 0.0, 2.0], [3.0, 2.0, -5.0], [0.0, -1.0, 0.0]]


BROKEN = {
    "empty": (Atoms(), "at least one atom, got an empty structure"),
    "nan": (Atoms("OH", positions=[[0, 0, 0], [0, np.nan, 0]]), r"finite, got NaN or infinity for 1 of 2.*atom 1"),
    "infinite": (Atoms("OH", positions=[[np.inf, 0, 0], [0, np.nan, 0]]), r"for 2 of 2 atoms \(first: atom 0\)"),
    "ghost": (Atoms(numbers=[8, 0], positions=[[0, 0, 0], [0, 0, 1]]), "must be positive, got 0 for atom 1"),
    "no cell": (Atoms("H", pbc=True), "a vector in each periodic direction.*or atoms.pbc = False for a molecule"),
    "one vector missing": (Atoms("H", cell=[4, 4, 0], pbc=True), "a vector in each periodic direction"),
    "flat cell": (
        Atoms("H", cell=[[1, 0, 0], [0, 1, 0], [1, 1, 0]], pbc=True),
        "must span a volume, got linearly dependent vectors",
    ),
    "nan in the cell": (Atoms("H", cell=[4, 4, np.nan], pbc=True), "`atoms.cell` must be finite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refused_with_a_reason(name):
    atoms, message = BROKEN[name]
    with pytest.raises(InputError, match=message):
        from_atoms(atoms)
