"""Each broken symmetry is caught by the operation of its name; right potentials keep all of them."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.calculators.emt import EMT
from broken_calculators import (
    Anisotropic,
    Chiral,
    Field,
    Float32,
    Indexed,
    Morse,
    NeverRebuilt,
    Noise,
    SeldomRebuilt,
    Unconverged,
    cluster,
    crystal,
)

from ggnn_ff.errors import InputError
from ggnn_ff.stability.symmetry import OPERATIONS, history_verdicts, symmetry_verdicts


def verdicts_of(atoms, calculator, n_trials=2):
    atoms.calc = calculator
    return {verdict.name: verdict for verdict in symmetry_verdicts([atoms], n_trials)}


def failed(verdicts):
    """Names of the operations under which the energy or the forces changed."""
    return {name.split(":")[0] for name, verdict in verdicts.items() if verdict.passed is False}


@pytest.mark.parametrize("make", [cluster, crystal])
def test_right_potential_is_invariant_to_rounding(make):
    verdicts = verdicts_of(make(), Morse())
    judged = [verdict for verdict in verdicts.values() if verdict.value is not None]
    assert len(judged) == (10 if make is crystal else 8)
    assert all(verdict.passed and verdict.value < 1e-12 for verdict in judged)


def test_slab_of_another_potential_is_invariant():
    """Periodic in two directions, with a cell vector of zero and a triclinic cell."""
    slab = fcc111("Cu", (2, 2, 2))
    slab.symbols[3] = "Au"
    verdicts = verdicts_of(slab, EMT())
    assert len(verdicts) == 2 * len(OPERATIONS)
    assert all(verdict.passed for verdict in verdicts.values())


@pytest.mark.parametrize("calculator", [Float32, Unconverged])
@pytest.mark.parametrize("make", [cluster, crystal])
def test_noise_makes_no_right_potential_fail(make, calculator):
    assert failed(verdicts_of(make(), calculator())) == set()


@pytest.mark.parametrize(
    ("calculator", "operations"),
    [
        (Anisotropic, {"rotation", "reflection"}),  # a reflection in a random plane turns, too
        (Chiral, {"reflection"}),
        (Indexed, {"permutation of like atoms"}),
        (Field, {"translation", "rotation", "reflection"}),
    ],
)
def test_broken_symmetry_is_caught_by_its_operation(calculator, operations):
    assert failed(verdicts_of(cluster(), calculator())) == operations


def test_energy_and_forces_are_judged_apart():
    verdicts = verdicts_of(cluster(), Noise())
    assert verdicts["rotation: energy"].passed
    assert verdicts["rotation: forces"].passed is False


def test_neighbours_of_the_first_call_are_caught_by_permutation():
    assert failed(verdicts_of(cluster(), NeverRebuilt(3.6))) == {"permutation of like atoms"}
    assert "permutation of like atoms" in failed(verdicts_of(cluster(), SeldomRebuilt(3.6), n_trials=4))


def histories_of(atoms, make):
    atoms.calc = make()
    return {verdict.name: verdict for verdict in history_verdicts(atoms, make())}


@pytest.mark.parametrize("make", [cluster, crystal])
def test_what_was_asked_before_changes_no_right_potential(make):
    for calculator in (Morse, Float32, Indexed):
        assert all(verdict.passed and verdict.value == 0.0 for verdict in histories_of(make(), calculator).values())
    noisy = histories_of(make(), Unconverged)
    assert failed(noisy) == set()
    assert noisy["history: forces"].passed


@pytest.mark.parametrize("calculator", [NeverRebuilt, SeldomRebuilt])
@pytest.mark.parametrize("make", [cluster, crystal])
def test_neighbours_of_an_earlier_structure_are_caught_by_what_was_asked_before(make, calculator):
    verdicts = histories_of(make(), lambda: calculator(3.6))
    assert [verdict.passed for verdict in verdicts.values()] == [False, False]
    assert min(verdict.value for verdict in verdicts.values()) > 0.1


def test_history_does_not_ask_for_forces_where_there_are_none():
    alone = Atoms("Li", positions=np.zeros((1, 3)))
    assert all(verdict.passed is None and verdict.value is None for verdict in histories_of(alone, Morse).values())


def test_lattice_translation_is_caught_when_images_are_forgotten():
    class Unwrapped(Morse):
        """Sees only images next to the place where an atom happens to be written."""

        def vectors(self, atoms, positions, cell):
            free = atoms.copy()
            free.pbc = False
            return super().vectors(free, positions, cell)

    verdicts = verdicts_of(crystal(), Unwrapped())
    assert failed(verdicts) == {"lattice translation"}


def test_field_changes_the_energy_by_what_it_is_worth():
    """E = 0.01 sum z^2 of one atom at the origin, and F = -0.02 z: dE / |F| of a shift is known."""

    class OneAtom(Field):
        def faded(self, r):
            return 0.0 * r

    atoms = Atoms("Li", positions=[[0.0, 0.0, 1000.0]])
    translation = verdicts_of(atoms, OneAtom(), n_trials=20)["translation: energy"]
    assert 4.0 < translation.value < 5.0  # dE / |F| is the shift along z, of at most 5 angstrom


def test_what_a_structure_has_not_is_not_judged():
    alone = Atoms("LiBe", positions=[[0, 0, 0], [0, 0, 2.3]])
    verdicts = verdicts_of(alone, Morse())
    for name in ("permutation of like atoms", "lattice translation"):
        assert verdicts[f"{name}: energy"].passed is None
        assert "not measured" in verdicts[f"{name}: forces"].explanation
    assert verdicts["rotation: forces"].passed
    no_forces = verdicts_of(Atoms("Li", positions=np.zeros((1, 3))), Morse())
    assert all(verdict.value is None for verdict in no_forces.values())


def test_largest_change_of_all_structures_counts():
    right, wrong = cluster(), cluster()
    right.calc, wrong.calc = Morse(), Indexed()
    verdicts = {verdict.name: verdict for verdict in symmetry_verdicts([right, wrong], 1)}
    assert failed(verdicts) == {"permutation of like atoms"}


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="`structures` must have at least one"):
        symmetry_verdicts([])
    with pytest.raises(InputError, match="`atoms` must carry a calculator"):
        symmetry_verdicts([cluster()])
    with pytest.raises(InputError, match="`atoms` must carry a calculator"):
        history_verdicts(cluster(), Morse())
