"""Whether a simulated structure stays physical: its bonds, and the distances between its atoms."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase.geometry import find_mic

from ggnn_ff.bonds import bond_lengths, bond_name, bonds
from ggnn_ff.errors import InputError
from ggnn_ff.stability.blocks import chunks

N_BINS = 500
LARGEST_DISTANCE = 10.0
"""h(r) as in arXiv 2210.07237: 500 bins up to 10 angstrom."""

_PAIRS_AT_ONCE = 1_000_000  # of atoms
_SEARCHED_AT_ONCE = 20_000  # vectors, each with its images in all neighbouring cells


@dataclass(frozen=True)
class BondDeviations:
    """How far the bonds of a trajectory are from their reference lengths.

    Attributes:
        names: such as "C1-H4", one per bond.
        reference: (B,) angstrom, reference length of each bond.
        largest: (T,) angstrom, largest absolute deviation of any bond in each frame; zeros without bonds.
        worst: name of the bond with the largest deviation of the whole trajectory, "" without bonds.
        first_frame: first frame (from 0) where a bond deviates by more than the threshold, or None.
        broken: name of the bond that deviates most in `first_frame`, or None.
        broken_length: its length in that frame, angstrom, or None.
        broken_reference: its reference length, angstrom, or None.
    """

    names: tuple[str, ...]
    reference: np.ndarray
    largest: np.ndarray
    worst: str
    first_frame: int | None
    broken: str | None
    broken_length: float | None
    broken_reference: float | None


def lengths_of_bonds(positions: np.ndarray, pairs: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Minimum-image bond lengths of every frame.

    Args:
        positions: (T, N, 3), angstrom.
        pairs: (B, 2) int64.
        cell: (T, 3, 3), angstrom; frames may have different cells.
        pbc: (3,) bool.

    Returns:
        (T, B), angstrom.
    """
    if not np.any(pbc) or np.all(cell == cell[0]):
        return bond_lengths(positions, pairs, cell[0], pbc)
    return np.stack([bond_lengths(frame, pairs, box, pbc) for frame, box in zip(positions, cell, strict=True)])


def bond_deviations(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    *,
    threshold: float,
    reference: tuple[np.ndarray, np.ndarray] | None = None,
) -> BondDeviations:
    """Largest deviation of a bond from its reference length, in every frame.

    The criterion of arXiv 2210.07237: a molecule has collapsed at the first time that a bond is further than
    a threshold from its mean length in a reference trajectory. Bonds are those of the first frame of the
    reference; without one, of the first frame of the trajectory, whose lengths then stand for the mean.

    Args:
        numbers: (N,) atomic numbers.
        positions: (T, N, 3), angstrom.
        cell: (T, 3, 3), angstrom.
        pbc: (3,) bool.
        threshold: angstrom.
        reference: positions (R, N, 3) and cell (R, 3, 3) of the reference trajectory, with the same atoms.

    Raises:
        InputError: if the reference has another number of atoms, or loses a bond itself.
    """
    reference_positions, reference_cell = (positions[:1], cell[:1]) if reference is None else reference
    if reference_positions.shape[1] != len(numbers):
        raise InputError(
            f"`reference` must have the {len(numbers)} atoms of the trajectory, got "
            f"{reference_positions.shape[1]}; give a trajectory of the same system"
        )
    pairs = bonds(numbers, reference_positions[0], reference_cell[0], pbc)
    names = tuple(bond_name(numbers, pair) for pair in pairs)
    if not names:
        return BondDeviations(names, np.empty(0), np.zeros(len(positions)), "", None, None, None, None)
    means = np.zeros(len(pairs))
    for part in chunks(len(reference_positions), len(pairs)):
        means += lengths_of_bonds(reference_positions[part], pairs, reference_cell[part], pbc).sum(axis=0)
    means /= len(reference_positions)
    largest, _ = _deviations(reference_positions, pairs, reference_cell, pbc, means)
    if np.any(largest > threshold):
        frame = int(np.argmax(largest > threshold))
        bond, length = _furthest(reference_positions[frame], pairs, reference_cell[frame], pbc, means)
        raise InputError(
            f"`reference` must keep its bonds, but {names[bond]} is {length:.2f} "
            f"angstrom in frame {frame} and {means[bond]:.2f} on average; give a trajectory that stays intact"
        )
    largest, of_bonds = _deviations(positions, pairs, cell, pbc, means)
    worst = names[int(of_bonds.argmax())]
    beyond = largest > threshold
    if not beyond.any():
        return BondDeviations(names, means, largest, worst, None, None, None, None)
    frame = int(beyond.argmax())
    bond, length = _furthest(positions[frame], pairs, cell[frame], pbc, means)
    return BondDeviations(
        names=names,
        reference=means,
        largest=largest,
        worst=worst,
        first_frame=frame,
        broken=names[bond],
        broken_length=length,
        broken_reference=float(means[bond]),
    )


def _deviations(
    positions: np.ndarray, pairs: np.ndarray, cell: np.ndarray, pbc: np.ndarray, means: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Largest deviation of each frame (T,), and of each bond (B,), angstrom."""
    largest, of_bonds = np.empty(len(positions)), np.zeros(len(pairs))
    for part in chunks(len(positions), len(pairs)):
        deviations = np.abs(lengths_of_bonds(positions[part], pairs, cell[part], pbc) - means)
        largest[part] = deviations.max(axis=1)
        of_bonds = np.maximum(of_bonds, deviations.max(axis=0))
    return largest, of_bonds


def _furthest(
    frame: np.ndarray, pairs: np.ndarray, cell: np.ndarray, pbc: np.ndarray, means: np.ndarray
) -> tuple[int, float]:
    """The bond of one frame that is furthest from its mean, and its length."""
    lengths = bond_lengths(frame, pairs, cell, pbc)
    bond = int(np.abs(lengths - means).argmax())
    return bond, float(lengths[bond])


def smallest_height(cell: np.ndarray) -> float:
    """Smallest distance between opposite faces of the cells (T, 3, 3) of any frame, angstrom."""
    return 1.0 / float(np.linalg.norm(np.linalg.inv(cell), axis=1).max())


def nearest_images(vectors: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Vectors between atoms with their fractional coordinates rounded to the nearest image.

    That image is the nearest one whenever it is closer than half of every height of the cell, however skewed that is.

    Args:
        vectors: (T, P, 3), angstrom.
        cell: (T, 3, 3), angstrom.
        pbc: (3,) bool.
    """
    if not np.any(pbc) or vectors.size == 0:
        return vectors
    if np.all(cell == cell[0]):  # one product of matrices, many times faster
        flat, box = vectors.reshape(-1, 3), cell[0]
        return (flat - np.round(flat @ np.linalg.pinv(box)) * pbc @ box).reshape(vectors.shape)
    return vectors - np.round(vectors @ np.linalg.pinv(cell)) * pbc @ cell  # some cell vectors may be zero


def shortest_images(vectors: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The shortest of the images of each vector, in any cell.

    Args:
        vectors: (P, 3), angstrom.
        cell: (3, 3), angstrom, rows are cell vectors.
        pbc: (3,) bool.
    """
    found = nearest_images(vectors[None], cell[None], pbc)[0]
    products = cell @ cell.T
    if not np.any(pbc) or np.allclose(products, np.diag(np.diag(products)), atol=1e-9 * np.abs(products).max()):
        return found
    sure = 0.5 * smallest_height(cell[None]) if np.all(pbc) else 0.0
    far = np.flatnonzero(np.einsum("pk,pk->p", found, found) >= sure**2)
    for some in np.array_split(far, len(far) // _SEARCHED_AT_ONCE + 1):
        found[some] = find_mic(vectors[some], cell, pbc)[0]
    return found


def pair_blocks(first: np.ndarray, second: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs (P, 2) of an atom of `first` with one of `second`, in blocks that fit into memory.

    Where both are the same atoms, each pair of two different ones comes once.
    """
    same = np.array_equal(first, second)
    n_rows = max(1, _PAIRS_AT_ONCE // max(1, len(second)))
    for start in range(0, len(first), n_rows):
        some, others = first[start : start + n_rows], second[start:] if same else second
        pairs = np.stack([np.repeat(some, len(others)), np.tile(others, len(some))], axis=1)
        pairs = pairs[pairs[:, 0] < pairs[:, 1]] if same else pairs
        if len(pairs):
            yield pairs


def distance_distribution(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    *,
    n_bins: int = N_BINS,
    largest_distance: float = LARGEST_DISTANCE,
) -> tuple[np.ndarray, np.ndarray]:
    """Distribution of the distances between all pairs of atoms over all frames, h(r) of arXiv 2210.07237.

    h(r) = < 1 / (N (N - 1)) sum_i sum_(j != i) delta(r - |r_i - r_j|) >, so that its integral is the share of
    the pairs closer than `largest_distance`. Periodic directions use the nearest image.

    Args:
        positions: (T, N, 3), angstrom.
        cell: (T, 3, 3), angstrom.
        pbc: (3,) bool.
        n_bins: number of bins.
        largest_distance: angstrom, end of the last bin.

    Returns:
        Centres of the bins (n_bins,), angstrom, and h (n_bins,), 1/angstrom; zeros for a single atom.
    """
    width = largest_distance / n_bins
    centres = (np.arange(n_bins) + 0.5) * width
    n_frames, n_atoms = positions.shape[:2]
    n_pairs = n_atoms * (n_atoms - 1) // 2
    if n_pairs == 0:
        return centres, np.zeros(n_bins)
    fixed_cell = not np.any(pbc) or bool(np.all(cell == cell[0]))
    counts = np.zeros(n_bins + 1, dtype=np.int64)
    every = np.arange(n_atoms)
    for pairs in pair_blocks(every, every):
        parts = chunks(n_frames, len(pairs)) if fixed_cell else (slice(frame, frame + 1) for frame in range(n_frames))
        for part in parts:
            frames = positions[part]
            vectors = (frames[:, pairs[:, 1]] - frames[:, pairs[:, 0]]).reshape(-1, 3)
            vectors = shortest_images(vectors, cell[part.start], pbc)
            distances = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
            bins = np.minimum(distances / width, n_bins).astype(np.int64)  # the extra bin takes what is further
            counts += np.bincount(bins, minlength=n_bins + 1)
    return centres, counts[:n_bins] / (n_frames * n_pairs * width)


def distribution_error(h: np.ndarray, reference: np.ndarray, largest_distance: float = LARGEST_DISTANCE) -> float:
    """Mean absolute error of h(r) as in arXiv 2210.07237: the integral of |h - h_reference| over r.

    It is 0 for equal distributions and 2 for disjoint ones.

    Args:
        h: (n_bins,), 1/angstrom.
        reference: (n_bins,), 1/angstrom, with the same bins.
        largest_distance: angstrom, end of the last bin of both.
    """
    return float(np.sum(np.abs(h - reference)) * largest_distance / len(h))
