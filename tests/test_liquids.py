"""Radial distribution functions and diffusion of systems whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk

from ggnn_ff.errors import InputError
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.liquids import (
    BIN_WIDTH,
    COLLAPSE_THRESHOLD,
    collapse_verdict,
    diffusion,
    diffusion_verdicts,
    mean_square_displacement,
    radial_distribution_verdicts,
    radial_distributions,
    unwrap,
)

CUBE = np.eye(3) * 10.0
SKEWED = np.array([[9.0, 0.0, 0.0], [4.0, 8.0, 0.0], [-3.0, 3.5, 10.0]])


def trajectory(positions, cell=CUBE, numbers=None, interval_fs=10.0, pbc=True):
    n_frames, n_atoms = positions.shape[:2]
    numbers = np.full(n_atoms, 18) if numbers is None else np.asarray(numbers)
    return Trajectory(
        source="made",
        numbers=numbers,
        masses=np.full(n_atoms, 40.0),
        positions=positions,
        cell=np.broadcast_to(cell, (n_frames, 3, 3)),
        pbc=np.full(3, pbc),
        times_fs=np.arange(n_frames) * interval_fs,
    )


def ideal_gas(cell=CUBE, n_frames=400, seed=0):
    rng = np.random.default_rng(seed)
    return trajectory(rng.random((n_frames, 30, 3)) @ cell, cell, numbers=[1] * 20 + [8] * 10)


@pytest.mark.parametrize("cell", [CUBE, SKEWED])
def test_ideal_gas_has_no_structure(cell):
    found = radial_distributions(ideal_gas(cell))
    assert list(found.functions) == ["H-H", "H-O", "O-O"]
    volume, shells = np.linalg.det(cell), 4 * np.pi * found.distances**2 * BIN_WIDTH
    for pair, n_pairs in {"H-H": 190, "H-O": 200, "O-O": 45}.items():
        noise = np.sqrt(volume / (400 * n_pairs * shells))
        deviations = ((found.functions[pair] - 1) / noise)[20:]
        assert np.abs(deviations).max() < 5
        assert np.sqrt(np.mean(deviations**2)) == pytest.approx(1.0, abs=0.2)


def test_distances_end_at_half_of_the_smallest_height():
    assert radial_distributions(ideal_gas(CUBE)).distances[-1] == pytest.approx(5.0 - BIN_WIDTH / 2)
    heights = 1 / np.linalg.norm(np.linalg.inv(SKEWED), axis=0)
    last = radial_distributions(ideal_gas(SKEWED)).distances[-1]
    assert heights.min() / 2 - 1.5 * BIN_WIDTH < last < heights.min() / 2


def test_crystal_has_its_shells():
    """12 and 6 neighbours in a face-centred cubic crystal, whether atoms are wrapped or not."""
    crystal = bulk("Ar", "fcc", a=5.26, cubic=True) * (3, 3, 3)
    images = crystal.positions + np.random.default_rng(0).integers(-2, 3, (len(crystal), 3)) @ crystal.cell.array
    found = radial_distributions(trajectory(np.stack([crystal.positions, images]), crystal.cell.array))
    edges = found.distances - BIN_WIDTH / 2
    shells = 4 / 3 * np.pi * ((edges + BIN_WIDTH) ** 3 - edges**3)
    neighbours = found.functions["Ar-Ar"] * shells * (len(crystal) - 1) / crystal.get_volume()
    full = {round(float(found.distances[k]), 3): round(float(neighbours[k]), 6) for k in np.flatnonzero(neighbours)}
    expected = [(5.26 / np.sqrt(2), 12), (5.26, 6), (5.26 * np.sqrt(1.5), 24), (5.26 * np.sqrt(2), 12)]
    for (distance, count), (exact, number) in zip(full.items(), expected, strict=True):
        assert abs(distance - exact) <= BIN_WIDTH / 2
        assert count == pytest.approx(number)


def test_gas_in_a_cell_that_changes_has_no_structure():
    rng = np.random.default_rng(3)
    cells = CUBE * rng.uniform(1.0, 1.5, 500)[:, None, None]
    found = radial_distributions(trajectory(rng.random((500, 20, 3)) @ cells, cells))
    assert np.mean(found.functions["Ar-Ar"][40:]) == pytest.approx(1.0, abs=0.02)


def compared(found, expected):
    return radial_distribution_verdicts(radial_distributions(found), radial_distributions(expected))


def test_radial_distribution_error_finds_another_structure():
    gas = ideal_gas(seed=1)
    same = {v.name: v.value for v in compared(ideal_gas(), gas)}
    pushed = gas.positions.copy()
    pushed[:, 20:] = pushed[:, :10] + [1.0, 0.0, 0.0]  # each oxygen 1 angstrom from a hydrogen
    other = {v.name: v.value for v in compared(replace(gas, positions=pushed), gas)}
    assert list(same) == [f"{pair} radial distribution error" for pair in ("H-H", "H-O", "O-O")]
    excess = 1000.0 / 20 / (4 * np.pi)  # integral of g over the peak of one neighbour among 20
    assert other["H-O radial distribution error"] == pytest.approx(
        excess, abs=same["H-O radial distribution error"] + 0.3
    )
    assert other["H-H radial distribution error"] == 0.0
    (zero, *_) = compared(gas, gas)
    assert zero.value == 0.0


def collapse(found, expected):
    return collapse_verdict(found, expected, radial_distributions(expected))


def lattice_liquid(n_frames=200, seed=0, interval_fs=50.0):
    """Argon that shakes about the places of a crystal."""
    crystal = bulk("Ar", "fcc", a=5.3, cubic=True) * (3, 3, 3)
    noise = np.random.default_rng(seed).normal(scale=0.35, size=(n_frames, len(crystal), 3))
    return trajectory(crystal.positions + noise, crystal.cell.array, interval_fs=interval_fs)


def test_liquid_that_keeps_its_structure_passes():
    verdict = collapse(lattice_liquid(), lattice_liquid(seed=1))
    assert verdict.passed is True
    assert 0 < verdict.value < 0.5 * COLLAPSE_THRESHOLD
    assert "largest at" in verdict.explanation


@pytest.mark.parametrize("step", [1, 2, 4])
def test_time_to_collapse_is_the_start_of_the_window_in_which_a_liquid_clumps(step):
    """Whatever the time between frames, up to that in a window."""
    liquid = lattice_liquid(interval_fs=25.0)
    liquid.positions[130:] = liquid.positions[130:, :1] + 0.3 * (liquid.positions[130:] - liquid.positions[130:, :1])
    thinned = replace(
        liquid, positions=liquid.positions[::step], cell=liquid.cell[::step], times_fs=liquid.times_fs[::step] + 7e3
    )
    verdict = collapse(thinned, lattice_liquid(seed=1))
    assert verdict.passed is False
    assert verdict.value > COLLAPSE_THRESHOLD
    assert "time to collapse 3 ps, Ar-Ar is the first" in verdict.explanation  # frame 130 is at 3.25 ps


def test_collapse_in_the_last_frames_is_found():
    liquid = lattice_liquid(39, interval_fs=100.0)
    liquid.positions[-9:] = liquid.positions[-9:, :1] + 0.3 * (liquid.positions[-9:] - liquid.positions[-9:, :1])
    verdict = collapse(liquid, lattice_liquid(seed=1))
    assert verdict.passed is False
    assert "time to collapse 2.9 ps" in verdict.explanation


def test_liquid_of_too_few_atoms_or_frames_is_not_judged():
    few = ideal_gas(CUBE * 3)
    verdict = collapse(few, ideal_gas(CUBE * 3, seed=1))
    assert verdict.passed is None
    assert "more atoms are needed" in verdict.explanation
    gas = ideal_gas(n_frames=100)
    for found, expected, reason in [
        (replace(gas, times_fs=None), gas, "no times"),
        (ideal_gas(n_frames=50), gas, "10 frames 0.1 ps apart are needed"),
        (gas, replace(gas, positions=gas.positions[:19], cell=gas.cell[:19], times_fs=None), "twice as many"),
        (trajectory(random_walk(200, 1)), trajectory(random_walk(200, 1)), "single atom"),
    ]:
        assert collapse(found, expected).value is None
        assert reason in collapse(found, expected).explanation


def test_what_has_no_density_or_no_counterpart_is_not_compared():
    gas = ideal_gas(n_frames=4)
    free = replace(gas, pbc=np.array([True, True, False]))
    with pytest.raises(InputError, match="must be periodic in three directions"):
        radial_distributions(free)
    argon = trajectory(np.random.default_rng(0).random((4, 5, 3)) * 10)
    assert all(v.value is None and "only one" in v.explanation for v in compared(gas, argon))


D = 2.3e-5  # cm^2/s, about that of water
SIGMA = np.sqrt(2 * D * 10 * 10.0)  # angstrom, of a step in each direction: <x^2> = 2 D t, 1 cm^2/s = 10 angstrom^2/fs


def random_walk(n_frames=2000, n_atoms=100, seed=0):
    steps = np.random.default_rng(seed).normal(size=(n_frames, n_atoms, 3)) * SIGMA
    return np.cumsum(steps, axis=0) + 5.0


def wrap(positions, cell):
    fractions = positions @ np.linalg.inv(cell)
    return (fractions - np.floor(fractions)) @ cell


@pytest.mark.parametrize("cell", [CUBE, SKEWED])
def test_random_walk_has_its_diffusion_coefficient_wrapped_or_not(cell):
    walk = random_walk()
    np.testing.assert_allclose(unwrap(walk, np.broadcast_to(cell, (2000, 3, 3)), np.full(3, True)), walk, atol=1e-9)
    (whole,), (wrapped,) = diffusion(trajectory(walk, cell)), diffusion(trajectory(wrap(walk, cell), cell))
    assert wrapped.coefficient == pytest.approx(whole.coefficient)
    assert 0 < whole.error < 0.1 * D
    assert abs(whole.coefficient - D * (1 - 1 / 100)) < 4 * whole.error
    assert whole.exponent == pytest.approx(1.0, abs=0.15)
    (verdict,) = diffusion_verdicts([whole])
    assert (verdict.name, verdict.unit, verdict.passed) == ("Ar diffusion coefficient", "cm^2/s", None)


def test_diffusion_coefficient_is_right_on_average_and_its_error_is_its_scatter():
    found = [diffusion(trajectory(random_walk(500, 60, seed)))[0] for seed in range(20)]
    coefficients = [result.coefficient for result in found]
    scatter = np.std(coefficients, ddof=1)
    assert abs(np.mean(coefficients) - D * (1 - 1 / 60)) < 3 * scatter / np.sqrt(20) < 0.04 * D
    assert np.mean([result.error for result in found]) == pytest.approx(scatter, rel=0.4)


def test_only_periodic_directions_are_unwrapped():
    slab = random_walk(100)
    slab[:, :, 2] *= 100.0  # steps of more than half of the cell, where it does not repeat
    wrapped = slab.copy()
    wrapped[:, :, :2] %= 10.0
    found = unwrap(wrapped, np.broadcast_to(CUBE, (100, 3, 3)), np.array([True, True, False]))
    np.testing.assert_allclose(found - found[0], slab - slab[0], atol=1e-9)


def test_mean_square_displacement_is_that_of_its_definition():
    walk = random_walk(40, 3)
    direct = [np.mean(np.sum((walk[lag:] - walk[: 40 - lag]) ** 2, axis=2)) for lag in range(21)]
    np.testing.assert_allclose(mean_square_displacement(walk), direct, atol=1e-10)


def test_free_flight_has_the_exponent_two_and_drift_does_not_count():
    velocities = np.random.default_rng(0).normal(size=(1, 50, 3)) * 1e-4
    times = np.arange(200)[:, None, None] * 10.0
    (flight,) = diffusion(trajectory(5.0 + times * velocities))
    assert flight.exponent == pytest.approx(2.0, abs=1e-6)
    (solid,) = diffusion(trajectory(np.random.default_rng(0).normal(size=(200, 50, 3)) * 0.1 + times * 1e-2))
    assert abs(solid.exponent) < 0.05
    assert abs(solid.coefficient) < 4 * solid.error + 1e-8


def test_elements_are_told_apart():
    walk = random_walk()
    walk[:, :30] = 5.0
    hydrogen, argon = diffusion(trajectory(walk, numbers=[1] * 30 + [18] * 70))
    assert (hydrogen.element, argon.element) == ("H", "Ar")
    assert hydrogen.coefficient < 0.05 * D
    assert argon.coefficient == pytest.approx(D, rel=0.2)


def test_molecules_without_a_cell_are_taken_as_they_are():
    walk = random_walk(200) * 100
    (found,) = diffusion(trajectory(walk, np.zeros((3, 3)), pbc=False))
    assert found.coefficient > 1000 * D


def test_what_cannot_be_measured_says_why():
    walk = trajectory(random_walk(200, 3))
    times = walk.times_fs.copy()
    times[-1] += 5.0
    short = replace(walk, positions=walk.positions[:50], cell=walk.cell[:50], times_fs=times[:50])
    for broken, reason in [
        (replace(walk, times_fs=None), "no times"),
        (replace(walk, times_fs=times), "uneven"),
        (short, "50 frames, 100 are needed"),
        (trajectory(random_walk(200, 1)), "single atom"),
        (trajectory(wrap(50 * random_walk(200, 3), CUBE), CUBE), "write frames more often"),
    ]:
        (verdict,) = diffusion_verdicts(diffusion(broken))
        assert verdict.value is None
        assert reason in verdict.explanation
