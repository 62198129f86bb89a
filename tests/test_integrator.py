"""Errors of velocity Verlet shrink with the square of the time step, faults of a potential do not."""

import sys

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixBondLengths
from broken_calculators import (
    Curl,
    EnergyJump,
    Float32,
    Half,
    Morse,
    NeverRebuilt,
    Noise,
    SeldomRebuilt,
    Unconverged,
    cluster,
)

from ggnn_ff.errors import InputError
from ggnn_ff.stability.integrator import (
    convergence_verdict,
    reversibility_verdict,
    scaling_verdicts,
    time_step_scaling,
    total_energies,
)
from ggnn_ff.stability.verdicts import DRIFT_THRESHOLD

STEPS = [4.0, 2.0, 1.0]
DURATION = 200.0


class Oscillator(Calculator):
    """One atom on a spring of 10 eV/angstrom^2."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 5.0 * float(np.sum(atoms.positions**2)), "forces": -10.0 * atoms.positions}


def moving(calculator):
    atoms = cluster()
    atoms.calc = calculator
    widths = np.sqrt(300 * units.kB * atoms.get_masses())[:, None]
    atoms.set_momenta(widths * np.random.default_rng(0).standard_normal((6, 3)))
    return atoms


def verdicts_of(calculator):
    """Exponent, drift and physical_validation's opinion."""
    totals = total_energies(moving(calculator), STEPS, DURATION)
    return [*scaling_verdicts(time_step_scaling(STEPS, totals, DURATION, 6)), convergence_verdict(STEPS, totals)]


def waves(power, floor=0.0, slope=0.0, n=400):
    """Total energies of 1 meV * (h / 1 fs)^power, a wave that does not shrink and a drift in eV/ps, over 1 ps."""
    t = np.linspace(0.0, 1.0, n)
    wave, other = np.sin(40 * np.pi * t), np.sin(24 * np.pi * t)
    return [1e-3 * step**power * wave + floor * other + slope * t - 2000.0 for step in STEPS]


def scaling_of(totals, n_atoms=1):
    return time_step_scaling(STEPS, totals, 1000.0, n_atoms)


# --- known answers --------------------------------------------------------------------------------------------------


def test_harmonic_oscillator_fluctuates_as_calculated():
    """Verlet keeps p^2 / 2m + (1 - (w h / 2)^2) k x^2 / 2, so that E fluctuates with (w h)^2 / 8 k x^2."""
    atoms = Atoms("Ne", positions=[[0.3, 0.0, 0.0]], momenta=[[0.0, 1e-12, 0.0]])
    atoms.calc = Oscillator()
    frequency = np.sqrt(10.0 / atoms.get_masses()[0])
    duration = 4 * round(10 * 2 * np.pi / frequency / units.fs / 4)  # about 10 periods
    scaling = time_step_scaling(STEPS, total_energies(atoms, STEPS, duration), duration, 1)
    amplitude = (frequency * scaling.timesteps_fs * units.fs) ** 2 / 8 * 10.0 * 0.3**2  # of E, times cos^2
    np.testing.assert_allclose(scaling.fluctuations, 1000.0 * amplitude / np.sqrt(8), rtol=2e-2)
    assert scaling.exponent == pytest.approx(2.0, abs=0.02)
    assert all(verdict.passed for verdict in scaling_verdicts(scaling))


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0, 4.0])
def test_exponent_is_that_of_the_series(power):
    scaling = scaling_of(waves(power))
    assert scaling.exponent == pytest.approx(power, abs=1e-6)
    assert scaling.exponent_error < 1e-6
    np.testing.assert_allclose(scaling.timesteps_fs, [1, 2, 4])
    np.testing.assert_allclose(scaling.fluctuations, np.array([1, 2, 4]) ** power / np.sqrt(2), rtol=0.01)
    verdict = scaling_verdicts(scaling)[0]
    assert verdict.value == scaling.exponent
    assert "2 for a symplectic integrator" in verdict.explanation
    assert verdict.passed is (None if power > 2 else power == 2)


def test_exponent_has_its_error():
    """Of series with noise, the spread of the exponents."""
    found = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        totals = [step**2 * np.cumsum(random.standard_normal(400)) for step in STEPS]
        scaling = scaling_of(totals)
        found.append((scaling.exponent, scaling.exponent_error))
    exponents, errors = np.array(found).T
    assert np.mean(exponents) == pytest.approx(2.0, abs=0.3)
    assert np.std(exponents) / 2 < np.median(errors) < 2 * np.std(exponents)


def test_drift_has_its_slope_and_is_judged_apart_from_the_fluctuation():
    scaling = scaling_of(waves(2.0, slope=0.01), n_atoms=2)
    assert scaling.drift == pytest.approx(5.0, abs=0.5)
    np.testing.assert_allclose(scaling.fluctuations, scaling_of(waves(2.0), n_atoms=2).fluctuations, rtol=1e-6)
    exponent, drift = scaling_verdicts(scaling)
    assert drift.passed is False
    assert exponent.passed
    assert convergence_verdict(STEPS, waves(2.0, slope=0.01)).value < 1e-6


def test_drift_that_is_too_uncertain_is_not_judged():
    t = np.linspace(0.0, 1.0, 400)
    slow = 1e-3 * np.sin(3 * np.pi * t)  # a wave and a half: a slope of its own, which changes with each block
    drift = scaling_verdicts(scaling_of([energies + slow for energies in waves(2.0)]))[1]
    assert 2 * drift.error > DRIFT_THRESHOLD
    assert drift.passed is None
    assert "run longer" in drift.explanation


# --- potentials -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calculator", [Morse, Float32, Unconverged])
def test_right_potential_has_the_exponent_of_the_integrator(calculator):
    exponent, drift, other = verdicts_of(calculator())
    assert exponent.passed
    assert exponent.value == pytest.approx(2.0, abs=0.1)
    assert "errors of the integrator" in exponent.explanation
    assert drift.passed
    assert other.value < 0.15


@pytest.mark.parametrize("calculator", [Curl(), EnergyJump(3.6), Noise()])
def test_fault_of_the_potential_does_not_shrink(calculator):
    exponent, drift, other = verdicts_of(calculator)
    assert exponent.passed is False
    assert exponent.value < 1.1
    assert "no time step cures it" in exponent.explanation
    assert drift.passed is False
    assert other.value > 0.4


def test_the_other_opinion_is_a_figure_that_contradicts_no_verdict():
    for totals, passed, low, high in (
        (waves(2.0), True, 0.0, 1e-6),
        (waves(2.0, floor=2e-3), False, 0.4, 0.75),
        (waves(4.0), None, 2.9, 3.1),  # near the limit of stability, which is not the potential's fault
    ):
        assert scaling_verdicts(scaling_of(totals))[0].passed is passed
        other = convergence_verdict(STEPS, totals)
        assert other.passed is None
        assert low <= other.value <= high


# --- time reversibility ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calculator", [Morse, Curl, Half, NeverRebuilt])
def test_force_of_the_positions_alone_is_reversible(calculator):
    """Whatever else is wrong with it."""
    verdict = reversibility_verdict(moving(calculator()))
    assert verdict.passed
    assert verdict.value < 1e-9


def test_noise_of_convergence_is_not_taken_for_a_memory():
    assert reversibility_verdict(moving(Unconverged())).passed


@pytest.mark.parametrize("calculator", [SeldomRebuilt(3.6), Noise()])
def test_force_that_depends_on_more_is_not_reversible(calculator):
    assert reversibility_verdict(moving(calculator)).passed is False


# --- what is given --------------------------------------------------------------------------------------------------


def test_run_that_blows_up_is_judged_by_the_smallest_time_step():
    totals = waves(2.0)
    totals[0][100:] = np.nan
    exponent, drift = scaling_verdicts(scaling_of(totals, n_atoms=10))
    assert exponent.passed is None
    assert "4 fs" in exponent.explanation
    assert drift.passed
    assert convergence_verdict(STEPS, totals).value is None
    totals[2][100:] = np.inf
    assert [verdict.passed for verdict in scaling_verdicts(scaling_of(totals))] == [False, False]


def test_constant_energy_has_no_exponent():
    totals = waves(2.0)
    totals[2][:] = -2000.0 + 1e-13 * np.arange(400)
    scaling = scaling_of(totals)
    assert scaling.exponent is None
    assert scaling_verdicts(scaling)[0].passed is None
    assert convergence_verdict(STEPS, totals).value is None


def test_runs_start_alike_and_have_a_row_per_step():
    atoms = moving(Morse())
    positions = atoms.positions.copy()
    totals = total_energies(atoms, STEPS, DURATION)
    assert [len(energies) for energies in totals] == [51, 101, 201]
    assert len({energies[0] for energies in totals}) == 1
    assert totals[0][0] == pytest.approx(atoms.get_total_energy(), abs=1e-12)
    np.testing.assert_array_equal(atoms.positions, positions)


def test_constraints_are_kept():
    """Bonds that are held take part in the dynamics; Verlet remains of second order."""
    atoms = moving(Morse())
    atoms.set_constraint(FixBondLengths([[0, 1]], tolerance=1e-12))
    atoms.set_momenta(atoms.get_momenta())
    totals = total_energies(atoms, STEPS, DURATION)
    assert np.ptp(totals[2] - total_energies(moving(Morse()), STEPS, DURATION)[2]) > 1e-4
    assert scaling_of(totals).exponent == pytest.approx(2.0, abs=0.1)


def test_wrong_input_is_refused():
    still = cluster()
    still.calc = Morse()
    with pytest.raises(InputError, match="`atoms` must have momenta"):
        total_energies(still, STEPS, DURATION)
    for timestep in (3.0, -1.0, 0.0):
        with pytest.raises(InputError, match="`timesteps_fs` must divide the duration"):
            total_energies(moving(Morse()), [timestep], 200.0)
    totals = waves(2.0)
    with pytest.raises(InputError, match="at least three different positive"):
        time_step_scaling([1.0, 2.0], totals[:2], 1000.0, 1)
    with pytest.raises(InputError, match="at least three different positive"):
        time_step_scaling([1.0, 2.0, 2.0], totals, 1000.0, 1)
    with pytest.raises(InputError, match="one series for each of 3 time steps, got 2"):
        convergence_verdict(STEPS, totals[:2])
    with pytest.raises(InputError, match="at least 16 energies"):
        scaling_of(waves(2.0, n=10))


def test_missing_physical_validation_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "physical_validation", None)
    with pytest.raises(InputError, match=r"ggnn-ff\[analysis\]"):
        convergence_verdict(STEPS, waves(2.0))
