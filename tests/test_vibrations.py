"""Frequencies of springs whose answer is known, and spectra of known oscillations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.md.verlet import VelocityVerlet

from ggnn_ff.errors import InputError
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.vibrations import (
    HarmonicFrequencies,
    density_of_states,
    density_of_states_verdict,
    frequency_verdicts,
    harmonic_frequencies,
    internal_momenta,
    vibrational_spectrum,
)


class Springs(Calculator):
    """Springs of one strength, eV/angstrom^2, between all pairs, with the rest lengths of a structure."""

    implemented_properties = ("energy", "forces")

    def __init__(self, rest, strength=30.0, pull=0.0):
        super().__init__()
        self.rest, self.strength, self.pull = rest, strength, pull

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        vectors = atoms.positions[None] - atoms.positions[:, None]
        lengths = np.linalg.norm(vectors, axis=2) + np.eye(len(atoms))
        stretch = (lengths - self.rest) * (1 - np.eye(len(atoms)))
        forces = self.strength * np.einsum("ij,ijk->ik", stretch / lengths, vectors)
        forces[0] += self.pull
        self.results = {"energy": 0.25 * self.strength * np.sum(stretch**2), "forces": forces}


def springs(atoms, **options):
    return Springs(atoms.get_all_distances(), **options)


def wavenumber(strength, mass):
    """1/cm, of a spring (eV/angstrom^2) and a mass (dalton), from SI units."""
    angular = np.sqrt(strength * units._e * 1e20 / (mass * units._amu))
    return angular / (2 * np.pi * units._c * 100)


def test_diatomic_has_one_frequency_and_it_is_that_of_the_spring():
    carbon_monoxide = molecule("CO")
    calculator = springs(carbon_monoxide, strength=118.0)
    stretched = carbon_monoxide.copy()
    stretched.positions *= 1.1
    masses = carbon_monoxide.get_masses()
    found = harmonic_frequencies(stretched, calculator)
    assert found.frequencies == pytest.approx([wavenumber(118.0, masses.prod() / masses.sum())], rel=1e-4)
    assert found.frequencies[0] == pytest.approx(2150, abs=20)  # about that of carbon monoxide
    np.testing.assert_array_equal(stretched.positions, carbon_monoxide.positions * 1.1)


def test_frequencies_go_with_the_square_root_of_the_springs_and_leave_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ethanol = molecule("CH3CH2OH")
    soft = harmonic_frequencies(ethanol, springs(ethanol, strength=10.0))
    hard = harmonic_frequencies(ethanol, springs(ethanol, strength=40.0))
    assert soft.frequencies.shape == (21,)
    np.testing.assert_allclose(hard.frequencies, 2 * soft.frequencies, rtol=1e-3)
    assert not list(Path.cwd().iterdir())


def test_heavier_atoms_vibrate_more_slowly():
    light, heavy = molecule("H2"), molecule("H2")
    heavy.set_masses([2.014, 2.014])
    ratio = (
        harmonic_frequencies(heavy, springs(light)).frequencies
        / harmonic_frequencies(light, springs(light)).frequencies
    )
    assert ratio == pytest.approx([np.sqrt(1.008 / 2.014)], rel=1e-6)


def test_a_cell_has_no_rotations_to_remove():
    """Translations alone are projected out; springs without images leave the rotations at zero."""
    water = molecule("H2O", cell=[10.0, 10.0, 10.0], pbc=True)
    frequencies = harmonic_frequencies(water, springs(molecule("H2O"))).frequencies
    assert frequencies.shape == (6,)
    np.testing.assert_allclose(frequencies[:3], 0.0, atol=1.0)
    np.testing.assert_allclose(
        frequencies[3:], harmonic_frequencies(molecule("H2O"), springs(water)).frequencies, atol=0.1
    )


def named(found, reference):
    return {v.name: v for v in frequency_verdicts(found, reference)}


def test_equal_springs_pass_and_others_fail():
    water = molecule("H2O")
    reference = harmonic_frequencies(water, springs(water))
    verdicts = named(reference, reference)
    assert [v.passed for v in verdicts.values()] == [True, True, True]
    softer = harmonic_frequencies(water, springs(water, strength=29.0))
    verdicts = named(softer, reference)
    assert verdicts["imaginary frequencies"].passed is True
    assert verdicts["mean frequency deviation"].passed is False
    largest = verdicts["largest frequency deviation"]
    assert largest.passed is False
    assert largest.value == pytest.approx(reference.frequencies.max() * (1 - np.sqrt(29 / 30)), rel=1e-3)
    assert "mode 2 " in largest.explanation


def test_saddle_is_named_by_its_imaginary_frequency():
    """Three atoms in a line whose outer ones pull each other: by symmetry the optimisation stays in the line."""
    line = Atoms("C3", [[0, 0, 0], [1.3, 0, 0], [2.6, 0, 0]])
    rest = line.get_all_distances()
    rest[0, 2] = rest[2, 0] = 2.0
    found = harmonic_frequencies(line, Springs(rest))
    assert len(found.frequencies) == 4
    assert np.sum(found.frequencies < 0) == 2
    verdicts = named(found, found)
    assert verdicts["imaginary frequencies"].value == 2
    assert verdicts["imaginary frequencies"].passed is False
    assert f"{-found.frequencies[0]:.0f}i" in verdicts["imaginary frequencies"].explanation


@pytest.mark.parametrize(
    ("pull", "problem", "passed"),
    [(1.0, "no minimum", None), (np.nan, "infinite or NaN", False), (np.inf, "infinite or NaN", False)],
)
def test_without_a_minimum_nothing_is_measured_and_forces_that_are_not_finite_fail(pull, problem, passed):
    water = molecule("H2O")
    lost, reference = (
        harmonic_frequencies(water, springs(water, pull=pull)),
        harmonic_frequencies(water, springs(water)),
    )
    for verdict in frequency_verdicts(lost, reference):
        assert (verdict.value, verdict.passed) == (None, passed)
        assert problem in verdict.explanation
    verdicts = named(reference, lost)
    assert verdicts["imaginary frequencies"].passed is True
    assert "for the reference" in verdicts["mean frequency deviation"].explanation


class BrokenNextToTheMinimum(Springs):
    """Infinite forces as soon as an atom is displaced from the rest lengths."""

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        if self.results["energy"] > 1e-6:
            self.results["forces"] = np.full_like(self.results["forces"], np.inf)


def test_forces_that_become_infinite_next_to_the_minimum_fail():
    water = molecule("H2O")
    found = harmonic_frequencies(water, BrokenNextToTheMinimum(water.get_all_distances()))
    assert [verdict.passed for verdict in frequency_verdicts(found, None)] == [False]


def test_noise_is_not_an_imaginary_frequency():
    noisy, saddle = (HarmonicFrequencies(np.array([lowest, 900.0, 1000.0]), np.eye(3)) for lowest in (-15.0, -25.0))
    assert named(noisy, noisy)["imaginary frequencies"].passed is True
    assert named(saddle, saddle)["imaginary frequencies"].passed is False


def test_minima_of_other_shape_and_single_atoms_are_not_compared():
    three, four = (HarmonicFrequencies(np.arange(1.0, n), np.eye(3)) for n in (4, 5))
    assert "different numbers" in named(four, three)["mean frequency deviation"].explanation
    atom = harmonic_frequencies(Atoms("Ar"), Springs(np.zeros((1, 1))))
    assert all("nothing vibrates" in verdict.explanation for verdict in frequency_verdicts(atom, atom))


INTERVAL_FS = 2.0
TIMES_FS = np.arange(8192) * INTERVAL_FS


def oscillation(*waves, masses=(1.0, 16.0), phase=0.3):
    """Atom i oscillates with the wavenumber and kinetic energy of waves[i]."""
    momenta = np.zeros((len(TIMES_FS), len(masses), 3))
    for atom, (position, energy) in enumerate(waves):
        angular = 2 * np.pi * position * units._c * 100 * 1e-15  # 1/fs
        momenta[:, atom, atom % 3] = np.sqrt(4 * energy * masses[atom]) * np.cos(angular * TIMES_FS + phase)
    n_frames = len(TIMES_FS)
    return Trajectory(
        source="made",
        numbers=np.array([1, 8]),
        masses=np.array(masses),
        positions=np.zeros((n_frames, len(masses), 3)),
        cell=np.zeros((n_frames, 3, 3)),
        pbc=np.zeros(3, dtype=bool),
        times_fs=TIMES_FS,
        momenta=momenta,
    )


def spectrum(frames):
    return density_of_states(frames.momenta / frames.masses[:, None], frames.masses, INTERVAL_FS)


def test_spectrum_has_its_lines_where_atoms_oscillate_with_the_area_of_their_energy():
    wavenumbers, density = spectrum(oscillation((3000.0, 1.0), (1500.0, 3.0)))
    assert wavenumbers[1] == pytest.approx(10.0, rel=0.01)
    assert np.sum(density) * wavenumbers[1] == pytest.approx(1.0)
    upper = wavenumbers > 2250
    assert wavenumbers[upper][density[upper].argmax()] == pytest.approx(3000, abs=10)
    assert wavenumbers[~upper][density[~upper].argmax()] == pytest.approx(1500, abs=10)
    assert density[upper].sum() / density.sum() == pytest.approx(0.25, abs=0.002)


def test_steady_motion_is_at_the_wavenumber_zero():
    wavenumbers, density = spectrum(oscillation((0.0, 1.0), (1500.0, 1.0)))
    still = 2 * np.cos(0.3) ** 2  # of an oscillation the mean of the cosine squared is half
    assert density[wavenumbers < 100].sum() / density.sum() == pytest.approx(still / (still + 1), abs=0.01)


def compared(found, reference):
    return density_of_states_verdict(vibrational_spectrum(found), vibrational_spectrum(reference))


def balanced(*waves, **options):
    """As `oscillation`, with a second pair of atoms that moves the other way, so that the whole stays where it is."""
    frames = oscillation(*waves, **options)
    return replace(
        frames,
        numbers=np.tile(frames.numbers, 2),
        masses=np.tile(frames.masses, 2),
        positions=np.tile(frames.positions, (1, 2, 1)),
        momenta=np.concatenate([frames.momenta, -frames.momenta], axis=1),
    )


def test_spectra_that_differ_are_told_apart():
    reference = balanced((3000.0, 1.0), (1500.0, 1.0))
    assert compared(balanced((3000.0, 1.0), (1500.0, 1.0), phase=2.0), reference).value < 0.01
    assert compared(balanced((3200.0, 1.0), (1500.0, 1.0)), reference).value == pytest.approx(0.5, abs=0.02)
    half = replace(
        reference, times_fs=TIMES_FS[::2], momenta=reference.momenta[::2], positions=reference.positions[::2]
    )
    assert compared(half, reference).value < 0.05
    assert "above 4170 1/cm are folded" in compared(half, reference).explanation


def test_frames_too_rare_for_the_fastest_vibrations_are_not_measured():
    """4.17 fs with hydrogen, 6.95 fs without."""
    frames = balanced((1500.0, 1.0))
    for step, numbers, measured in [
        (2, [1, 8, 1, 8], True),
        (3, [1, 8, 1, 8], False),
        (3, [6, 8, 6, 8], True),
        (4, [6, 8, 6, 8], False),
    ]:
        thinned = replace(
            frames,
            times_fs=TIMES_FS[::step],
            momenta=frames.momenta[::step],
            positions=frames.positions[::step],
            numbers=np.array(numbers),
        )
        found = vibrational_spectrum(thinned)
        assert isinstance(found, tuple) == measured
        assert measured or "write frames more often" in found
        assert (compared(thinned, frames).value is not None) == measured


def spring_molecule(symbol, flight=0.0, spin=0.0):
    """A molecule held by springs that vibrates, flies (angstrom/fs) and spins about x (1/fs)."""
    atoms = molecule(symbol)
    atoms.calc = springs(atoms)
    atoms.positions *= 1.03
    arms = atoms.positions - atoms.get_center_of_mass()
    atoms.set_velocities((np.array([flight, 0.0, 0.0]) + np.cross([spin, 0.0, 0.0], arms)) / units.fs)
    dynamics, positions, momenta = VelocityVerlet(atoms, 0.5 * units.fs), [], []
    for _ in range(600):
        positions.append(atoms.positions.copy())
        momenta.append(atoms.get_momenta())
        dynamics.run(1)
    return Trajectory(
        source=f"{symbol} at {flight} angstrom/fs, {spin}/fs",
        numbers=atoms.numbers,
        masses=atoms.get_masses(),
        positions=np.array(positions),
        cell=np.zeros((600, 3, 3)),
        pbc=np.zeros(3, dtype=bool),
        times_fs=0.5 * np.arange(600),
        momenta=np.array(momenta),
    )


@pytest.mark.parametrize("symbol", ["H2O", "CO2"])
def test_flight_and_rotation_of_the_whole_are_no_vibrations(symbol):
    still = spring_molecule(symbol)
    assert np.linalg.norm(still.momenta.sum(axis=1), axis=1).max() < 1e-9
    np.testing.assert_allclose(internal_momenta(still), still.momenta, atol=1e-9)
    moving = spring_molecule(symbol, flight=0.02, spin=5e-4)
    momenta = internal_momenta(moving)
    np.testing.assert_allclose(momenta.sum(axis=1), 0.0, atol=1e-9)
    arms = moving.positions - np.einsum("n,tnk->tk", moving.masses, moving.positions)[:, None] / moving.masses.sum()
    np.testing.assert_allclose(np.cross(arms, momenta).sum(axis=1), 0.0, atol=1e-9)
    assert compared(moving, still).value < 0.01
    raw, expected = (density_of_states(one.momenta, 1.0 / one.masses, 0.5)[1] for one in (moving, still))
    assert 0.5 * np.abs(raw / raw.sum() - expected / expected.sum()).sum() > 0.3


def test_flight_alone_has_no_spectrum():
    frames = balanced((3000.0, 1.0))
    flight = replace(frames, momenta=np.broadcast_to(frames.masses[:, None], frames.momenta.shape))
    assert "does not vibrate" in compared(flight, frames).explanation


def test_spectrum_without_velocities_or_times_is_not_measured():
    frames = oscillation((3000.0, 1.0))
    uneven = TIMES_FS.copy()
    uneven[-1] += 1.0
    for broken, reason in [
        (replace(frames, momenta=None), "no momenta"),
        (replace(frames, times_fs=None), "no times"),
        (replace(frames, times_fs=uneven), "uneven times"),
        (
            replace(frames, times_fs=TIMES_FS[:9], positions=frames.positions[:9], momenta=frames.momenta[:9]),
            "9 frames",
        ),
    ]:
        verdict = compared(broken, frames)
        assert verdict.value is None
        assert reason in verdict.explanation


def test_wrong_input_is_said():
    with pytest.raises(InputError, match="at least 16 frames"):
        density_of_states(np.ones((3, 1, 3)), np.ones(1), 1.0)
    with pytest.raises(InputError, match="must be positive, got 0"):
        density_of_states(np.ones((30, 1, 3)), np.ones(1), 0.0)
