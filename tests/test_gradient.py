"""A right potential passes whatever its noise; each defect is caught by the check that is meant for it."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from broken_calculators import (
    Anisotropic,
    Chiral,
    EnergyJump,
    Field,
    Float32,
    Indexed,
    Morse,
    NeverRebuilt,
    ScaledForces,
    Unconverged,
    WrongStressSign,
    cluster,
    crystal,
)

from ggnn_ff.errors import InputError
from ggnn_ff.stability.gradient import (
    GRADIENT_THRESHOLD,
    _slope,
    continuity_verdicts,
    energy_noise,
    gradient_verdict,
    judge,
    loop_verdict,
    stress_verdict,
)
from ggnn_ff.stability.integrator import (
    reversibility_verdict,
    scaling_verdicts,
    time_step_scaling,
    total_energies,
)
from ggnn_ff.stability.smoothness import calculator_surface
from ggnn_ff.stability.symmetry import symmetry_verdicts

CUTOFF = 3.6  # of calculators that jump there: random lines take pairs of the cluster across


def with_calculator(atoms, calculator):
    atoms.calc = calculator
    return atoms


class Quadratic(Calculator):
    """F = -(S + A) x: the symmetric part is a gradient, the antisymmetric part is not."""

    implemented_properties = ("energy", "forces")

    def __init__(self, n, symmetric=1.0, antisymmetric=0.0, constant=0.0):
        super().__init__()
        matrix = np.random.default_rng(0).normal(size=(n, n))
        self.symmetric = symmetric * (matrix + matrix.T)
        self.antisymmetric = antisymmetric * (matrix - matrix.T)
        self.constant = constant

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x = atoms.positions.ravel()
        forces = -(self.symmetric + self.antisymmetric) @ x
        self.results = {"energy": self.constant + 0.5 * x @ self.symmetric @ x, "forces": forces.reshape(-1, 3)}


class NotANumber(Morse):
    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] = np.full((len(atoms), 3), np.nan)


# --- right potentials ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calculator", [Morse, Anisotropic, Chiral, Indexed, Field, NeverRebuilt])
def test_forces_of_an_energy_are_its_gradient_to_rounding(calculator):
    atoms = with_calculator(cluster(), calculator())
    gradient, loop = gradient_verdict(atoms), loop_verdict(atoms)
    assert gradient.passed
    assert gradient.value < 1e-10
    assert loop.passed
    assert loop.value < 1e-12


def test_forces_in_a_crystal_are_the_gradient_to_rounding():
    verdict = gradient_verdict(with_calculator(crystal(), Morse()), n_directions=2)
    assert verdict.passed
    assert verdict.value < 1e-9


def test_smooth_potential_has_no_jumps():
    energy, force, largest = continuity_verdicts(with_calculator(cluster(), Morse()), n_lines=4)
    assert energy.passed
    assert force.passed
    assert max(energy.value, force.value) < 1e-9
    assert largest.passed


@pytest.mark.parametrize("calculator", [Float32, Unconverged])
def test_noise_makes_no_right_potential_fail(calculator):
    atoms = with_calculator(cluster(), calculator())
    verdicts = [gradient_verdict(atoms), loop_verdict(atoms), *continuity_verdicts(atoms, n_lines=1)]
    assert all(verdict.passed is not False for verdict in verdicts)
    assert [verdict.passed for verdict in verdicts[1:]] == [True, True, True, True]
    assert stress_verdict(with_calculator(crystal(), calculator())).passed is not False


def test_noise_that_hides_the_answer_is_said():
    verdict = gradient_verdict(with_calculator(cluster(), Unconverged()))
    assert verdict.passed is None
    assert verdict.error > GRADIENT_THRESHOLD
    assert "compute in float64" in verdict.explanation
    assert gradient_verdict(with_calculator(cluster(), Float32())).passed


def test_extended_tight_binding_passes():
    tblite = pytest.importorskip("tblite.ase")
    atoms = with_calculator(molecule("CH3CH2OH"), tblite.TBLite(method="GFN2-xTB", verbosity=0))
    verdicts = [
        gradient_verdict(atoms, n_directions=4),
        loop_verdict(atoms, n_loops=4, n_points=16),
        *continuity_verdicts(atoms, n_lines=1),
        reversibility_verdict(atoms, n_steps=40),
        *[verdict for verdict in symmetry_verdicts([atoms], n_trials=1) if verdict.value is not None],
    ]
    widths = np.sqrt(300 * units.kB * atoms.get_masses())[:, None]
    atoms.set_momenta(widths * np.random.default_rng(0).standard_normal((9, 3)))
    totals = total_energies(atoms, [1.0, 0.5, 0.25], 40.0)
    exponent, drift = scaling_verdicts(time_step_scaling([1.0, 0.5, 0.25], totals, 40.0, 9))
    assert len(verdicts) == 14
    assert [verdict.name for verdict in [*verdicts, exponent] if not verdict.passed] == []
    assert drift.passed is not False  # 40 fs are too short to tell


# --- defects ------------------------------------------------------------------------------------------------------


def test_forces_of_another_energy_do_no_work_around_loops_but_are_caught():
    atoms = with_calculator(cluster(), ScaledForces())
    assert loop_verdict(atoms).passed
    gradient = gradient_verdict(atoms)
    assert gradient.passed is False
    assert gradient.value == pytest.approx(1e-3, rel=0.5)


def test_jump_has_its_size():
    """Two atoms on a line through the cutoff: the pair energy there."""
    atoms = with_calculator(Atoms("Li2", [[0, 0, 0], [0, 0, CUTOFF]]), EnergyJump(CUTOFF))
    energy, _, _ = continuity_verdicts(atoms, n_lines=4)
    jump = float(energy.explanation.split()[1])
    assert jump == pytest.approx(0.75 * abs(atoms.calc.pair(CUTOFF)), rel=1e-2)


@pytest.mark.parametrize("part", ["energy", "forces"])
def test_numbers_that_are_not_finite_fail(part):
    atoms = with_calculator(cluster(), NotANumber())
    verdict = gradient_verdict(atoms) if part == "energy" else loop_verdict(atoms)
    assert verdict.passed is False
    assert "not finite" in verdict.explanation


# --- figures with known values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [1e-3, 1e-1])
def test_difference_has_its_size(part):
    """|F + grad E| / |F| = |A x| / |(S + A) x|, at random x about the origin."""
    atoms = with_calculator(Atoms("H20", positions=np.zeros((20, 3))), Quadratic(60, antisymmetric=part))
    verdict = gradient_verdict(atoms, n_directions=50)
    assert verdict.value == pytest.approx(part, rel=0.2)


def test_work_of_a_rotation_has_its_size():
    """F = A x alone does work at every point of a circle, always of one sign."""
    atoms = with_calculator(Atoms("H", positions=np.zeros((1, 3))), Quadratic(3, symmetric=0.0, antisymmetric=1.0))
    assert loop_verdict(atoms).value == pytest.approx(1.0, abs=0.3)
    right = with_calculator(Atoms("H", positions=np.zeros((1, 3))), Quadratic(3))
    assert loop_verdict(right).value < 1e-14


@pytest.mark.parametrize("noise", [1e-9, 1e-6, 1e-3])
def test_noise_of_an_energy_is_measured(noise):
    random = np.random.default_rng(1)
    quiet = calculator_surface(with_calculator(cluster(), Morse()))

    def noisy(positions):
        energies, forces = quiet(positions)
        return energies + noise * random.standard_normal(len(positions)), forces

    measured = [energy_noise(noisy, cluster().positions, seed) for seed in range(20)]
    assert np.mean(measured) == pytest.approx(noise, rel=0.15)
    assert energy_noise(quiet, cluster().positions) < 1e-13


def test_rounding_of_float32_is_measured_as_noise():
    quiet = calculator_surface(with_calculator(cluster(), Quadratic(18, constant=-4000.0)))

    def rounded(positions):
        energies, forces = quiet(positions)
        return energies.astype(np.float32).astype(np.float64), forces

    assert energy_noise(rounded, cluster().positions) == pytest.approx(2.4e-4 / np.sqrt(12), rel=0.5)


@pytest.mark.parametrize("noise", [1e-14, 1e-9, 1e-6])
def test_step_is_not_taken_where_two_slopes_agree_by_chance(noise):
    """A ripple that the larger steps are blind to; whatever they are, one of 50 has two slopes that nearly agree."""
    random = np.random.default_rng(0)

    def energies(x):
        return np.sin(x) + 0.01 * np.sin(300.0 * x) + noise * random.standard_normal(len(x))

    for largest_step in 0.05 * 2.0 ** np.linspace(0.0, 1.0, 50):
        slope, error = _slope(energies, largest_step, noise)
        assert abs(slope - 4.0) < 4 * error
        assert error < 1e4 * noise + 3e-5  # of a slope of 4


def test_verdict_knows_what_noise_hides():
    assert judge("", 1.0, 9.0, 2.0, "").passed is True
    assert judge("", 3.0, 0.1, 2.0, "").passed is False
    assert judge("", 3.0, 0.6, 2.0, "").passed is None
    assert judge("", float("nan"), 0.0, 2.0, "").passed is False


# --- stress -------------------------------------------------------------------------------------------------------


def test_stress_is_the_derivative_by_strain():
    verdict = stress_verdict(with_calculator(crystal(), Morse()))
    assert verdict.passed
    assert verdict.value < 1e-9


def test_wrong_sign_of_the_stress_is_caught():
    verdict = stress_verdict(with_calculator(crystal(), WrongStressSign()))
    assert verdict.passed is False
    assert verdict.value == pytest.approx(2.0, abs=1e-6)


def test_stress_in_single_precision_passes():
    assert stress_verdict(with_calculator(crystal(), Float32())).passed


def test_stress_that_cannot_be_is_not_judged():
    assert "periodic" in stress_verdict(with_calculator(cluster(), Morse())).explanation
    without = stress_verdict(with_calculator(crystal(), Quadratic(6)))
    assert without.passed is None
    assert "no stress" in without.explanation


# --- what is given --------------------------------------------------------------------------------------------------


def test_atoms_without_forces_are_not_judged():
    atoms = with_calculator(Atoms("H", positions=np.zeros((1, 3))), Quadratic(3, symmetric=0.0))
    verdicts = [gradient_verdict(atoms), loop_verdict(atoms), *continuity_verdicts(atoms)]
    assert [(verdict.value, verdict.passed) for verdict in verdicts] == [*4 * [(None, None)], (0.0, True)]


def test_constraints_are_left_out_and_atoms_stay():
    atoms = with_calculator(cluster(), Morse())
    free = gradient_verdict(atoms, n_directions=2)
    positions = atoms.positions.copy()
    atoms.set_constraint(FixAtoms([0, 1]))
    assert gradient_verdict(atoms, n_directions=2) == free
    assert len(atoms.constraints) == 1
    np.testing.assert_array_equal(atoms.positions, positions)


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="`atoms` must carry a calculator"):
        gradient_verdict(cluster())
    with pytest.raises(InputError, match="`n_points` must be even"):
        loop_verdict(with_calculator(cluster(), Morse()), n_points=7)
