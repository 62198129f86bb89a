"""Whether energies and forces of an ASE calculator have the symmetries of physics, and no memory.

Rotating, reflecting or shifting a structure, exchanging atoms of one element, or moving an atom by a lattice vector
changes no energy and turns the forces along. A force field with a fixed list of bonds has not the symmetry of exchange:
it is right to fail, where atoms exchange bonds. Nor has a calculator that keeps the neighbours of an earlier structure;
that is also asked directly, since energy and forces are functions of the structure, whatever was asked before.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from scipy.spatial.transform import Rotation

from ggnn_ff.errors import InputError
from ggnn_ff.stability.gradient import DISTORTION, energy_noise, judge, unconstrained
from ggnn_ff.stability.smoothness import calculator_surface
from ggnn_ff.stability.verdict import Verdict

ENERGY_THRESHOLD: float = 1e-5
"""Change of the energy over |F| times 1 angstrom, |F| of all 3N components. Chosen here: above float32 of molecules.
What exceeds it by less than six times the measured noise of the energy is not judged."""

FORCE_THRESHOLD: float = 5e-4
"""Change of the forces over |F|. Chosen here: a self-consistent field that is converged by default, GFN2-xTB, comes to
1e-4, float32 to about 1e-5."""

SWELLING: float = 1.5
"""Factor of all distances between the two structures that are asked about in turns. Chosen here: pairs cross any cutoff
but the longest, and GFN2-xTB still finds one solution."""

_LONGEST_SHIFT = 5.0  # angstrom, of a translation: positions in float32 keep 7 digits
_MOST_CELLS = 2  # by which an atom is moved


class Moved(NamedTuple):
    """What an operation makes of a structure.

    Attributes:
        atoms: the structure.
        matrix: (3, 3), which turns the forces.
        order: (N,) int, which atoms they were before.
    """

    atoms: Atoms
    matrix: np.ndarray
    order: np.ndarray


def _rotated(atoms: Atoms, random: np.random.Generator) -> Moved:
    return _turned(atoms, _random_rotation(random), 1.0)


def _reflected(atoms: Atoms, random: np.random.Generator) -> Moved:
    """Turned, and inverted; the lattice is its own inverse, so that the cell stays right-handed."""
    return _turned(atoms, _random_rotation(random), -1.0)


def _permuted(atoms: Atoms, random: np.random.Generator) -> Moved | None:
    """Atoms of one element in another order, where each gets another place; None if there are no two."""
    order = np.arange(len(atoms))
    for number in np.unique(atoms.numbers):
        alike = random.permutation(np.flatnonzero(atoms.numbers == number))
        order[alike] = np.roll(alike, 1)
    return None if (order == np.arange(len(atoms))).all() else Moved(atoms[order], np.eye(3), order)


def _translated(atoms: Atoms, random: np.random.Generator) -> Moved:
    return _shifted(atoms, random.uniform(-_LONGEST_SHIFT, _LONGEST_SHIFT, 3))


def _moved_by_lattice_vectors(atoms: Atoms, random: np.random.Generator) -> Moved | None:
    """Each atom on its own, as wrapping into the cell does; None if there is no lattice."""
    if not atoms.pbc.any():
        return None
    cells = random.integers(-_MOST_CELLS, _MOST_CELLS + 1, size=(len(atoms), 3)) * atoms.pbc
    return _shifted(atoms, cells @ atoms.cell.array)


OPERATIONS: dict[str, Callable[[Atoms, np.random.Generator], Moved | None]] = {
    "rotation": _rotated,
    "reflection": _reflected,
    "permutation of like atoms": _permuted,
    "translation": _translated,
    "lattice translation": _moved_by_lattice_vectors,
}
"""What is done to a structure, by name."""


def symmetry_verdicts(structures: Sequence[Atoms], n_trials: int = 4, seed: int = 0) -> list[Verdict]:
    """Largest changes of energy and forces under random operations of each symmetry.

    Each structure is first distorted by `DISTORTION`: a mirror plane would hide a wrong reflection, a minimum has no
    forces to compare with.

    Args:
        structures: each with its calculator, which may be one for all.
        n_trials: random operations of each kind on each structure.
        seed: of distortions and operations.

    Returns:
        For each of `OPERATIONS` one of the energy and one of the forces.

    Raises:
        InputError: there are no structures, or one has no calculator.
    """
    if not structures:
        raise InputError("`structures` must have at least one structure, got none")
    random = np.random.default_rng([seed, 8])
    changes: dict[str, list[_Change]] = {name: [] for name in OPERATIONS}
    for structure in structures:
        atoms = unconstrained(structure)
        atoms.positions += DISTORTION * random.standard_normal(atoms.positions.shape)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        size = float(np.linalg.norm(forces))
        if size == 0.0:
            continue
        noise = energy_noise(calculator_surface(atoms), atoms.positions, seed)
        for name, operation in OPERATIONS.items():
            for _ in range(n_trials):
                moved = operation(atoms, random)
                if moved is None:
                    break
                moved.atoms.calc = atoms.calc
                energy_change = abs(moved.atoms.get_potential_energy() - energy)
                force_change = np.linalg.norm(moved.atoms.get_forces() - forces[moved.order] @ moved.matrix.T)
                changes[name].append(_Change(energy_change / size, noise / size, float(force_change) / size))
    text = "largest change under {} random operations, over |F|"
    return [verdict for name, found in changes.items() for verdict in _verdicts(name, found, text.format(len(found)))]


def history_verdicts(atoms: Atoms, fresh: Calculator) -> list[Verdict]:
    """Largest differences of energy and forces between two calculators that were asked about the same in another order.

    That of `atoms` sees the structure, distorted by `DISTORTION`, and then the same swollen by `SWELLING`; the fresh
    one sees the swollen one first. So a list of neighbours that is never made anew, or too late, is another for each.
    The thresholds are those of the symmetries: what a self-consistent field keeps by starting from its last solution
    is below, for GFN2-xTB of ethanol 2e-5 of the forces.

    Args:
        atoms: with its calculator, which may have been asked before.
        fresh: another calculator like it, which has not.

    Returns:
        One of the energy and one of the forces, over |F| of the structure that is not swollen.

    Raises:
        InputError: there is no calculator.
    """
    usual, random = unconstrained(atoms), np.random.default_rng(8)
    usual.positions += DISTORTION * random.standard_normal(usual.positions.shape)
    noise = energy_noise(calculator_surface(usual), usual.positions)
    swollen = usual.copy()
    swollen.set_cell(SWELLING * usual.cell.array)
    swollen.positions *= SWELLING
    there = [_answer(one, usual.calc) for one in (usual, swollen)]
    back = [_answer(one, fresh) for one in (swollen, usual)][::-1]
    size, found = float(np.linalg.norm(there[0][1])), []
    if size > 0.0:
        for (energy, forces), (other_energy, other_forces) in zip(there, back, strict=True):
            of_forces = float(np.linalg.norm(forces - other_forces))
            found.append(_Change(abs(energy - other_energy) / size, noise / size, of_forces / size))
    return _verdicts("history", found, "largest difference between two calculators asked in another order, over |F|")


def _answer(atoms: Atoms, calculator: Calculator) -> tuple[float, np.ndarray]:
    """Energy and forces."""
    copy = atoms.copy()
    copy.calc = calculator
    return copy.get_potential_energy(), copy.get_forces()


class _Change(NamedTuple):
    """Over the norm of the forces: of the energy, its noise, and of the forces but for what an operation does."""

    energy: float
    noise: float
    forces: float


def _verdicts(name: str, found: list[_Change], text: str) -> list[Verdict]:
    """On the largest changes of one kind."""
    names = f"{name}: energy", f"{name}: forces"
    if not found:
        reason = "not measured: no structure has forces and allows this"
        thresholds = zip(names, (ENERGY_THRESHOLD, FORCE_THRESHOLD), strict=True)
        return [Verdict(of, None, "", threshold, None, reason) for of, threshold in thresholds]
    energy, noise, forces = np.max(found, axis=0)
    origin = "; threshold chosen here, above "
    of_energy = f"{text} times 1 angstrom{origin}float32"
    return [
        judge(names[0], energy, 3 * noise, ENERGY_THRESHOLD, of_energy),
        judge(names[1], forces, 0.0, FORCE_THRESHOLD, f"{text}{origin}float32 and self-consistent fields"),
    ]


def _turned(atoms: Atoms, rotation: np.ndarray, sign: float) -> Moved:
    """Positions by sign * rotation, and the cell by the rotation."""
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation.T)
    turned.positions = sign * atoms.positions @ rotation.T
    return Moved(turned, sign * rotation, np.arange(len(atoms)))


def _shifted(atoms: Atoms, shift: np.ndarray) -> Moved:
    shifted = atoms.copy()
    shifted.positions += shift
    return Moved(shifted, np.eye(3), np.arange(len(atoms)))


def _random_rotation(random: np.random.Generator) -> np.ndarray:
    """(3, 3), uniform: by a quaternion of random direction."""
    return Rotation.from_quat(random.standard_normal(4)).as_matrix()
