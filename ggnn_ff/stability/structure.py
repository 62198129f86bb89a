"""Whether a simulated structure stays physical: its bonds, and the distances between its atoms."""

from dataclasses import dataclass

import numpy as np
from ase.geometry import find_mic

from ggnn_ff.bonds import bond_lengths, bond_name, bonds
from ggnn_ff.errors import InputError

N_BINS = 500
LARGEST_DISTANCE = 10.0
"""h(r) as in arXiv 2210.07237: 500 bins up to 10 angstrom."""

_CHUNK_VALUES = 2_000_000  # distances held at once


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
    reference_lengths = lengths_of_bonds(reference_positions, pairs, reference_cell, pbc)
    means = reference_lengths.mean(axis=0)
    if np.any(np.abs(reference_lengths - means) > threshold):
        frame, bond = np.argwhere(np.abs(reference_lengths - means) > threshold)[0]
        raise InputError(
            f"`reference` must keep its bonds, but {names[bond]} is {reference_lengths[frame, bond]:.2f} "
            f"angstrom in frame {frame} and {means[bond]:.2f} on average; give a trajectory that stays intact"
        )
    lengths = lengths_of_bonds(positions, pairs, cell, pbc)
    deviations = np.abs(lengths - means)  # (T, B)
    largest = deviations.max(axis=1)
    worst = names[int(deviations.max(axis=0).argmax())]
    beyond = largest > threshold
    if not beyond.any():
        return BondDeviations(names, means, largest, worst, None, None, None, None)
    frame = int(beyond.argmax())
    bond = int(deviations[frame].argmax())
    return BondDeviations(
        names=names,
        reference=means,
        largest=largest,
        worst=worst,
        first_frame=frame,
        broken=names[bond],
        broken_length=float(lengths[frame, bond]),
        broken_reference=float(means[bond]),
    )


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
    first, second = np.triu_indices(n_atoms, k=1)
    fixed_cell = not np.any(pbc) or bool(np.all(cell == cell[0]))
    chunk = max(1, _CHUNK_VALUES // n_pairs) if fixed_cell else 1
    counts = np.zeros(n_bins + 1, dtype=np.int64)
    for start in range(0, n_frames, chunk):
        frames = positions[start : start + chunk]
        vectors = (frames[:, second] - frames[:, first]).reshape(-1, 3)
        if np.any(pbc):
            vectors = find_mic(vectors, cell[start], pbc)[0]
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
