"""Energy drift with its error, and momentum conservation, on data with known answers."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones
from ase.md.verlet import VelocityVerlet

from ggnn_ff.errors import InputError
from ggnn_ff.stability.conservation import (
    LEAST_ROWS,
    angular_momentum_change,
    energy_conservation,
    linear_momentum_change,
)
from ggnn_ff.stability.verdicts import drift_verdict

N_ATOMS = 9


def correlated_noise(rng, n_series, n_rows, correlation):
    """(n_series, n_rows) with unit variance and autocorrelation exp(-k / correlation)."""
    memory = np.exp(-1.0 / correlation)
    kicks = rng.normal(size=(n_series, n_rows)) * np.sqrt(1 - memory**2)
    kicks[:, 0] /= np.sqrt(1 - memory**2)
    noise = np.empty_like(kicks)
    noise[:, 0] = kicks[:, 0]
    for row in range(1, n_rows):
        noise[:, row] = memory * noise[:, row - 1] + kicks[:, row]
    return noise


def total_energy(total_meV_per_atom):
    """Potential and kinetic energy, eV, with this total; the kinetic one oscillates by 1 meV/atom."""
    kinetic = 1e-3 * N_ATOMS * np.sin(np.arange(len(total_meV_per_atom)))
    return 1e-3 * N_ATOMS * total_meV_per_atom - kinetic, kinetic


@pytest.mark.parametrize("correlation", [0.1, 10.0, 30.0])
def test_slope_is_recovered_within_an_error_that_is_not_underestimated(correlation):
    n_series, n_rows, slope = 200, 2000, 0.3
    times_fs = np.arange(n_rows) * 5.0
    noise = correlated_noise(np.random.default_rng(1), n_series, n_rows, correlation)
    results = [
        energy_conservation(times_fs, *total_energy(slope * times_fs / 1000 + 0.5 * row - 1e6), N_ATOMS)
        for row in noise
    ]
    drifts = np.array([result.drift for result in results])
    errors = np.array([result.drift_error for result in results])
    spread = drifts.std()
    assert drifts.mean() == pytest.approx(slope, abs=4 * spread / np.sqrt(n_series))
    assert 0.9 < errors.mean() / spread < 1.5
    assert np.mean(np.abs(drifts - slope) < 2 * errors) > 0.9
    white = 0.5 * np.sqrt(12 / n_rows) / (times_fs[-1] / 1000)  # the error if rows were independent
    if correlation >= 10:
        assert errors.mean() > 3 * white


def test_exact_line_has_no_error_and_no_fluctuation():
    times_fs = np.sort(np.random.default_rng(0).uniform(0, 1e5, 400))  # unevenly spaced
    result = energy_conservation(times_fs, *total_energy(0.02 * times_fs / 1000 - 4.6e5), N_ATOMS)
    assert result.drift == pytest.approx(0.02, rel=1e-6)
    assert result.drift_error < 1e-8
    assert result.fluctuation < 1e-6
    assert result.duration_ps == pytest.approx(np.ptp(times_fs) / 1000)


def test_fluctuation_is_root_mean_square_about_the_line_and_relative_to_the_kinetic_energy():
    times_fs = np.arange(4000.0)
    wave = 0.2 * np.sin(2 * np.pi * times_fs / 10)
    potential, kinetic = total_energy(wave + times_fs / 1000)
    result = energy_conservation(times_fs, potential, kinetic, N_ATOMS)
    assert result.fluctuation == pytest.approx(0.2 / np.sqrt(2), rel=1e-3)
    assert result.fluctuation_ratio == pytest.approx(0.2, rel=1e-3)  # kinetic: 1 / sqrt(2) meV/atom


def test_constant_kinetic_energy_gives_no_ratio():
    times_fs = np.arange(100.0)
    assert energy_conservation(times_fs, times_fs, np.ones(100), N_ATOMS).fluctuation_ratio is None


def test_thermal_drift_is_per_degree_of_freedom_over_kt_at_any_number_of_them():
    """9 atoms at 300 K that gain 1 meV/atom/ps, whether 3N or 3N - 6 degrees of freedom share the kinetic energy."""
    times_fs = np.arange(1000.0)
    for degrees in (3 * N_ATOMS, 3 * N_ATOMS - 6):
        kinetic = np.full(1000, 0.5 * degrees * units.kB * 300)
        result = energy_conservation(times_fs, 1e-3 * N_ATOMS * times_fs / 1000 - kinetic, kinetic, N_ATOMS)
        expected = N_ATOMS / (degrees * units.kB * 300)  # 1 meV/ps = 1 eV/ns
        assert result.thermal_drift == pytest.approx(expected, rel=1e-6)
        assert result.thermal_drift_error == pytest.approx(expected * result.drift_error, rel=1e-6)
    assert energy_conservation(times_fs, times_fs, np.zeros(1000), N_ATOMS).thermal_drift is None


def test_drift_is_judged_only_where_twice_its_error_leaves_no_doubt():
    def passed(drift, error):
        return drift_verdict("energy drift", drift, error, 0.5, "").passed

    assert [passed(sign * 0.3, 0.09) for sign in (1, -1)] == [True, True]
    assert [passed(sign * 0.7, 0.09) for sign in (1, -1)] == [False, False]
    assert [passed(drift, 0.11) for drift in (0.3, -0.3, 0.7, -0.7)] == [None] * 4
    short = drift_verdict("energy drift", -1.8, 25.0, 0.5, "slope")
    assert short.passed is None
    assert "run longer" in short.explanation


def test_too_few_rows_are_refused():
    times_fs = np.arange(LEAST_ROWS - 1.0)
    with pytest.raises(InputError, match=f"at least {LEAST_ROWS} rows"):
        energy_conservation(times_fs, times_fs, times_fs, N_ATOMS)


def test_different_lengths_are_refused():
    with pytest.raises(InputError, match="100, 99 and 100"):
        energy_conservation(np.arange(100.0), np.zeros(99), np.zeros(100), N_ATOMS)


class Broken(Calculator):
    """Lennard-Jones forces with something added that is no gradient."""

    implemented_properties = ("energy", "forces")

    def __init__(self, curl=0.0, pull=0.0):
        super().__init__()
        self.inner, self.curl, self.pull = LennardJones(sigma=2.5, epsilon=0.05, rc=20.0), curl, pull

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        inner = atoms.copy()
        inner.calc = self.inner
        arms = atoms.positions - atoms.get_center_of_mass()
        swirl = self.curl * np.cross([0.0, 0.0, 1.0], arms)
        forces = inner.get_forces() + swirl + [self.pull, 0.0, 0.0]
        self.results = {"energy": inner.get_potential_energy(), "forces": forces}


def simulate(calculator, steps=600, timestep_fs=4.0):
    """Seven argon-like atoms near their minimum; positions, momenta, masses, times, potential, kinetic."""
    corners = [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]
    atoms = Atoms("Ar6", positions=2.0 * np.array(corners))
    rng = np.random.default_rng(0)
    momenta = rng.normal(size=(6, 3)) * np.sqrt(20 * units.kB * atoms.get_masses())[:, None]
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    atoms.calc = calculator
    rows = []
    dynamics = VelocityVerlet(atoms, timestep_fs * units.fs)
    dynamics.attach(
        lambda: rows.append(
            (
                atoms.positions.copy(),
                atoms.get_momenta(),
                atoms.get_potential_energy(),
                atoms.get_kinetic_energy(),
            )
        )
    )
    dynamics.run(steps)
    positions, momenta, potential, kinetic = (np.array(column) for column in zip(*rows, strict=True))
    return positions, momenta, atoms.get_masses(), np.arange(len(rows)) * timestep_fs, potential, kinetic


def test_lennard_jones_dynamics_conserve_everything():
    positions, momenta, masses, times_fs, potential, kinetic = simulate(Broken())
    energy = energy_conservation(times_fs, potential, kinetic, 6)
    assert abs(energy.drift) < 0.05
    assert abs(energy.drift) < 3 * energy.drift_error
    assert energy.fluctuation_ratio < 0.05
    assert linear_momentum_change(momenta).relative < 1e-10
    assert angular_momentum_change(positions, momenta, masses).relative < 1e-10


def test_halving_the_time_step_quarters_the_fluctuation():
    coarse, fine = (simulate(Broken(), round(2400 / step), step) for step in (8.0, 4.0))
    ratio = energy_conservation(*coarse[3:], 6).fluctuation / energy_conservation(*fine[3:], 6).fluctuation
    assert ratio == pytest.approx(4.0, rel=0.25)


def test_force_that_is_no_gradient_drifts():
    positions, momenta, masses, times_fs, potential, kinetic = simulate(Broken(curl=5e-3))
    energy = energy_conservation(times_fs, potential, kinetic, 6)
    assert energy.drift > 0.5
    assert energy.drift > 3 * energy.drift_error
    assert linear_momentum_change(momenta).relative < 1e-10  # the curl pulls no net force ...
    assert angular_momentum_change(positions, momenta, masses).relative > 1e-2  # ... but a torque


def test_net_force_changes_the_linear_momentum_only():
    positions, momenta, masses, *_ = simulate(Broken(pull=1e-4), steps=200)
    assert linear_momentum_change(momenta).relative > 1e-2
    assert angular_momentum_change(positions, momenta, masses).relative < 1e-10


def test_angular_momentum_does_not_depend_on_where_the_molecule_is_or_flies():
    rng = np.random.default_rng(0)
    positions, momenta, masses = rng.normal(size=(5, 4, 3)), rng.normal(size=(5, 4, 3)), rng.uniform(1, 9, 4)
    flight = np.arange(5)[:, None, None] * np.array([10.0, -3.0, 1.0])
    moved = angular_momentum_change(positions + flight, momenta + masses[:, None] * [0.4, 0.1, 0.2], masses)
    still = angular_momentum_change(positions, momenta, masses)
    assert moved.largest_change == pytest.approx(still.largest_change, rel=1e-12)
    assert moved.scale == pytest.approx(still.scale, rel=1e-12)


def test_diatomic_that_only_vibrates_has_no_angular_momentum_to_lose():
    phase = np.linspace(0, 20, 200)
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    ends = np.array([1.0, -1.0])[:, None] * axis
    positions = (0.5 + 0.05 * np.sin(phase))[:, None, None] * ends
    momenta = np.cos(phase)[:, None, None] * ends
    assert angular_momentum_change(positions, momenta, np.ones(2)).relative < 1e-12
