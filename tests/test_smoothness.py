"""Jumps are found with their size, and steep slopes are not taken for jumps."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones

from ggnn_ff.errors import InputError
from ggnn_ff.stability.smoothness import (
    NEGLIGIBLE,
    calculator_surface,
    cutoff_crossings,
    largest_jumps,
    order_swaps,
    random_lines,
)

ETHANOL = molecule("CH3CH2OH").positions


def distances(positions):
    """(K, N, N), infinite on the diagonal; and vectors (K, N, N, 3) from the second index to the first."""
    vectors = positions[:, :, None] - positions[:, None, :]
    lengths = np.linalg.norm(vectors, axis=-1)
    lengths[:, np.arange(lengths.shape[1]), np.arange(lengths.shape[1])] = np.inf
    return lengths, vectors


def springs(positions):
    """E = sum over pairs of exp(-r / 0.5), up to 100 eV/angstrom^2 steep."""
    r, vectors = distances(positions)
    e = 5.0 * np.exp(-r / 0.5)
    forces = (2.0 * e / 0.5 / r)[..., None] * vectors
    return e.sum(axis=(1, 2)), forces.sum(axis=2)


def with_jump(where, energy=0.0, force=0.0):
    """`springs`, and more where atoms 0 and 1 are farther apart than `where`."""

    def surface(positions):
        energies, forces = springs(positions)
        r, vectors = distances(positions)
        beyond = np.maximum(r[:, 0, 1] - where, 0.0)
        outside = r[:, 0, 1] > where
        pull = (force * outside / r[:, 0, 1])[:, None] * vectors[:, 0, 1]
        forces[:, 0] -= pull
        forces[:, 1] += pull
        return energies + energy * outside + force * beyond, forces

    return surface


def nearest_neighbour(positions):
    """A published torsion in miniature: each atom has a term of the angle between its two nearest neighbours."""
    energies, forces = springs(positions)
    r, vectors = distances(positions)
    order = np.argsort(r, axis=-1)
    k, i = np.indices(order.shape[:2])
    directions = -vectors / r[..., None]
    first, third = directions[k, i, order[..., 0]], directions[k, i, order[..., 2]]
    return energies + 0.01 * (first * third).sum(axis=(1, 2)), forces


def test_smooth_surface_has_no_jumps():
    jumps = largest_jumps(springs, random_lines(ETHANOL, 20))
    assert jumps.energy < NEGLIGIBLE
    assert jumps.forces < NEGLIGIBLE
    assert jumps.n_lines == 20
    ends = springs(random_lines(ETHANOL, 20).reshape(-1, *ETHANOL.shape))[1]
    assert jumps.largest_force >= np.abs(ends).max() > 1.0


def test_random_lines_do_not_crush_bonds():
    bonds = distances(ETHANOL[None])[0][0] < 1.6
    for line in random_lines(ETHANOL, 200):
        points = line[0] + np.linspace(0.0, 1.0, 21)[:, None, None] * (line[1] - line[0])
        assert (distances(points)[0][:, bonds] >= 0.7 * distances(ETHANOL[None])[0][:, bonds]).all()


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0])
def test_jump_of_the_energy_has_its_size(size):
    where = float(np.linalg.norm(ETHANOL[0] - ETHANOL[1]))
    jumps = largest_jumps(with_jump(where, energy=size), random_lines(ETHANOL, 20))
    assert jumps.energy == pytest.approx(size, rel=1e-4)
    assert jumps.forces < NEGLIGIBLE


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0])
def test_jump_of_the_force_alone_has_its_size(size):
    line = np.stack([ETHANOL, ETHANOL])[None].repeat(3, axis=0)
    line[:, 1, 1] += [[0.3, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.2]]
    r = float(np.linalg.norm(ETHANOL[0] - ETHANOL[1] - [0.15, 0.0, 0.0]))
    jumps = largest_jumps(with_jump(r, force=size), line)
    direction = ETHANOL[0] - ETHANOL[1] - [0.15, 0.0, 0.0]
    largest_component = np.abs(direction).max() / np.linalg.norm(direction)
    assert jumps.forces == pytest.approx(size * largest_component, rel=1e-4)
    assert jumps.forces_at == (0, pytest.approx(0.5, abs=1e-7))
    assert jumps.energy < 1e-8


def test_steep_slope_is_no_jump():
    def steep(positions):
        x = positions[:, 0, 0]
        energies = np.tanh(x / 1e-3)
        forces = np.zeros_like(positions)
        forces[:, 0, 0] = -(1.0 - energies**2) / 1e-3
        return energies, forces

    line = np.zeros((1, 2, 1, 3))
    line[0, :, 0, 0] = -0.1, 0.17
    jumps = largest_jumps(steep, line)
    assert jumps.energy < NEGLIGIBLE
    assert jumps.forces < 1e-8  # of 1000 eV/angstrom


def test_swaps_of_neighbours_are_found_on_random_lines_and_on_lines_made_for_them():
    for lines in (random_lines(ETHANOL, 20), order_swaps(ETHANOL, 20)):
        assert largest_jumps(nearest_neighbour, lines).energy > 1e-3


def test_neighbours_swap_order_in_the_middle_of_each_line():
    for start, end in order_swaps(ETHANOL, 10):
        (moving,) = np.flatnonzero(np.abs(start - end).max(axis=1))
        middle = 0.5 * (start + end)
        lengths = np.linalg.norm(middle[:, None] - middle[None], axis=-1)  # (centre, other)
        twins = np.abs(lengths[:, moving, None] - lengths) < 1e-12
        twins[:, moving] = False
        assert twins.any()


def test_lennard_jones_of_ase_jumps_where_it_is_cut():
    """It shifts the energy, so that only the force jumps."""
    cutoff = 3.0
    dimer = Atoms("Ar2", positions=np.zeros((2, 3)))
    dimer.calc = LennardJones(sigma=1.0, epsilon=1.0, rc=cutoff, ro=cutoff, smooth=False)
    lines = np.zeros((1, 2, 2, 3))
    lines[0, :, 1, 0] = 2.9, 3.13
    jumps = largest_jumps(calculator_surface(dimer), lines)
    assert jumps.forces == pytest.approx(24 * (cutoff**-7 - 2 * cutoff**-13), rel=1e-6)
    assert jumps.energy < 1e-9


def test_cutoff_is_crossed_in_the_middle_of_each_line():
    cutoff, n_atoms = 5.0, len(ETHANOL)
    lines = cutoff_crossings(ETHANOL, cutoff, 10)
    lengths, _ = distances(lines.mean(axis=1))
    between = lengths[:, :n_atoms, n_atoms:]
    assert (np.abs(between - cutoff).min(axis=(1, 2)) < 1e-12).all()
    assert between.min() >= 2.0
    assert not np.array_equal(lines, cutoff_crossings(ETHANOL, cutoff, 10, seed=1))

    def sharp(positions):
        energies, forces = springs(positions)
        r, _ = distances(positions)
        return energies + 1e-5 * (r < cutoff).sum(axis=(1, 2)), forces

    assert largest_jumps(sharp, lines).energy == pytest.approx(2e-5)
    assert largest_jumps(springs, lines).energy < NEGLIGIBLE


def test_refuses_what_it_cannot_search():
    with pytest.raises(InputError, match=r"shape \(L, 2, N, 3\) with at least one line, got \(9, 3\)"):
        largest_jumps(springs, ETHANOL)
    with pytest.raises(InputError, match="line 1 must end where it does not begin"):
        largest_jumps(springs, np.stack([random_lines(ETHANOL, 1)[0], np.stack([ETHANOL, ETHANOL])]))
    with pytest.raises(InputError, match="at least three atoms"):
        order_swaps(ETHANOL[:2], 1)
    with pytest.raises(InputError, match="must be finite"):
        largest_jumps(lambda x: (np.full(len(x), np.nan), 0 * x), random_lines(ETHANOL, 1))
