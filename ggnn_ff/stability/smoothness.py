"""Whether an energy surface is smooth: the largest jumps of energy and forces along lines through configuration space.

A jump is what is left of a difference when the distance goes to zero; a steep slope leaves nothing. It shows in the
fourth differences on an even grid, f(-2h) - 4 f(-h) + 6 f(0) - 4 f(h) + f(2h): a smooth function makes them h^4 times
its fourth derivative, a jump three times its size, however small h is. So the search looks closer and closer, where
they are largest, until they vanish or h is `FINEST`. The functions have to compute in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from scipy.spatial import cKDTree

from ggnn_ff.errors import InputError

Surface = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Positions (K, N, 3) in angstrom -> energies (K,) in eV and forces (K, N, 3) in eV/angstrom."""

FINEST: float = 1e-9
"""angstrom, the spacing of the last look."""

NEGLIGIBLE: float = 1e-10
"""eV or eV/angstrom; a fourth difference below this is rounding, and there is no need to look closer."""

CLOSEST: float = 0.7
"""Of a distance in a structure: random lines keep atoms further apart than this."""

_WINDOW = 4  # grid spacings that a closer look covers
_REFINEMENT = 4  # by what the spacing shrinks from look to look


@dataclass(frozen=True)
class Jumps:
    """The largest jumps along some lines.

    Attributes:
        energy: eV.
        forces: largest jump of a component, eV/angstrom.
        energy_at: number of the line (from 0) and fraction of it where that of the energy is.
        forces_at: the same for the forces.
        n_lines: how many lines.
        largest_force: largest component on all lines, eV/angstrom; jumps of 1e-12 of it are rounding.
    """

    energy: float
    forces: float
    energy_at: tuple[int, float]
    forces_at: tuple[int, float]
    n_lines: int
    largest_force: float


def largest_jumps(surface: Surface, lines: np.ndarray, step: float = 2e-3, looks: int = 20) -> Jumps:
    """Searches lines for jumps.

    Args:
        surface: in float64.
        lines: (L, 2, N, 3), first and last positions of each line, angstrom.
        step: distance between points of the first grid, by the atom that moves most, angstrom.
        looks: at how many lines to look closer, those with the largest fourth differences, for energy and forces each.

    Returns:
        Of a smooth surface: no more than `NEGLIGIBLE`.

    Raises:
        InputError: `lines` of another shape, or a line along which nothing moves, or energies that are not finite.
    """
    lines = np.asarray(lines, dtype=np.float64)
    if lines.ndim != 4 or lines.shape[1] != 2 or lines.shape[3] != 3 or not len(lines):
        raise InputError(f"`lines` must have shape (L, 2, N, 3) with at least one line, got {lines.shape}")
    lengths = np.linalg.norm(lines[:, 1] - lines[:, 0], axis=-1).max(axis=-1)  # (L,)
    if not (lengths > 0.0).all():
        raise InputError(f"`lines`: line {int(lengths.argmin())} must end where it does not begin, but nothing moves")
    suspects: tuple[list[_Suspect], list[_Suspect]] = ([], [])
    largest_force = 0.0
    for number, length in enumerate(lengths):
        grid = np.linspace(0.0, 1.0, max(int(np.ceil(length / step)), 2 * _WINDOW) + 1)
        energies_and_forces = _along(surface, lines[number], grid)
        largest_force = max(largest_force, float(np.abs(energies_and_forces[1]).max()))
        for found, values in zip(suspects, energies_and_forces, strict=True):
            where, size = _largest_fourth_difference(values)
            found.append(_Suspect(size, number, float(grid[where]), float(grid[1])))
    energy, forces = (
        max(_look_closer(surface, lines[s.line], s, kind, FINEST / lengths[s.line]) for s in _first(found, looks))
        for kind, found in enumerate(suspects)
    )
    return Jumps(energy[0], forces[0], energy[1:], forces[1:], len(lines), largest_force)


@dataclass(frozen=True, order=True)
class _Suspect:
    """Where on a line, and on how fine a grid, a fourth difference was large; lengths as fractions of the line."""

    size: float
    line: int
    where: float
    spacing: float


def _first(suspects: list[_Suspect], number: int) -> list[_Suspect]:
    return sorted(suspects, reverse=True)[:number]


def _along(surface: Surface, line: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies (K, 1) and force components (K, 3N) at fractions (K,) of a line (2, N, 3)."""
    energies, forces = surface(line[0] + grid[:, None, None] * (line[1] - line[0]))
    values = energies.reshape(len(grid), 1), forces.reshape(len(grid), -1)
    if not all(np.isfinite(value).all() for value in values):
        raise InputError("`surface` must be finite along `lines`, got NaN or infinity; take lines of milder structures")
    return values


def _largest_fourth_difference(values: np.ndarray) -> tuple[int, float]:
    """Row of `values` (K, D) at the centre of the largest one, and its size."""
    sizes = np.abs(np.diff(values, n=4, axis=0)).max(axis=1)
    return int(sizes.argmax()) + 2, float(sizes.max())


def _look_closer(
    surface: Surface, line: np.ndarray, suspect: _Suspect, kind: int, finest: float
) -> tuple[float, int, float]:
    """Size, line and place of the jump where a suspect is; `kind` is 0 for energies and 1 for forces."""
    size, where, spacing = suspect.size, suspect.where, suspect.spacing
    n_points = _WINDOW * _REFINEMENT + 1
    while size > NEGLIGIBLE and spacing > finest:
        spacing /= _REFINEMENT
        width = (n_points - 1) * spacing
        grid = min(max(where - width / 2, 0.0), 1.0 - width) + spacing * np.arange(n_points)
        row, size = _largest_fourth_difference(_along(surface, line, grid)[kind])
        where = float(grid[row])
    return size / 3.0, suspect.line, where


# --- lines ---------------------------------------------------------------------------------------------------------


def random_lines(positions: np.ndarray, n_lines: int, amplitude: float = 0.1, seed: int = 0) -> np.ndarray:
    """Lines between two random distortions of a structure.

    Where neighbours come closer than `CLOSEST` of their distance in the structure, the distortions are made smaller:
    there, potentials extrapolate to energies so large that their rounding would be taken for jumps.

    Args:
        positions: (N, 3), angstrom.
        n_lines: how many.
        amplitude: standard deviation of each coordinate at both ends, angstrom; 0.1 is thermal at some hundred K.
        seed: of the random numbers.

    Returns:
        (L, 2, N, 3).
    """
    random = np.random.default_rng([seed, 0])
    first, second = cKDTree(positions).query_pairs(3.0, output_type="ndarray").T
    shortest = CLOSEST * np.linalg.norm(positions[first] - positions[second], axis=-1)
    fractions = np.linspace(0.0, 1.0, 21)[:, None, None]

    def too_close(line: np.ndarray) -> bool:
        points = line[0] + fractions * (line[1] - line[0])
        return bool((np.linalg.norm(points[:, first] - points[:, second], axis=-1) < shortest).any())

    lines = positions + amplitude * random.standard_normal((n_lines, 2, *positions.shape))
    for number in range(n_lines):
        while too_close(lines[number]):
            lines[number] = positions + 0.8 * (lines[number] - positions)
    return lines


def cutoff_crossings(
    positions: np.ndarray, cutoff: float, n_lines: int, seed: int = 0, length: float = 0.04
) -> np.ndarray:
    """Lines along which a copy of a molecule, turned at random, leaves it, and one pair crosses the cutoff midway.

    Args:
        positions: (N, 3) of the molecule, angstrom.
        cutoff: angstrom.
        n_lines: how many.
        seed: of the random numbers.
        length: of each line, angstrom.

    Returns:
        (L, 2, 2N, 3), the copy last.
    """
    random = np.random.default_rng([seed, 1])
    lines: list[np.ndarray] = []
    while len(lines) < n_lines:
        rotation, direction = _random_rotation(random), _random_direction(random)
        fixed, moving = random.integers(len(positions), size=2)
        copy = positions @ rotation.T
        copy = copy + (positions[fixed] - copy[moving] + cutoff * direction)
        closest = np.linalg.norm(copy[:, None] - positions[None], axis=-1).min()
        if closest < 0.4 * cutoff:  # atoms of the two molecules would overlap
            continue
        ends = [np.concatenate([positions, copy + shift * direction]) for shift in (-length / 2, length / 2)]
        lines.append(np.stack(ends))
    return np.stack(lines)


def order_swaps(positions: np.ndarray, n_lines: int, seed: int = 0, length: float = 0.04) -> np.ndarray:
    """Lines along which two neighbours of an atom swap places in the order of their distances midway.

    Of each distorted structure two atoms are taken that are about equally far from a third; one moves along the bond.

    Args:
        positions: (N, 3) of at least three atoms, angstrom.
        n_lines: how many.
        seed: of the random numbers.
        length: of each line, angstrom.

    Returns:
        (L, 2, N, 3).
    """
    if len(positions) < 3:
        raise InputError(f"`positions` must be of at least three atoms for neighbours to swap, got {len(positions)}")
    random = np.random.default_rng([seed, 2])
    lines = []
    for _ in range(n_lines):
        distorted = positions + 0.05 * random.standard_normal(positions.shape)
        centre = int(random.integers(len(positions)))
        distances = np.linalg.norm(distorted - distorted[centre], axis=-1)
        order = np.argsort(distances)[1:]  # without the centre
        place = int(np.argmin(np.diff(distances[order]))) if random.random() < 0.5 else 0
        moving, other = order[place], order[place + 1]
        direction = (distorted[moving] - distorted[centre]) / distances[moving]
        ends = np.stack([distorted, distorted])
        for end, shift in zip(ends, (-length / 2, length / 2), strict=True):
            end[moving] = distorted[centre] + (distances[other] + shift) * direction
        lines.append(ends)
    return np.stack(lines)


def _random_direction(random: np.random.Generator) -> np.ndarray:
    vector = random.standard_normal(3)
    return vector / np.linalg.norm(vector)


def _random_rotation(random: np.random.Generator) -> np.ndarray:
    matrix, _ = np.linalg.qr(random.standard_normal((3, 3)))
    return matrix * np.sign(np.linalg.det(matrix))


def calculator_surface(atoms: Atoms) -> Surface:
    """The surface of the ASE calculator that `atoms` carries, for its elements and cell."""

    def surface(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved = atoms.copy()
        moved.calc = atoms.calc
        energies, forces = [], []
        for frame in positions:
            moved.positions = frame
            energies.append(moved.get_potential_energy())
            forces.append(moved.get_forces())
        return np.array(energies), np.array(forces)

    return surface
