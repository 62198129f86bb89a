"""The neighbour list against that of ASE."""

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import primitive_neighbor_list

from ggnn_ff.cache import why_not_compile
from ggnn_ff.errors import InputError
from ggnn_ff.graph import Structure, edge_vectors, from_atoms
from ggnn_ff.kernels.host import make_edges
from ggnn_ff.neighbors import (
    SHORTEST_DISTANCE,
    SkinNeighborList,
    make_neighbor_list,
    neighbor_list,
    shortest_edges,
    spread_too_far,
)


def box(atoms: Atoms, cell) -> Atoms:
    return Atoms(atoms, cell=cell, pbc=True)


def unwrapped(atoms: Atoms) -> Atoms:
    steps = np.random.default_rng(0).integers(-4, 5, size=(len(atoms), 3))
    return Atoms(atoms, positions=atoms.positions + steps @ atoms.cell.array)


def rattled(atoms: Atoms) -> Atoms:
    """Off the symmetric places, where distances equal the cutoff to the last digit."""
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=0)
    return atoms


TRICLINIC = [[6.0, 0.0, 0.0], [2.5, 5.5, 0.0], [-1.5, 2.0, 6.5]]
LEFT_HANDED = [[0.0, 6.0, 0.0], [6.5, 0.0, 1.0], [0.0, 0.5, 7.0]]
SYSTEMS = {
    "ethanol": rattled(molecule("CH3CH2OH")),
    "benzene": rattled(molecule("C6H6")),
    "diamond-primitive": rattled(bulk("C")),
    "iron-one-atom": bulk("Fe"),
    "salt": rattled(bulk("NaCl", "rocksalt", a=5.64, cubic=True)),
    "slab": rattled(fcc111("Cu", (2, 2, 3), vacuum=4.0)),
    "triclinic": rattled(box(molecule("CH3CH2OH"), TRICLINIC)),
    "left-handed": rattled(box(molecule("CH3CH2OH"), LEFT_HANDED)),
    "unwrapped": unwrapped(rattled(box(molecule("CH3CH2OH"), TRICLINIC))),
    "small-cell": rattled(box(Atoms("HF", positions=[[0, 0, 0], [0, 0, 1]]), [1.7, 2.1, 2.6])),
}


def edges_by_ase(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Sorted rows (i, j, shift) and their vectors."""
    i, j, vectors, shifts = primitive_neighbor_list(
        "ijDS", atoms.pbc, atoms.cell.complete(), atoms.positions, cutoff, self_interaction=False
    )
    rows = np.column_stack([i, j, shifts])
    order = np.lexsort(rows.T[::-1])
    return rows[order], vectors[order]


def edges(structure: Structure, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    edge_index, shifts = neighbor_list(structure, cutoff)
    vectors = edge_vectors(structure.positions, structure.cell, edge_index, shifts, structure.batch)
    rows = np.column_stack([edge_index.numpy().T, shifts.numpy().astype(int)])
    order = np.lexsort(rows.T[::-1])
    return rows[order], vectors.numpy()[order]


CASES = [
    pytest.param(name, pbc, id=f"{name}-{''.join('ny'[p] for p in pbc)}")
    for name, atoms in SYSTEMS.items()
    for pbc in itertools.product([False, True], repeat=3)
    if atoms.cell.rank == 3 or not any(pbc)
]


@pytest.mark.parametrize("cutoff", [1.2, 5.0])
@pytest.mark.parametrize(("name", "pbc"), CASES)
def test_edges_are_those_of_ase(name, pbc, cutoff):
    atoms = SYSTEMS[name].copy()
    atoms.pbc = pbc
    rows, vectors = edges(from_atoms(atoms), cutoff)
    expected_rows, expected_vectors = edges_by_ase(atoms, cutoff)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(vectors, expected_vectors, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["ethanol", "triclinic", "small-cell"])
def test_edges_are_sorted_by_centre_and_go_both_ways(name):
    edge_index, shifts = neighbor_list(from_atoms(SYSTEMS[name]), 5.0)
    assert edge_index.shape[1] > 0
    assert bool((edge_index[0].diff() >= 0).all())
    forth = {(i, j, *s) for i, j, s in zip(*edge_index.tolist(), shifts.to(int).tolist(), strict=True)}
    back = {(j, i, *(-x for x in s)) for i, j, s in zip(*edge_index.tolist(), shifts.to(int).tolist(), strict=True)}
    assert len(forth) == edge_index.shape[1]
    assert forth == back


def test_types_and_shapes_without_edges():
    edge_index, shifts = neighbor_list(from_atoms(Atoms("He")), 5.0)
    assert (edge_index.shape, edge_index.dtype) == ((2, 0), torch.int64)
    assert (shifts.shape, shifts.dtype) == ((0, 3), torch.float64)


def test_no_gradient():
    structure = from_atoms(SYSTEMS["triclinic"])
    structure.positions.requires_grad_(True)
    _, shifts = neighbor_list(structure, 5.0)
    assert not shifts.requires_grad


def test_a_pair_at_the_cutoff_is_no_edge():
    for distance, n_edges in ((4.999999, 2), (5.0, 0), (5.000001, 0)):
        atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, distance]])
        assert neighbor_list(from_atoms(atoms), 5.0)[0].shape[1] == n_edges


def test_structures_of_a_batch_keep_their_own_cell_and_periodicity():
    parts = [from_atoms(SYSTEMS[name]) for name in ("small-cell", "ethanol", "triclinic")]
    n_atoms = torch.tensor([len(part.numbers) for part in parts])
    structure = Structure(
        positions=torch.cat([part.positions for part in parts]),
        numbers=torch.cat([part.numbers for part in parts]),
        cell=torch.cat([part.cell for part in parts]),
        pbc=torch.cat([part.pbc for part in parts]),
        batch=torch.repeat_interleave(torch.arange(3), n_atoms),
        n_structures=3,
    )
    rows, vectors = edges(structure, 5.0)
    start, expected_rows, expected_vectors = 0, [], []
    for part in parts:
        part_rows, part_vectors = edges(part, 5.0)
        expected_rows.append(part_rows + np.array([start, start, 0, 0, 0]))
        expected_vectors.append(part_vectors)
        start += len(part.numbers)
    np.testing.assert_array_equal(rows, np.concatenate(expected_rows))
    np.testing.assert_array_equal(vectors, np.concatenate(expected_vectors))


def test_scripted_list_is_the_same():
    """What runs inside a TorchForce, call after call."""
    scripted = torch.jit.script(make_neighbor_list(5.0))
    for name in ("triclinic", "small-cell", "unwrapped", "salt"):
        structure = from_atoms(SYSTEMS[name])
        pairs, shifts = scripted.compute(structure.positions, structure.cell[0], True, "PS")
        edge_index, expected_shifts = neighbor_list(structure, 5.0)
        ours = torch.cat([pairs.to(torch.float64), shifts.to(torch.float64)], dim=1)
        theirs = torch.cat([edge_index.T.to(torch.float64), expected_shifts], dim=1)
        assert sorted(ours.tolist()) == sorted(theirs.tolist())


@pytest.mark.parametrize("distance", [0.0, 0.04])
def test_atoms_on_one_place_are_an_error(distance):
    atoms = Atoms("OH2", positions=[[0, 0, 0], [0, 0, 0.96], [0, distance, 0.96]])
    with pytest.raises(
        InputError, match=rf"atoms 1 and 2 at 0\.0{100 * distance:.0f}00 angstrom.*wrong unit of length"
    ):
        neighbor_list(from_atoms(atoms), 5.0)


def test_an_atom_on_its_neighbour_s_image_is_an_error():
    atoms = Atoms("H2", positions=[[0, 0, 0], [3.0, 6.0, -3.0]], cell=[3.0, 3.0, 3.0], pbc=True)
    with pytest.raises(InputError, match=r"atoms 0 and 1 at 0\.0000 angstrom"):
        neighbor_list(from_atoms(atoms), 5.0)


@pytest.mark.parametrize("axes", [[0], [1], [2], [0, 1], [1, 2], [0, 2], [0, 1, 2]])
def test_atoms_far_apart_are_an_error_or_a_list(axes):
    """Never the end of the process, as in vesin where a million cells have no width along an axis."""
    for extent in (1e2, 1e3, 1e4, 1e5, 1e6, 1e9):
        atoms = Atoms("OHH", positions=[[0, 0, 0], [0, 0, 0.96], [0.9, 0, 0]])
        atoms.positions[2, axes] += extent
        structure = from_atoms(atoms)
        if spread_too_far(structure.positions, structure.cell[0], structure.pbc[0], 5.0):
            with pytest.raises(InputError, match="must keep atoms together"):
                neighbor_list(structure, 5.0)
            assert extent > 1e3
        else:
            assert neighbor_list(structure, 5.0)[0].tolist() == [[0, 1], [1, 0]]


def moving(periodic, steps=60):
    """A structure that is shaken more and more, and in the end wrapped into its cell."""
    random = np.random.default_rng(0)
    atoms = Atoms("O20", positions=random.uniform(0.0, 9.0, (20, 3)), cell=[9.0, 8.0, 7.5], pbc=periodic)
    for _ in range(steps):
        atoms.positions += random.normal(scale=0.03, size=(20, 3))
        yield atoms.copy()
    atoms.wrap()
    yield atoms.copy()
    atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
    yield atoms.copy()
    yield atoms[:-1]


@pytest.mark.parametrize("periodic", [False, True])
def test_list_with_a_skin_is_the_list_at_every_step(periodic):
    listed = SkinNeighborList(3.0, skin=0.6)
    frames = [from_atoms(atoms) for atoms in moving(periodic)]
    for structure in frames:
        edge_index, shifts = listed(structure)
        expected_index, expected_shifts = neighbor_list(structure, 3.0)
        assert torch.equal(edge_index, expected_index)  # in the same order, so that sums have the same last digits
        assert torch.equal(shifts, expected_shifts)
    assert 3 <= listed.n_lists < len(frames) / 2


@pytest.mark.skipif(why_not_compile() is not None, reason=f"{why_not_compile()}")
@pytest.mark.parametrize("periodic", [False, True])
def test_edges_of_a_compiled_step_are_those_of_the_list(periodic):
    edges, pairs_of, n_lists = make_edges(3.0, 0.6, SHORTEST_DISTANCE), make_neighbor_list(3.6), 0
    frames = [from_atoms(atoms) for atoms in moving(periodic)]
    for structure in frames:
        x, cell = structure.positions, structure.cell[0]
        found = edges.find(x, cell)
        if found is None:
            found = edges.list(x, cell, *pairs_of.compute(x, cell, periodic, "PS"))
            n_lists += 1
        expected_index, expected_shifts = neighbor_list(structure, 3.0)
        assert torch.equal(found[0], expected_index)
        torch.testing.assert_close(found[1], expected_shifts @ cell, rtol=0, atol=1e-12)
    assert 3 <= n_lists < len(frames) / 2
    x[0] = x[1] + 0.01
    with pytest.raises(ValueError, match=r"atoms 0 and 1 at 0\.017\d* angstrom"):
        edges.list(x, cell, *pairs_of.compute(x, cell, periodic, "PS"))
    x[0] = torch.nan
    assert edges.find(x, cell) is None


def test_list_with_a_skin_tells_of_atoms_on_one_place():
    listed = SkinNeighborList(3.0)
    listed(from_atoms(Atoms("O2", positions=[[0, 0, 0], [0, 0, 0.2]])))
    with pytest.raises(InputError, match=r"atoms 0 and 1 at 0\.0200 angstrom"):
        listed(from_atoms(Atoms("O2", positions=[[0, 0, 0], [0, 0, 0.02]])))


@pytest.mark.parametrize("periodic", [False, True])
def test_shortest_edges_are_those_within_the_cutoff_and_the_next(periodic):
    atoms = bulk("Cu", cubic=True) if periodic else molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    structure = from_atoms(atoms)
    edge_index, shifts = neighbor_list(structure, 2.7)
    n_edges = edge_index.shape[1] + 6
    more, more_shifts = shortest_edges(structure, 2.7, n_edges)
    assert more.shape == (2, n_edges)
    described = [
        {(*pair, *shift) for pair, shift in zip(pairs.t().tolist(), moved.tolist(), strict=True)}
        for pairs, moved in ((edge_index, shifts), (more, more_shifts))
    ]
    assert described[0] < described[1]
    assert described[1] == {(j, i, *(0.0 - s for s in shift)) for i, j, *shift in described[1]}
    vectors = edge_vectors(structure.positions, structure.cell, more, more_shifts, structure.batch)
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    beyond = neighbor_list(structure, float(lengths.max()) - 1e-6)[0].shape[1]
    assert beyond < n_edges
    exactly, exact_shifts = shortest_edges(structure, 2.7, edge_index.shape[1])
    assert torch.equal(exactly, edge_index)
    assert torch.equal(exact_shifts, shifts)


def test_more_edges_than_a_molecule_has_are_refused():
    with pytest.raises(InputError, match="at most the 2 of a molecule of 2 atoms, got 12"):
        shortest_edges(from_atoms(molecule("CO")), 5.0, 12)
