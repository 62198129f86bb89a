"""The potential as an ASE calculator."""

import copy
import pickle

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.io import read, write
from ase.md.verlet import VelocityVerlet

from ggnn_ff import GGNNCalculator, InputError, load_potential
from ggnn_ff.export import LoadedPotential
from ggnn_ff.graph import Structure
from ggnn_ff.neighbors import SkinNeighborList


@pytest.fixture(scope="module")
def potential(potential_file) -> LoadedPotential:
    return load_potential(potential_file, dtype="float64")


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=3)
    return atoms


def crystal() -> Atoms:
    atoms = molecule("CH3CH2OH", cell=[[4.0, 0.0, 0.0], [0.5, 4.5, 0.0], [-0.4, 0.3, 5.0]], pbc=True)
    atoms.rattle(0.1, seed=3)
    return atoms


@pytest.fixture
def evaluations(monkeypatch) -> list[int]:
    """One entry for each evaluation of a potential."""
    calls, predict = [], LoadedPotential.predict

    def counting(self: LoadedPotential, structure: Structure, neighbors: SkinNeighborList):
        calls.append(len(structure.numbers))
        return predict(self, structure, neighbors)

    monkeypatch.setattr(LoadedPotential, "predict", counting)
    return calls


@pytest.mark.parametrize("send", [lambda calc: pickle.loads(pickle.dumps(calc)), copy.deepcopy])
def test_a_calculator_can_be_sent_to_another_process(potential, send):
    atoms = ethanol()
    atoms.calc = GGNNCalculator(potential, compile=False)
    expected = atoms.get_forces()
    atoms.calc = send(atoms.calc)
    np.testing.assert_array_equal(atoms.get_forces(), expected)
    atoms.rattle(0.01, seed=4)
    assert np.abs(atoms.get_forces() - expected).max() > 0.01


def test_properties_of_a_molecule(potential):
    atoms = ethanol()
    atoms.calc = GGNNCalculator(potential)
    expected = potential.evaluate(atoms)
    energy, forces, energies = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_potential_energies()
    assert isinstance(energy, float)
    assert energy == float(expected.energy[0])
    assert atoms.get_potential_energy(force_consistent=True) == energy
    assert atoms.calc.get_property("free_energy", atoms) == energy
    np.testing.assert_array_equal(forces, expected.forces.numpy())
    assert (forces.dtype, energies.shape) == (np.float64, (9,))
    assert abs(energies.sum() - energy) < 1e-11


def test_forces_are_the_numerical_derivative(potential):
    atoms = ethanol()
    atoms.calc = GGNNCalculator(potential)
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 0.1
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, eps=1e-4), rtol=0, atol=1e-7)


def test_stress_is_the_numerical_stress(potential):
    atoms = crystal()
    atoms.calc = GGNNCalculator(potential)
    stress = atoms.get_stress()
    assert stress.shape == (6,)
    assert np.abs(stress).max() > 1e-3
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-4), rtol=0, atol=1e-8)


def test_stress_has_the_sign_of_ase(potential):
    """Positive where expansion costs energy."""
    atoms = crystal()
    atoms.calc = GGNNCalculator(potential)
    energy, trace = atoms.get_potential_energy(), atoms.get_stress()[:3].sum()
    atoms.set_cell(1.001 * atoms.cell, scale_atoms=True)
    assert abs(trace) > 1e-4
    assert np.sign(atoms.get_potential_energy() - energy) == np.sign(trace)


@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_no_stress_without_three_periodic_directions(potential, pbc):
    atoms = crystal()
    atoms.pbc = pbc
    atoms.calc = GGNNCalculator(potential)
    with pytest.raises(PropertyNotImplementedError, match="stress needs a cell that is periodic in three directions"):
        atoms.get_stress()
    assert np.isfinite(atoms.get_forces()).all()


def test_one_evaluation_serves_all_properties(potential, evaluations):
    atoms = crystal()
    atoms.calc = GGNNCalculator(potential)
    for _ in range(2):
        atoms.get_potential_energy()
        atoms.get_forces()
        atoms.get_stress()
        atoms.get_potential_energies()
    assert evaluations == [9]


@pytest.mark.parametrize("change", ["positions", "cell", "pbc", "numbers"])
def test_each_change_is_noticed(potential, evaluations, change):
    atoms = crystal()
    atoms.calc = GGNNCalculator(potential)
    before = atoms.get_potential_energy()
    if change == "positions":
        atoms.positions[0, 0] += 1e-3
    elif change == "cell":
        atoms.cell[0, 0] += 1e-3
    elif change == "pbc":
        atoms.pbc = False
    else:
        atoms.numbers[0] = 8
    assert atoms.get_potential_energy() != before
    assert evaluations == [9, 9]


def test_results_of_an_earlier_frame_do_not_change(potential):
    atoms = ethanol()
    atoms.calc = GGNNCalculator(potential)
    forces = atoms.get_forces()
    copy = forces.copy()
    atoms.rattle(0.1, seed=5)
    assert not np.array_equal(atoms.get_forces(), copy)
    np.testing.assert_array_equal(forces, copy)


def test_a_structure_of_another_size_may_follow(potential):
    calculator = GGNNCalculator(potential)
    energies = []
    for atoms in (ethanol(), molecule("H2O"), crystal(), Atoms("O"), ethanol()):
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        assert atoms.get_forces().shape == (len(atoms), 3)
    assert energies[0] == energies[-1]
    assert len(set(energies)) == 4


def test_calculators_say_which_potential_they_are(potential):
    """So that runs, and files of ASE, tell one from another."""
    assert GGNNCalculator(potential).todict()["potential_sha256"] == potential.contract.identity


def test_unknown_element_is_named(potential):
    atoms = molecule("CH3SH")
    atoms.calc = GGNNCalculator(potential)
    with pytest.raises(InputError, match=r"`atoms` holds S, but this potential was trained on H, C, O only"):
        atoms.get_potential_energy()


def test_what_is_no_element_is_named(potential):
    atoms = ethanol()
    atoms.numbers[0] = 200
    with pytest.raises(InputError, match="`atoms` holds number 200"):
        GGNNCalculator(potential).get_potential_energy(atoms)


def test_nan_positions_are_refused(potential):
    atoms = ethanol()
    atoms.calc = GGNNCalculator(potential)
    atoms.get_potential_energy()
    atoms.positions[4, 1] = np.nan
    with pytest.raises(InputError, match=r"finite, got NaN or infinity for 1 of 9 atoms \(first: atom 4\)"):
        atoms.get_potential_energy()


def test_an_empty_structure_is_refused(potential):
    with pytest.raises(InputError, match="at least one atom, got an empty structure"):
        GGNNCalculator(potential).get_potential_energy(Atoms())


def test_a_failure_leaves_no_results(potential):
    """So that no caller takes the numbers of the frame before."""
    atoms = ethanol()
    atoms.calc = GGNNCalculator(potential)
    atoms.get_potential_energy()
    atoms.positions[:] = 0.0
    with pytest.raises(InputError, match="must keep atoms apart"):
        atoms.get_forces()
    assert atoms.calc.results == {}


def test_settings_of_a_loaded_potential_are_not_changed_in_silence(potential):
    assert GGNNCalculator(potential, dtype="float64").potential is potential
    with pytest.raises(InputError, match="was loaded as float64 on cpu already, got dtype='float32'"):
        GGNNCalculator(potential, dtype="float32")
    with pytest.raises(InputError, match="device='cuda'"):
        GGNNCalculator(potential, device="cuda")


def test_dtype_is_passed_on(potential_file):
    atoms = ethanol()
    energies = []
    for dtype in ("float64", "float32", None):
        atoms.calc = GGNNCalculator(potential_file, dtype=dtype)
        energies.append(atoms.get_potential_energy())
    assert energies[1] == energies[2]
    assert 0 < abs(energies[0] - energies[1]) < 1e-4


def test_results_survive_a_file(potential, tmp_path):
    atoms = crystal()
    atoms.calc = GGNNCalculator(potential)
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    write(tmp_path / "frame.traj", atoms)
    again = read(tmp_path / "frame.traj")
    assert again.get_potential_energy() == energy
    np.testing.assert_array_equal(again.get_forces(), forces)
    np.testing.assert_array_equal(again.get_stress(), stress)


def test_dynamics_conserves_energy(potential):
    """The error of velocity Verlet falls with the square of the time step; other errors would not."""
    errors = []
    for timestep in (0.2, 0.1):
        atoms = ethanol()
        atoms.calc = GGNNCalculator(potential)
        dynamics = VelocityVerlet(atoms, timestep=timestep * units.fs)
        totals = [atoms.get_total_energy()]
        for _ in range(round(10.0 / timestep)):
            dynamics.run(1)
            totals.append(atoms.get_total_energy())
        errors.append(np.abs(np.array(totals) - totals[0]).max())
    assert errors[0] < 1e-3
    assert 3.8 < errors[0] / errors[1] < 4.2
