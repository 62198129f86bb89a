"""Momenta of a thermostatted run: what is Maxwell-Boltzmann passes, and every way not to be is found."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from scipy.signal import lfilter

from ggnn_ff.errors import InputError
from ggnn_ff.stability.ensemble import ensemble_verdicts, free_velocities, mean_and_error, moving_degrees_of_freedom
from ggnn_ff.stability.frames import Energies, Trajectory
from ggnn_ff.stability.verdicts import momentum_verdicts

TEMPERATURE = 300.0
ETHANOL = molecule("CH3CH2OH")
MASSES = ETHANOL.get_masses()
N = len(MASSES)


def maxwell_boltzmann(n_frames=2000, temperature=TEMPERATURE, masses=MASSES, seed=0, removed=0):
    """Independent frames of all atoms; the common motions that `removed` counts are projected out."""
    rng = np.random.default_rng(seed)
    roots = np.sqrt(masses)[:, None]
    momenta = rng.normal(size=(n_frames, N, 3)) * roots * np.sqrt(units.kB * temperature)
    motions = [np.broadcast_to(axis, (N, 3)) for axis in np.eye(3)]
    motions += [np.cross(axis, ETHANOL.positions - ETHANOL.get_center_of_mass()) for axis in np.eye(3)]
    if removed:
        weighted = np.stack([(roots * motion).ravel() for motion in motions[:removed]], axis=1)
        basis = np.linalg.qr(weighted)[0]
        flat = (momenta / roots).reshape(n_frames, -1)
        momenta = (flat - flat @ basis @ basis.T).reshape(n_frames, N, 3) * roots
    return trajectory(momenta)


def trajectory(momenta, ensemble="langevin"):
    n_frames = len(momenta)
    return Trajectory(
        source="made",
        numbers=ETHANOL.numbers,
        masses=MASSES,
        positions=np.broadcast_to(ETHANOL.positions, (n_frames, N, 3)),
        cell=np.zeros((n_frames, 3, 3)),
        pbc=np.zeros(3, dtype=bool),
        momenta=momenta,
        ensemble=ensemble,
    )


def verdicts(frames, removed=0):
    return {v.name: v for v in ensemble_verdicts(frames, TEMPERATURE, 3 * N - removed)}


NAMES = ["temperature deviation", "kinetic energy width", "equipartition"]


@pytest.mark.parametrize("removed", [0, 3, 6])
def test_maxwell_boltzmann_momenta_pass(removed):
    found = verdicts(maxwell_boltzmann(removed=removed), removed)
    assert list(found) == NAMES
    assert [v.passed for v in found.values()] == [True, True, True]
    assert found["temperature deviation"].error == pytest.approx(300 * np.sqrt(2 / (3 * N - removed) / 2000), rel=0.5)


def test_nothing_is_printed_and_the_random_state_is_kept(capfd):
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    first = verdicts(maxwell_boltzmann(400))
    assert np.random.random() == expected  # noqa: NPY002
    assert first == verdicts(maxwell_boltzmann(400))
    assert capfd.readouterr() == ("", "")


def test_wrong_temperature_fails():
    deviation = verdicts(maxwell_boltzmann(temperature=330.0))["temperature deviation"]
    assert deviation.passed is False
    assert deviation.value == pytest.approx(30.0, abs=4 * deviation.error)


def test_wrong_number_of_degrees_of_freedom_fails():
    found = verdicts(maxwell_boltzmann(removed=6), removed=0)
    assert found["temperature deviation"].passed is False
    assert found["equipartition"].passed is False


def test_constant_kinetic_energy_fails_for_its_width():
    """Rescaled velocities have the right temperature at every step, and no fluctuation."""
    frames = maxwell_boltzmann()
    kinetic = np.sum(frames.momenta**2 / MASSES[:, None], axis=(1, 2)) / 2
    scale = np.sqrt(1.5 * N * units.kB * TEMPERATURE / kinetic)
    found = verdicts(replace(frames, momenta=frames.momenta * scale[:, None, None]))
    assert found["temperature deviation"].passed is True
    assert found["kinetic energy width"].passed is False
    assert found["kinetic energy width"].value == pytest.approx(-TEMPERATURE, rel=1e-3)


def test_one_hot_atom_fails_although_the_whole_has_the_right_temperature():
    frames = maxwell_boltzmann()
    scale = np.full(N, np.sqrt((N - 1.5) / (N - 1)))
    scale[4] = np.sqrt(1.5)
    found = verdicts(replace(frames, momenta=frames.momenta * scale[:, None]))
    assert found["temperature deviation"].passed is True
    assert found["equipartition"].passed is False
    assert found["equipartition"].value == pytest.approx(0.5 * TEMPERATURE, abs=0.1 * TEMPERATURE)
    assert "atom 4 " in found["equipartition"].explanation


def test_momenta_made_with_another_mass_fail():
    masses = MASSES.copy()
    masses[3:] *= 2  # deuterium
    found = verdicts(maxwell_boltzmann(masses=masses))
    assert found["temperature deviation"].passed is False
    one = MASSES.copy()
    one[0] *= 1.3
    assert verdicts(maxwell_boltzmann(masses=one))["equipartition"].passed is False


def test_short_run_is_not_judged():
    found = verdicts(maxwell_boltzmann(60))
    assert found["equipartition"].passed is None
    assert "run longer" in found["equipartition"].explanation
    width = verdicts(maxwell_boltzmann(100))["kinetic energy width"]
    assert abs(width.value) < width.threshold
    assert width.passed is None
    assert "twice its error exceeds" in width.explanation
    few = verdicts(maxwell_boltzmann(20))
    assert few["kinetic energy width"].value is None
    assert "30 are needed" in few["kinetic energy width"].explanation
    (nothing,) = verdicts(maxwell_boltzmann(8)).values()
    assert nothing.value is None


def test_without_a_thermostat_the_temperature_is_not_judged():
    for ensemble in ("nve", None):
        (only,) = ensemble_verdicts(replace(maxwell_boltzmann(), ensemble=ensemble), 500.0, 3 * N)
        assert (only.name, only.passed) == ("temperature", None)
        assert only.value == pytest.approx(TEMPERATURE, abs=4 * only.error)


@pytest.mark.parametrize("removed", [0, 3, 6])
def test_degrees_of_freedom_are_seen_in_the_momenta(removed):
    frames = maxwell_boltzmann(removed=removed)
    assert moving_degrees_of_freedom(frames) == 3 * N - removed
    periodic = replace(frames, pbc=np.array([True, True, False]))
    assert moving_degrees_of_freedom(periodic) == 3 * N - min(removed, 3)
    found = ensemble_verdicts(frames, TEMPERATURE, None)
    assert [v.passed for v in found] == [True, True, True]
    assert f"with {3 * N - removed} degrees of freedom, 3N less" in found[0].explanation
    kinetic = Energies(None, np.zeros(len(frames)), np.ones(len(frames)))
    assert moving_degrees_of_freedom(replace(frames, momenta=None, energies=kinetic)) == 3 * N


def test_atoms_that_are_held_have_no_degrees_of_freedom():
    frames = maxwell_boltzmann()
    frames.momenta[:, :2] = 0.0
    assert moving_degrees_of_freedom(frames) == 3 * (N - 2)
    found = {v.name: v for v in ensemble_verdicts(frames, TEMPERATURE, None)}
    assert [found[name].passed for name in NAMES] == [True, True, None]
    assert "2 atoms never move" in found["equipartition"].explanation
    assert [v.passed for v in momentum_verdicts(replace(frames, ensemble="nve"))] == [None, None]


def test_rigid_bonds_are_seen_and_leave_the_temperature_to_who_knows_them():
    frames = maxwell_boltzmann(200)
    places = np.random.default_rng(0).normal(size=(200, N, 3)) * 0.03 + ETHANOL.positions
    assert ensemble_verdicts(replace(frames, positions=places), TEMPERATURE, None)[0].value is not None
    oxygen = int(np.flatnonzero(ETHANOL.numbers == 8)[0])
    hydrogen = min(np.flatnonzero(ETHANOL.numbers == 1), key=lambda k: ETHANOL.get_distance(k, oxygen))
    places[:, hydrogen] = places[:, oxygen] + ETHANOL.positions[hydrogen] - ETHANOL.positions[oxygen]
    rigid = replace(frames, positions=places)
    (only,) = ensemble_verdicts(rigid, TEMPERATURE, None)
    assert only.value is None
    assert f"O{oxygen}-H{hydrogen} keeps its length" in only.explanation
    assert ensemble_verdicts(rigid, TEMPERATURE, 3 * N - 1)[0].value is not None


def test_linear_molecules_have_two_rotations():
    line = np.zeros((50, N, 3))
    line[:, :, 0] = np.arange(N)
    momenta = np.zeros((50, N, 3))
    momenta[:, :, 0] = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -0.5, -0.5]
    still = replace(trajectory(momenta), positions=line)
    assert moving_degrees_of_freedom(still) == 3 * N - 5
    momenta[:, 0, 1], momenta[:, 1, 1] = 5.0, -5.0
    assert moving_degrees_of_freedom(still) == 3 * N - 3


def test_bath_without_a_temperature_says_what_to_give():
    mean, missing = ensemble_verdicts(maxwell_boltzmann(), None, 3 * N)
    assert (mean.name, mean.passed) == ("temperature", None)
    assert mean.value == pytest.approx(TEMPERATURE, abs=4 * mean.error)
    assert (missing.name, missing.value, missing.passed) == ("temperature deviation", None, None)
    assert "give `temperature`" in missing.explanation


def test_kinetic_energies_serve_where_there_are_no_momenta():
    frames = maxwell_boltzmann()
    kinetic = np.sum(frames.momenta**2 / MASSES[:, None], axis=(1, 2)) / 2
    energies = Energies(None, np.zeros_like(kinetic), kinetic)
    found = verdicts(replace(frames, momenta=None, energies=energies))
    expected = verdicts(frames)["temperature deviation"]
    assert found["temperature deviation"].value == pytest.approx(expected.value)
    assert found["temperature deviation"].passed is True
    assert found["equipartition"].value is None
    (nothing,) = verdicts(replace(frames, momenta=None)).values()
    assert "no momenta" in nothing.explanation


def test_atoms_that_cannot_move_freely_are_not_judged():
    found = verdicts(maxwell_boltzmann(removed=5), removed=5)
    assert found["temperature deviation"].passed is True
    assert found["equipartition"].value is None
    line = np.zeros((1, 3, 3))
    line[0, :, 0] = [0, 1, 2]
    assert free_velocities(line, np.ones((1, 3, 3)), np.ones(3), 6) is None


def autoregressive(correlation, seed=1, n=20_000):
    noise = np.random.default_rng(seed).normal(size=n) * np.sqrt(1 - correlation**2)
    return lfilter([1.0], [1.0, -correlation], noise)


def test_error_of_a_mean_knows_correlation():
    """The mean of an autoregressive series has the variance (1 + c) / (1 - c) / n."""
    for correlation in (0.0, 0.95, 0.998):
        expected = np.sqrt((1 + correlation) / (1 - correlation) / 20_000)
        found = [mean_and_error(autoregressive(correlation, seed)) for seed in range(30)]
        assert max(abs(mean) for mean, _ in found) < 4 * expected
        assert np.mean([error for _, error in found]) == pytest.approx(expected, rel=0.2)


def test_wrong_input_is_said(monkeypatch):
    with pytest.raises(InputError, match="`temperature` must be positive"):
        ensemble_verdicts(maxwell_boltzmann(20), 0.0, 3)
    for count in (0, 3 * N + 1):
        with pytest.raises(InputError, match="`degrees_of_freedom` must be from 1 to 3N = 27"):
            ensemble_verdicts(maxwell_boltzmann(20), 300.0, count)
    with pytest.raises(InputError, match="at least 16 values"):
        mean_and_error(np.ones(3))
    monkeypatch.setitem(sys.modules, "physical_validation", None)
    with pytest.raises(InputError, match=r"ggnn-ff\[analysis\]"):
        verdicts(maxwell_boltzmann(40))
