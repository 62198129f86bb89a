"""Whether the forces and the stress of an ASE calculator are the derivatives of its energy.

A potential with one number for each structure has such forces; a network that predicts forces directly, a cutoff that
jumps, or half precision has not, and no time step can make up for it. Figures are relative to the size of the forces,
and energies are never asked for more than their noise allows: their differences are taken over a distance that grows
with the noise, which is measured. What noise hides is not judged. Constraints of the structure are left out.
"""

from collections.abc import Callable

import numpy as np
from ase import Atoms

from ggnn_ff.errors import InputError
from ggnn_ff.stability.smoothness import CLOSEST, Surface, calculator_surface, largest_jumps, random_lines
from ggnn_ff.stability.verdict import Verdict

DISTORTION: float = 0.05
"""angstrom, root mean square by which each coordinate is moved at random before looking: thermal at room temperature,
so that forces have a size, and no symmetry hides a fault, also where the structure given is a minimum."""

GRADIENT_THRESHOLD: float = 1e-4
"""|F + grad E| / |F|. Chosen here: far above what float32 and the convergence of a self-consistent field do; half
precision exceeds it, as do directly predicted forces."""

LOOP_THRESHOLD: float = 5e-4
"""Work around a loop over the integral of |F.dl|, which is about the antisymmetric part of the Jacobian of the forces
over the symmetric one, the measure of Bigi, Langer and Ceriotti (arXiv 2412.11569). Chosen here: well above the 1e-5
of self-consistent fields, far below forces that are predicted directly."""

JUMP_THRESHOLD: float = 5e-4
"""Jump over the root mean square force, of a force component, or of the energy per angstrom. Chosen here: float32 stays
below, the spacing of half precision, 2^-11 to 2^-10 of each component, reaches it."""

LARGEST_FORCE: float = 200.0
"""eV/angstrom, at ends of random lines, where neighbours keep `CLOSEST` of their distance. Chosen here: twice what the
two atoms of N2, one of the stiffest bonds, feel there; a network that has seen no such frames may give any number."""

STRESS_THRESHOLD: float = 1e-3
"""|stress - dE/dstrain / V| / |stress|. Chosen here: ten times that of the forces, since the terms of a stress cancel;
a wrong sign gives 2."""

_NOISE_SPACING = 1e-3  # angstrom: energies change by more than a float32 of thousands of eV resolves
_NOISE_OF_A_JUMP = 10.0  # standard deviations of noise that the largest of many fourth differences, over 3, comes to
_HALVINGS = 0.5 ** np.arange(10)  # of the largest step of a difference
_LARGEST_STEP = 0.05  # angstrom, root mean square of the coordinates
_LARGEST_STRAIN = 0.02


def copied(atoms: Atoms) -> Atoms:
    """A copy with the same calculator.

    Raises:
        InputError: there is no calculator.
    """
    if atoms.calc is None:
        raise InputError("`atoms` must carry a calculator, got none; set atoms.calc first")
    copy = atoms.copy()
    copy.calc = atoms.calc
    return copy


def unconstrained(atoms: Atoms) -> Atoms:
    """A copy with the same calculator, without constraints: they take parts of the forces away.

    Raises:
        InputError: there is no calculator.
    """
    copy = copied(atoms)
    copy.set_constraint()
    return copy


def _random_direction(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Isotropic, with a root mean square of 1: along it a vector F has a component of root mean square |F|."""
    direction = random.standard_normal(shape)
    return direction / np.sqrt(np.mean(direction**2))


def energy_noise(surface: Surface, positions: np.ndarray, seed: int = 0) -> float:
    """Standard deviation of what is not smooth in the energy: rounding, incomplete convergence.

    From sixth differences on short lines, to which smooth functions contribute nothing (More and Wild, SIAM J. Sci.
    Comput. 33, 1292, 2011, with k = 6); median of three lines, so that one jump does not count as noise.

    Args:
        surface: energies and forces by positions.
        positions: (N, 3), angstrom.
        seed: of the lines.

    Returns:
        eV, at least the rounding of float64.
    """
    random = np.random.default_rng([seed, 3])
    distances = _NOISE_SPACING * np.arange(16)[:, None, None]
    lines = [surface(positions + distances * _random_direction(positions.shape, random))[0] for _ in range(3)]
    measured = np.median([np.sqrt(np.mean(np.diff(energies, n=6) ** 2) / 924.0) for energies in lines])
    return max(float(measured), float(np.spacing(np.abs(lines[0]).max())))


def _slope(energies: Callable[[np.ndarray], np.ndarray], largest_step: float, noise: float) -> tuple[float, float]:
    """dE/dx at x = 0 and its error, by central differences of fourth order with the best of many steps.

    The error of step h has a part that falls with h, noise * sqrt(130) / 12h, and one that grows with h, a fifteenth of
    the difference from step 2h, or of that between 2h and 4h where it is larger. From the smallest step on, steps are
    considered until that difference shows above the noise, and the one with the least sum is taken: further on two
    wrong slopes may agree by chance.
    """
    steps = largest_step * _HALVINGS
    forward, backward = np.split(energies(np.concatenate([steps, -steps])), 2)
    half = forward - backward
    slopes = (8 * half[1:] - half[:-1]) / (12 * steps[1:])
    differences, falling = np.abs(np.diff(slopes)), noise * np.sqrt(130) / (12 * steps[3:])
    errors = falling + np.maximum(differences[1:], differences[:-1]) / 15
    shown = np.flatnonzero(differences[1:] > 10 * falling)
    first = shown[-1] if len(shown) else 0
    best = first + int(np.argmin(errors[first:]))
    return float(slopes[2 + best]), float(errors[best])


def judge(name: str, value: float, error: float, threshold: float, explanation: str) -> Verdict:
    """Fails what is above the threshold by more than twice its error, and what is no number; passes what is below."""
    passed: bool | None = bool(value <= threshold)
    if not passed and value - 2 * error <= threshold:
        passed = None
        explanation += "; not judged: noise of the calculator or the quadrature hides it, compute in float64"
    return Verdict(name, float(value), "", threshold, passed, explanation, float(error))


def _not_measured(name: str, threshold: float, reason: str) -> Verdict:
    return Verdict(name, None, "", threshold, None, f"not measured: {reason}")


def gradient_verdict(atoms: Atoms, n_directions: int = 8, seed: int = 0) -> Verdict:
    """Forces against central differences of the energy, each in a random direction from another distortion.

    The root mean square of F.d + dE/dx over that of |F|, with directions d of root mean square 1, estimates
    |F + grad E| / |F|, since the mean of d d^T is the unit matrix.

    Args:
        atoms: with its calculator; a structure as the potential is meant for.
        n_directions: how many.
        seed: of distortions and directions.

    Raises:
        InputError: there is no calculator.
    """
    name, shape, random = "forces against energy differences", atoms.positions.shape, np.random.default_rng([seed, 4])
    surface = calculator_surface(unconstrained(atoms))
    noise, found = energy_noise(surface, atoms.positions, seed), []
    for _ in range(n_directions):
        start = atoms.positions + DISTORTION * random.standard_normal(shape)
        direction = _random_direction(shape, random)
        forces = surface(start[None])[1][0]
        size = float(np.linalg.norm(forces))
        if size == 0.0:
            return _not_measured(name, GRADIENT_THRESHOLD, "there are no forces")

        def energies(x: np.ndarray, start: np.ndarray = start, direction: np.ndarray = direction) -> np.ndarray:
            return surface(start + x[:, None, None] * direction)[0]

        slope, error = _slope(energies, _LARGEST_STEP, noise)
        found.append([np.sum(forces * direction) + slope, error, size])
    difference, error, size = np.sqrt(np.mean(np.square(found), axis=0))
    text = f"|F + grad E| / |F| in {n_directions} random directions; the energies have a noise of {noise:.1e} eV"
    text += "; threshold chosen here, above float32 and self-consistent fields, below half precision"
    return judge(name, difference / size, error / size, GRADIENT_THRESHOLD, text)


def loop_verdict(atoms: Atoms, n_loops: int = 8, n_points: int = 32, seed: int = 0) -> Verdict:
    """Work of the forces around circles in random planes of the 3N coordinates: none, if they are a gradient.

    The trapezoidal rule on a circle converges exponentially for smooth forces (Trefethen and Weideman, SIAM Rev. 56,
    385, 2014); every second point alone tells its error. It needs no energies.

    Args:
        atoms: with its calculator; its positions are the centre, the root mean square displacement is `DISTORTION`.
        n_loops: how many circles.
        n_points: on each, even.
        seed: of the planes.

    Raises:
        InputError: there is no calculator, or an odd number of points.
    """
    if n_points < 4 or n_points % 2:
        raise InputError(f"`n_points` must be even and at least 4, got {n_points}")
    name, shape, random = "work around closed loops", atoms.positions.shape, np.random.default_rng([seed, 5])
    surface = calculator_surface(unconstrained(atoms))
    angles = (2 * np.pi / n_points * np.arange(n_points))[:, None, None]
    powers = []
    for _ in range(n_loops):
        plane, _ = np.linalg.qr(random.standard_normal((atoms.positions.size, 2)))
        u, v = np.sqrt(atoms.positions.size) * plane.T.reshape(2, *shape)
        forces = surface(atoms.positions + DISTORTION * (np.cos(angles) * u + np.sin(angles) * v))[1]
        powers.append(np.sum(forces * (np.cos(angles) * v - np.sin(angles) * u), axis=(1, 2)))
    power = np.array(powers)  # (n_loops, n_points), F.dl by angle
    if not power.any():
        return _not_measured(name, LOOP_THRESHOLD, "there are no forces")
    work, size = power.mean(axis=1), np.abs(power).mean()
    value, error = np.sqrt(np.mean(np.square([work, work - power[:, ::2].mean(axis=1)]), axis=1)) / size
    text = (
        f"over the integral of |F.dl|, {n_loops} random circles; not zero when the forces are no gradient; threshold "
        "chosen here, above self-consistent fields, below forces predicted directly"
    )
    return judge(name, value, error, LOOP_THRESHOLD, text)


def continuity_verdicts(atoms: Atoms, n_lines: int = 8, step: float = 0.01, seed: int = 0) -> list[Verdict]:
    """Largest jumps of energy and forces along random lines near the structure, and the largest force there.

    The jumps are found by `smoothness.largest_jumps`.

    Args:
        atoms: with its calculator.
        n_lines: how many; every pair distance sweeps some tenths of an angstrom on each.
        step: of the first grid, angstrom; jumps closer to each other than a few steps may count as one.
        seed: of the lines.

    Returns:
        Three verdicts; jumps are relative to the root mean square of the force components at the ends of the lines.

    Raises:
        InputError: there is no calculator, or energies or forces are not finite.
    """
    surface = calculator_surface(unconstrained(atoms))
    lines = random_lines(atoms.positions, n_lines, seed=seed)
    forces = surface(lines[:, 0])[1]
    size, largest = float(np.sqrt(np.mean(forces**2))), float(np.linalg.norm(forces, axis=-1).max())
    text = (
        f"on an atom, of {n_lines} random distortions in which neighbours keep {CLOSEST:g} of their distance; more "
        "means that the potential extrapolates there; threshold chosen here: twice that of N2 at such a distance"
    )
    of_size = Verdict("largest force", largest, "eV/angstrom", LARGEST_FORCE, largest <= LARGEST_FORCE, text)
    if size == 0.0:
        jumps = [_not_measured(f"largest {kind} jump", JUMP_THRESHOLD, "no forces") for kind in ("energy", "force")]
        return [*jumps, of_size]
    found, noise = largest_jumps(surface, lines, step, looks=n_lines), energy_noise(surface, atoms.positions, seed)
    text = f"of {{:.2e}} eV{{}} on {n_lines} random lines, over the root mean square force of {size:.3g} eV/angstrom"
    error, origin = _NOISE_OF_A_JUMP * noise / size, "; threshold chosen here: the spacing of half precision"
    of_energy = text.format(found.energy, "") + " times 1 angstrom" + origin
    of_forces = text.format(found.forces, "/angstrom") + origin
    return [
        judge("largest energy jump", found.energy / size, error, JUMP_THRESHOLD, of_energy),
        judge("largest force jump", found.forces / size, 0.0, JUMP_THRESHOLD, of_forces),
        of_size,
    ]


def stress_verdict(atoms: Atoms, seed: int = 0) -> Verdict:
    """Stress against central differences of the energy by strain, dE/dstrain / V, of all six components.

    Args:
        atoms: periodic in all directions, with its calculator; it is first distorted, its cell by some percent.
        seed: of the distortion.

    Raises:
        InputError: there is no calculator.
    """
    name, random, start = "stress against energy differences", np.random.default_rng([seed, 7]), unconstrained(atoms)
    if not atoms.pbc.all():
        return _not_measured(name, STRESS_THRESHOLD, "a stress needs a structure periodic in all directions")
    start.positions += DISTORTION * random.standard_normal(start.positions.shape)
    strain = random.standard_normal((3, 3))
    start = _strained(start, 0.01 * (strain + strain.T))
    try:
        virial = start.get_volume() * start.get_stress(voigt=False)
    except NotImplementedError:
        return _not_measured(name, STRESS_THRESHOLD, "the calculator has no stress")
    size, noise = float(np.linalg.norm(virial)), energy_noise(calculator_surface(start), start.positions, seed)
    if size == 0.0:
        return _not_measured(name, STRESS_THRESHOLD, "the stress is zero")
    found = []
    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        strain = np.zeros((3, 3))
        strain[i, j] = strain[j, i] = 1.0 if i == j else np.sqrt(0.5)  # of norm 1

        def energies(x: np.ndarray, strain: np.ndarray = strain) -> np.ndarray:
            return np.array([_strained(start, value * strain).get_potential_energy() for value in x])

        slope, error = _slope(energies, _LARGEST_STRAIN, noise)
        found.append([np.sum(virial * strain) - slope, error])
    value, error = np.linalg.norm(found, axis=0) / size
    text = (
        "|stress - dE/dstrain / V| / |stress|; 2 when its sign is wrong; threshold chosen here, ten times that of the "
        "forces, since the terms of a stress cancel"
    )
    return judge(name, value, error, STRESS_THRESHOLD, text)


def _strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    copy = copied(atoms)
    copy.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return copy
