"""Vibrations: harmonic frequencies at a minimum, and the spectrum of the velocities of a trajectory."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from scipy.signal import welch
from scipy.spatial.distance import pdist

from ggnn_ff.errors import InputError
from ggnn_ff.stability.blocks import Rows, chunks
from ggnn_ff.stability.conservation import LEAST_ROWS
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.verdict import Verdict

MEAN_DEVIATION: float = 10.0
"""1/cm, mean absolute deviation of the harmonic frequencies. Chosen here, as a third of `LARGEST_DEVIATION`."""

LARGEST_DEVIATION: float = 34.0
"""1/cm: the root mean square error against experiment of scaled B3LYP/6-31G(d) frequencies (Scott and Radom, J. Phys.
Chem. 100, 16502, 1996). A potential that is closer to its reference method adds little to the error of that."""

LARGEST_FORCE: float = 1e-3
"""eV/angstrom, on any atom at what counts as a minimum."""

OPTIMIZER_STEPS: int = 500

DISPLACEMENT: float = 0.01
"""angstrom; each coordinate is moved by this and by twice this, both ways. Far above what float32 rounds; with one
displacement only, anharmonicity would give a free rotation of water 28/cm, with two it is below 1/cm."""

LARGEST_NOISE: float = 20.0
"""1/cm; smaller imaginary frequencies do not count: what is left of the forces at a minimum makes a hydrogen atom that
could turn freely at 1 angstrom vibrate at up to sqrt(`LARGEST_FORCE` / (1 dalton 1 angstrom)) = 16/cm, or 16i."""

RESOLUTION: float = 10.0
"""1/cm, between neighbouring points of a spectrum from velocities."""

_LINEAR = 5e-3  # of moments of inertia, about the axis over across it: CO2 that bends has less, HNCO 0.012
_STILL = 1e-6  # share of the momenta that files may round away
_NOT_FINITE = "the forces became infinite or NaN on the way to a minimum or next to it"
FASTEST: dict[bool, float] = {True: 4000.0, False: 2400.0}
"""1/cm, to be expected with and without hydrogen: above O-H in water (harmonic 3943) and N2 (2359). Frames that are too
rare for them show them elsewhere."""

_WAVENUMBER = units._hbar * units.J * units.second / units.invcm  # of an angular frequency in ASE's unit, 1/cm
_WAVENUMBER_OF_INVERSE_FS = 1e15 / (100.0 * units._c)  # of a frequency of 1/fs, 1/cm


@dataclass(frozen=True)
class HarmonicFrequencies:
    """Normal modes at a minimum.

    Attributes:
        frequencies: (M,) 1/cm, ascending, imaginary ones as negative numbers; without translations and, for molecules,
            rotations. Empty if no minimum was found.
        positions: (N, 3) angstrom, where the optimisation ended.
        problem: why there are none, or None.
        finite: False if forces were infinite or NaN, which is then the problem.
    """

    frequencies: np.ndarray
    positions: np.ndarray
    problem: str | None = None
    finite: bool = True


def harmonic_frequencies(atoms: Atoms, calculator: BaseCalculator) -> HarmonicFrequencies:
    """Optimises a structure and diagonalises its mass-weighted Hessian, from central differences of forces.

    Translations and rotations are projected out (Wilson, Decius and Cross, Molecular Vibrations, 1955), rather than
    found by their small frequencies, with which those of soft torsions are easily confused.

    Args:
        atoms: start of the optimisation, not changed. The cell is kept.
        calculator: any of ASE with forces.
    """
    minimum = Atoms(
        atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, masses=atoms.get_masses(), calculator=calculator
    )
    problem = _optimise(minimum)
    if problem is not None:
        return HarmonicFrequencies(np.empty(0), minimum.positions, problem, problem != _NOT_FINITE)
    positions = minimum.positions.copy()
    # ASE keeps the forces of each displacement in a file
    with TemporaryDirectory() as folder, np.errstate(invalid="ignore"):
        vibrations = Vibrations(minimum, name=str(Path(folder) / "forces"), delta=DISPLACEMENT, nfree=4)
        vibrations.run()
        try:
            hessian = vibrations.get_vibrations().get_hessian_2d()  # eV/angstrom^2
        except np.linalg.LinAlgError:  # ASE diagonalises it as well
            hessian = np.array(np.nan)
    if not np.isfinite(hessian).all():
        return HarmonicFrequencies(np.empty(0), positions, _NOT_FINITE, finite=False)
    roots = np.repeat(np.sqrt(minimum.get_masses()), 3)
    modes = _internal_motions(minimum)
    squares = np.linalg.eigvalsh(modes.T @ (hessian / np.multiply.outer(roots, roots)) @ modes)
    return HarmonicFrequencies(np.sign(squares) * np.sqrt(np.abs(squares)) * _WAVENUMBER, positions)


def _optimise(atoms: Atoms) -> str | None:
    """Moves the atoms to a minimum; why it failed, or None."""
    with BFGS(atoms, logfile=None) as optimizer:
        steps = optimizer.irun(fmax=LARGEST_FORCE, steps=OPTIMIZER_STEPS)
        if not all(np.isfinite(atoms.get_forces()).all() for _ in steps):
            return _NOT_FINITE
    if np.linalg.norm(atoms.get_forces(), axis=1).max() > LARGEST_FORCE:
        return f"no minimum was reached in {OPTIMIZER_STEPS} steps (forces below {LARGEST_FORCE:g} eV/angstrom)"
    return None


def _internal_motions(atoms: Atoms) -> np.ndarray:
    """(3N, M) orthonormal basis of the mass-weighted motions that are no translation or, without cell, rotation."""
    motions = [np.broadcast_to(axis, (len(atoms), 3)) for axis in np.eye(3)]
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        motions += [np.cross(axis, arms) for axis in np.eye(3)]
    weighted = np.stack([(np.sqrt(atoms.get_masses())[:, None] * motion).ravel() for motion in motions], axis=1)
    basis, sizes, _ = np.linalg.svd(weighted)
    return basis[:, int(np.sum(sizes > 1e-3 * sizes[0])) :]  # linear molecules have one rotation less


def frequency_verdicts(found: HarmonicFrequencies, reference: HarmonicFrequencies | None) -> list[Verdict]:
    """Imaginary frequencies, and deviations from those of a reference calculator, mode by mode in ascending order.

    Forces of the potential that are not finite fail; without a minimum for another reason nothing is judged.

    Args:
        found: of the potential.
        reference: of the reference method, from the same start; None leaves the deviations out.
    """
    asked = 1 if reference is None else 3
    names = ("imaginary frequencies", "mean frequency deviation", "largest frequency deviation")[:asked]
    thresholds = (0.0, MEAN_DEVIATION, LARGEST_DEVIATION)[:asked]
    reason = None
    if found.problem is not None:
        reason = f"not measured: {found.problem}"
    elif len(found.frequencies) == 0:
        reason = "not applicable: nothing vibrates"
    if reason is not None:
        passed = None if found.finite else False
        return [
            Verdict(name, None, "" if name == names[0] else "1/cm", threshold, passed, reason)
            for name, threshold in zip(names, thresholds, strict=True)
        ]
    imaginary = found.frequencies[found.frequencies < -LARGEST_NOISE]
    text = (
        f"negative curvatures at what should be a minimum, from {LARGEST_NOISE:.0f}i 1/cm on, chosen here above what "
        f"forces of {LARGEST_FORCE:g} eV/angstrom that are left do"
    )
    if len(imaginary):
        text += ": " + ", ".join(f"{-frequency:.0f}i" for frequency in imaginary) + " 1/cm"
    verdicts = [Verdict(names[0], float(len(imaginary)), "", thresholds[0], len(imaginary) == 0, text)]
    if reference is None:
        return verdicts
    if reference.problem is not None:
        reason = f"not measured: for the reference, {reference.problem}"
    elif len(reference.frequencies) != len(found.frequencies):
        reason = "not measured: the minima have different numbers of modes, one is linear and the other is not"
    if reason is not None:
        return verdicts + [
            Verdict(name, None, "1/cm", threshold, None, reason)
            for name, threshold in zip(names[1:], thresholds[1:], strict=True)
        ]
    deviations = np.abs(found.frequencies - reference.frequencies)
    mode = int(deviations.argmax())
    shift = np.sqrt(np.mean((pdist(found.positions) - pdist(reference.positions)) ** 2))
    texts = (
        f"of {len(deviations)} modes, each at its own minimum; distances in the two differ by {shift:.3f} angstrom; "
        "threshold chosen here, a third of that of the largest",
        f"mode {mode} (from 0), {found.frequencies[mode]:.1f} against {reference.frequencies[mode]:.1f} 1/cm; the "
        "threshold is the error of scaled B3LYP/6-31G(d) against experiment (Scott and Radom 1996)",
    )
    values = (float(deviations.mean()), float(deviations[mode]))
    return verdicts + [
        Verdict(name, value, "1/cm", threshold, value <= threshold, text)
        for name, value, threshold, text in zip(names[1:], values, thresholds[1:], texts, strict=True)
    ]


def density_of_states(
    velocities: np.ndarray, masses: np.ndarray, interval_fs: float, resolution: float = RESOLUTION
) -> tuple[np.ndarray, np.ndarray]:
    """Vibrational density of states: the power spectrum of the mass-weighted velocities, by Welch's method.

    sum_i m_i |v_i(nu)|^2, the Fourier transform of the mass-weighted velocity autocorrelation function. Each harmonic
    mode has the same area, since each has the kinetic energy kT/2. Vibrations faster than half of the sampling rate
    are folded back into the spectrum.

    Args:
        velocities: (T, N, 3), any unit; flight and rotation of the whole count as vibrations of low wavenumbers.
        masses: (N,), dalton.
        interval_fs: time between frames, fs.
        resolution: 1/cm, between points, if the trajectory is long enough.

    Returns:
        Wavenumbers (K,), 1/cm, and the density (K,), cm, with an integral of 1.

    Raises:
        InputError: if there are fewer than `LEAST_ROWS` frames, nothing moves, or a number is not positive.
    """
    if len(velocities) < LEAST_ROWS or not np.any(velocities):
        raise InputError(
            f"`velocities` must be of at least {LEAST_ROWS} frames and not all zero, got {len(velocities)} frames; "
            "run longer"
        )
    if not (interval_fs > 0 and resolution > 0):
        raise InputError(f"`interval_fs` and `resolution` must be positive, got {interval_fs} and {resolution}")
    sampling = _WAVENUMBER_OF_INVERSE_FS / interval_fs
    segment = min(len(velocities), max(LEAST_ROWS, round(sampling / resolution)))
    density = np.zeros(segment // 2 + 1)
    for atom, mass in enumerate(masses):  # not all at once, for memory
        wavenumbers, power = welch(velocities[:, atom], fs=sampling, nperseg=segment, detrend=False, axis=0)
        density += mass * power.sum(axis=1)
    return wavenumbers, density / (density.sum() * wavenumbers[1])


def vibrational_spectrum(trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray] | str:
    """Wavenumbers (K,), 1/cm, and density of states (K,), cm, without flight and rotation of the whole; or why none."""
    source = trajectory.source
    if trajectory.momenta is None or not np.any(trajectory.momenta):
        return f"{source} has no momenta"
    if trajectory.times_fs is None:
        return f"{source} has no times; give the time between frames in fs"
    if len(trajectory) < LEAST_ROWS:
        return f"{source} has {len(trajectory)} frames, {LEAST_ROWS} are needed"
    steps = np.diff(trajectory.times_fs)
    if not np.allclose(steps, steps[0], rtol=1e-3):
        return f"{source} has frames at uneven times"
    interval, fastest = float(steps.mean()), FASTEST[bool(np.any(trajectory.numbers == 1))]
    if 0.5 * _WAVENUMBER_OF_INVERSE_FS / interval < fastest:
        return (
            f"{source} has frames every {interval:.3g} fs, and {0.5 * _WAVENUMBER_OF_INVERSE_FS / fastest:.1f} fs or "
            f"less are needed for vibrations up to {fastest:.0f} 1/cm; write frames more often"
        )
    momenta = internal_momenta(trajectory)
    if np.abs(momenta).max() <= _STILL * np.abs(trajectory.momenta).max():
        return f"{source} moves as a whole and does not vibrate"
    return density_of_states(momenta, 1.0 / trajectory.masses, interval)  # p^2 / m is m v^2: no division


def density_of_states_verdict(
    found: tuple[np.ndarray, np.ndarray] | str, expected: tuple[np.ndarray, np.ndarray] | str
) -> Verdict:
    """How much of the vibrational density of states is elsewhere than in a reference: half the integral of |g - g_ref|.

    0 for equal spectra, 1 for disjoint ones. Both spectra are compared on the coarser of their grids.

    Args:
        found: `vibrational_spectrum` of a trajectory.
        expected: that of the reference.
    """
    name = "density of states difference"
    spectra = []
    for spectrum in (found, expected):
        if isinstance(spectrum, str):
            return Verdict(name, None, "", None, None, f"not measured: {spectrum}")
        spectra.append(spectrum)
    grid = max((wavenumbers for wavenumbers, _ in spectra), key=lambda wavenumbers: wavenumbers[1])
    one, other = (np.interp(grid, *spectrum, right=0.0) for spectrum in spectra)
    difference = 0.5 * np.abs(one / one.sum() - other / other.sum()).sum()
    text = (
        f"from 0, equal, to 1, disjoint; without flight and rotation of the whole; points every {grid[1]:.1f} 1/cm; "
        "not judged. Vibrations above "
        f"{min(wavenumbers[-1] for wavenumbers, _ in spectra):.0f} 1/cm are folded back: write frames more often"
    )
    return Verdict(name, float(difference), "", None, None, text)


def internal_momenta(trajectory: Trajectory) -> np.ndarray:
    """Momenta without flight and, where nothing is periodic, rotation of the whole.

    p_i - m_i (V + w x (r_i - R)), with the velocity V of the centre of mass R, and the angular velocity w = I^-1 L of
    the angular momentum L and the tensor of inertia I about it (Goldstein, Classical Mechanics, chapter 5); linear
    molecules do not rotate about their axis.

    Args:
        trajectory: with momenta.

    Returns:
        (T, N, 3), in ASE's unit.
    """
    assert trajectory.momenta is not None
    masses, momenta = trajectory.masses, Rows(len(trajectory.masses), 3)
    for part in chunks(len(trajectory), 9 * len(masses)):
        found = trajectory.momenta[part]
        found = found - masses[:, None] * (found.sum(axis=1) / masses.sum())[:, None]
        if not trajectory.pbc.any():
            positions = trajectory.positions[part]
            arms = positions - (np.einsum("n,tnk->tk", masses, positions) / masses.sum())[:, None]
            spread = np.swapaxes(masses[:, None] * arms, 1, 2) @ arms  # (t, 3, 3), sum of m r r
            size = np.trace(spread, axis1=1, axis2=2)
            inertia, angular = size[:, None, None] * np.eye(3) - spread, np.cross(arms, found).sum(axis=1)
            linear = np.linalg.det(inertia) <= _LINEAR * size**3
            rotation = np.empty_like(angular)
            rotation[~linear] = np.linalg.solve(inertia[~linear], angular[~linear, :, None])[:, :, 0]
            inverse = np.linalg.pinv(inertia[linear], rcond=_LINEAR, hermitian=True)
            rotation[linear] = np.einsum("tab,tb->ta", inverse, angular[linear])
            found = found - masses[:, None] * np.cross(rotation[:, None], arms)
        momenta.extend(found)
    return momenta.array()
