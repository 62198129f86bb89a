"""Torsions of molecules: dihedral angles of rotatable bonds, and how they are distributed."""

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from ggnn_ff.bonds import bonds
from ggnn_ff.errors import InputError
from ggnn_ff.stability.blocks import chunks
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.structure import nearest_images
from ggnn_ff.stability.topology import components
from ggnn_ff.stability.verdict import Verdict

DIHEDRAL_DIFFERENCE: float = 0.2
"""Largest share of a dihedral angle's distribution that may be elsewhere than in the reference. Chosen here: of two
equal conformers one is then 70 : 30, a free energy wrong by 0.5 kcal/mol at 300 K."""

DIHEDRAL_BINS: int = 36
"""Of 10 degrees, from -180 on."""

_LARGEST_ANGLE = 150.0  # degrees; no dihedral angle is taken at atoms whose bonds are nearly in line


@dataclass(frozen=True)
class DihedralDistribution:
    """How often a rotatable bond is at which angle.

    Attributes:
        name: the four atoms, such as "C0-C1-C2-C3".
        found: (DIHEDRAL_BINS,) shares of the frames, from -180 degrees on.
        reference: the same of the reference.
        difference: half the sum of |found - reference|: the share that is elsewhere.
        sampling: the larger of the differences between the halves of each trajectory: what chance alone does.
    """

    name: str
    found: np.ndarray
    reference: np.ndarray
    difference: float
    sampling: float


def dihedral_angles(trajectory: Trajectory, atoms: np.ndarray) -> np.ndarray:
    """Dihedral angles of four atoms i-j-k-l each, 0 for cis, positive clockwise along j-k (IUPAC).

    Args:
        trajectory: T frames.
        atoms: (R, 4) int64.

    Returns:
        (T, R), degrees, from -180 to 180.
    """
    angles = np.empty((len(trajectory), len(atoms)))
    for part in chunks(len(trajectory), atoms.size):
        positions = trajectory.positions[part]
        ends = positions[:, atoms[:, 1:]] - positions[:, atoms[:, :-1]]  # (t, R, 3, 3)
        vectors = nearest_images(ends.reshape(len(ends), -1, 3), trajectory.cell[part], trajectory.pbc)
        first, axis, last = np.moveaxis(vectors.reshape(ends.shape), 2, 0)
        normal = np.cross(axis, last)
        sine = np.linalg.norm(axis, axis=2) * np.einsum("trk,trk->tr", first, normal)
        angles[part] = np.degrees(np.arctan2(sine, np.einsum("trk,trk->tr", np.cross(first, axis), normal)))
    return angles


def rotatable_bonds(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Dihedral angles about the bonds that may rotate: those in no ring, with other atoms bonded at both ends.

    At each end the heaviest of them is taken, or the first. Left out are ends where all of them are equal and have no
    other bonds (methyl groups, NO2), which return to themselves by rotating, and ends that are in line (nitriles,
    alkynes). Double bonds are not told from single ones; their distributions are narrow in both trajectories.

    Returns:
        (R, 4) int64.
    """
    pairs = bonds(numbers, positions, cell, pbc)
    neighbours: list[list[int]] = [[] for _ in numbers]
    for first, second in pairs.tolist():
        neighbours[first].append(second)
        neighbours[second].append(first)
    found = []
    for index, (j, k) in enumerate(pairs.tolist()):
        ends = [[atom for atom in neighbours[centre] if atom != other] for centre, other in ((j, k), (k, j))]
        if not all(ends) or any(_equal(end, numbers, neighbours) for end in ends):
            continue
        i, ell = (max(end, key=lambda atom: (numbers[atom], -atom)) for end in ends)
        parts = components(len(numbers), np.delete(pairs, index, axis=0))
        if parts[j] != parts[k] and not any(
            _in_line(positions[[a, b, c]], cell, pbc) for a, b, c in ((i, j, k), (j, k, ell))
        ):
            found.append([i, j, k, ell])
    return np.array(found, dtype=np.int64).reshape(-1, 4)


def _equal(atoms: list[int], numbers: np.ndarray, neighbours: list[list[int]]) -> bool:
    """Whether several atoms are all of one element and have no other bonds."""
    return len(atoms) > 1 and len(set(numbers[atoms])) == 1 and all(len(neighbours[atom]) == 1 for atom in atoms)


def _in_line(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
    first, second = nearest_images((positions[[0, 2]] - positions[1])[None], cell[None], pbc)[0]
    return first @ second < np.cos(np.radians(_LARGEST_ANGLE)) * np.linalg.norm(first) * np.linalg.norm(second)


def dihedral_distributions(trajectory: Trajectory, reference: Trajectory) -> list[DihedralDistribution]:
    """Distributions of the dihedral angles of all rotatable bonds of the first frame of the reference.

    Raises:
        InputError: if the reference has other atoms.
    """
    if not np.array_equal(trajectory.numbers, reference.numbers):
        raise InputError(
            f"`reference` must have the same atoms in the same order as {trajectory.source}, but {reference.source} "
            "has others; give a trajectory of the same system"
        )
    atoms = rotatable_bonds(reference.numbers, reference.positions[0], reference.cell[0], reference.pbc)
    angles, expected = dihedral_angles(trajectory, atoms), dihedral_angles(reference, atoms)
    results = []
    for bond, quadruple in enumerate(atoms):
        name = "-".join(f"{chemical_symbols[trajectory.numbers[atom]]}{atom}" for atom in quadruple)
        found, wanted = _histogram(angles[:, bond]), _histogram(expected[:, bond])
        sampling = max(
            _difference(*map(_histogram, np.array_split(series, 2))) for series in (angles[:, bond], expected[:, bond])
        )
        results.append(DihedralDistribution(name, found, wanted, _difference(found, wanted), sampling))
    return results


def _histogram(angles: np.ndarray) -> np.ndarray:
    counts = np.histogram(angles, bins=DIHEDRAL_BINS, range=(-180.0, 180.0))[0]
    return counts / max(1, len(angles))


def _difference(first: np.ndarray, second: np.ndarray) -> float:
    return 0.5 * float(np.abs(first - second).sum())


def dihedral_verdict(results: list[DihedralDistribution]) -> Verdict:
    """The rotatable bond whose distribution differs most, of those that both trajectories sample well.

    A bond is sampled well when the halves of each trajectory differ by no more than what is allowed.
    """
    name = "dihedral distribution difference"
    if not results:
        return Verdict(name, None, "", DIHEDRAL_DIFFERENCE, None, "not applicable: no rotatable bonds")
    sampled = [result for result in results if result.sampling <= DIHEDRAL_DIFFERENCE]
    worst = max(sampled or results, key=lambda result: result.difference)
    passed: bool | None = worst.difference <= DIHEDRAL_DIFFERENCE
    text = (
        f"{worst.name}: the share of frames at other angles than in the reference, largest of {len(sampled)} rotatable "
        f"bonds sampled well, of {len(results)}; chance alone makes {worst.sampling:.2f} between halves; "
        "threshold chosen here: 0.5 kcal/mol between two equal conformers at 300 K"
    )
    if not sampled or (passed and len(sampled) < len(results)):
        passed, text = None, f"{text}; not judged: run longer, the reference too"
    return Verdict(name, worst.difference, "", DIHEDRAL_DIFFERENCE, passed, text)
