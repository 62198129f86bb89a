"""Chemical bonds of a structure and their lengths, cheap enough to watch at every step of a simulation."""

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.geometry import find_mic
from ase.neighborlist import primitive_neighbor_list
from scipy.sparse import coo_array

BOND_FACTOR: float = 1.3
"""Two atoms are bonded when closer than this times the sum of their covalent radii.

With the radii of Cordero et al. (Dalton Trans. 2008, 2832; `ase.data.covalent_radii`) a C-H pair counts as
bonded to 1.39 angstrom and a C-C pair to 1.98: room for a thermal stretch, well below the 1,3 distances.
"""

BOND_MARGIN: float = 0.3
"""angstrom. Closer than the sum of their covalent radii plus this, two atoms are bonded whatever is around them.

Radii of heavy atoms are so large against their van der Waals radii that `BOND_FACTOR` alone takes contacts for bonds:
in CBr4 bromine atoms that are 3.17 angstrom apart, against 3.12; Br2 has 2.28. A sum is narrower for them, 2.70. Chosen
here, less than the 0.4 of Meng and Lewis (J. Comput. Chem. 12, 891, 1991), so that contacts have room to vibrate.
"""

LONGEST_DEVIATION: float = 0.5
"""angstrom, of a bond from its reference length; a longer one is broken: arXiv 2210.07237, section 3."""

# H, He, B to Ne, Si to Ar, Ge to Kr, Sb to Xe, At, Rn: the metalloids count as nonmetals
_NONMETALS = [1, 2, *range(5, 11), *range(14, 19), *range(32, 37), *range(51, 55), 85, 86]
IS_METAL: np.ndarray = ~np.isin(np.arange(len(chemical_symbols)), [0, *_NONMETALS])
"""By atomic number."""

# Their bonds are ionic: a cation changes its neighbours within nanoseconds without anything having broken (Helm and
# Merbach, Chem. Rev. 105, 1923, 2005). All alkali and alkaline-earth metals but beryllium, whose bonds are covalent.
_CATIONS = [3, 11, 12, 19, 20, 37, 38, 55, 56, 87, 88]
_IS_CATION = np.isin(np.arange(len(chemical_symbols)), _CATIONS)

_DENSE_LIMIT = 500  # atoms; above, a cell list is faster than all pairs and needs far less memory


def bonds(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Pairs of atoms closer than `BOND_FACTOR` times the sum of their covalent radii.

    Two neighbours of one atom have to be closer, by `sure_lengths`, for a bond of their own. A bond between an atom and
    a periodic image of itself is not counted, and none between two metals or of an alkali or alkaline-earth metal:
    their atoms change neighbours without anything having broken.

    Args:
        numbers: (N,) atomic numbers.
        positions: (N, 3), angstrom.
        cell: (3, 3), angstrom, rows are cell vectors.
        pbc: (3,) bool.

    Returns:
        (B, 2) int64, first index below the second, sorted.
    """
    radii = BOND_FACTOR * covalent_radii[numbers]
    if len(numbers) <= _DENSE_LIMIT and not np.any(pbc):
        vectors = positions[:, None, :] - positions[None, :, :]
        squares = np.einsum("ijk,ijk->ij", vectors, vectors)
        pairs = np.argwhere(np.triu(squares < np.add.outer(radii, radii) ** 2, k=1))
        lengths = np.sqrt(squares[tuple(pairs.T)])
    else:
        first, second, between = overlaps(positions, cell, pbc, radii)
        pairs, lengths = np.stack([first, second], axis=1), np.linalg.norm(between, axis=1)
    possible = may_bond(numbers, *pairs.T)
    pairs, long = pairs[possible], (lengths >= sure_lengths(numbers, *pairs.T))[possible]
    if long.any():
        half = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(len(numbers), len(numbers)))
        graph = (half + half.T).tocsr()
        n_common = (graph @ graph)[tuple(pairs.T)]  # neighbours of both atoms
        pairs = pairs[~long | (n_common == 0)]
    return np.unique(pairs, axis=0).astype(np.int64).reshape(-1, 2)


def overlaps(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radii: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of different atoms closer than the sum of their radii, once for each image that is.

    Args:
        positions: (N, 3), angstrom.
        cell: (3, 3), angstrom, rows are cell vectors.
        pbc: (3,) bool.
        radii: (N,), angstrom.

    Returns:
        Both atoms (P,), the first index below the second, and the vectors (P, 3) between them, angstrom.
    """
    if not np.any(pbc):  # a box that holds all atoms keeps the search linear in their number
        positions, cell = positions - positions.min(axis=0), np.diag(np.ptp(positions, axis=0) + 1.0)
    first, second, vectors = primitive_neighbor_list("ijD", pbc, np.asarray(cell, dtype=np.float64), positions, radii)
    once = first < second
    return first[once], second[once], vectors[once]


def may_bond(numbers: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P,) bool: pairs of atoms (P,) that are bonded when they are close."""
    metallic = IS_METAL[numbers[first]] & IS_METAL[numbers[second]]
    return ~(metallic | _IS_CATION[numbers[first]] | _IS_CATION[numbers[second]])


def sure_lengths(numbers: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P,) angstrom: pairs of atoms (P,) that are closer are no contacts but bonds, by `BOND_MARGIN`."""
    sums = covalent_radii[numbers[first]] + covalent_radii[numbers[second]]
    return np.minimum(BOND_FACTOR * sums, sums + BOND_MARGIN)


def bond_lengths(positions: np.ndarray, pairs: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Minimum-image distances of pairs of atoms, for one structure or for many in the same cell.

    Args:
        positions: (N, 3) or (T, N, 3), angstrom.
        pairs: (B, 2) int64.
        cell: (3, 3), angstrom, rows are cell vectors.
        pbc: (3,) bool.

    Returns:
        (B,) or (T, B), angstrom.
    """
    vectors = positions[..., pairs[:, 1], :] - positions[..., pairs[:, 0], :]
    if np.any(pbc):
        vectors = find_mic(vectors.reshape(-1, 3), cell, pbc)[0].reshape(vectors.shape)
    return np.sqrt(np.einsum("...k,...k->...", vectors, vectors))


def bond_name(numbers: np.ndarray, pair: np.ndarray) -> str:
    """Such as `C1-H4`: element and index of both atoms, counted from 0 as in ASE."""
    return "-".join(f"{chemical_symbols[numbers[atom]]}{atom}" for atom in pair)
