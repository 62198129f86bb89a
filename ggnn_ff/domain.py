"""Where the training data lies, and whether a structure still lies there; the same for every architecture.

Two descriptions, both of positions alone: the range of the distances of each pair of elements, and for each element the
mean and the covariance of a descriptor of its atoms' surroundings. A potential carries them in its contract.
"""

from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from ggnn_ff.contract import Domain, Surroundings
from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.graph import N_ELEMENTS, Structure, from_atoms
from ggnn_ff.neighbors import SkinNeighborList

DESCRIPTOR = "gaussian-6-angular-2"
LONGEST_CUTOFF = 5.0
"""angstrom; of a potential that sees further, only the nearer surroundings are described."""

DISTANCE_MARGIN = 0.1
"""A distance is outside the range when it is shorter or longer by this part of the range's end.

That is twice what other frames need: those of rMD17 ethanol and 3BPA leave the ranges of 50 frames by at most 4.7 %,
and those of 950 by at most 1.2 %. A run looks at more.
"""

NOVELTY_MARGIN = 1.5
"""The threshold is the largest novelty of the held-out frames times this.

A run looks at more structures than were held out: the largest novelty of 1000 other frames of rMD17 ethanol is 1.16
times that of 50 held-out ones.
"""

MOST_DESCRIBED = 100_000
"""Atoms of the training frames, and of the held-out ones, that are described: of more, evenly spaced frames."""

MOST_JUDGED = 1000
"""Atoms whose novelty is computed in one look; in larger systems they take turns, so that a look stays cheap."""

_N_RADIAL, _N_ANGULAR = 6, 3  # l = 0, 1, 2
_SHRINKAGE = 1e-3  # of correlations towards zero: keeps the covariance of few atoms invertible
_LEAST_DEVIATION = 1e-3  # of a number of the descriptor; those that never change would have none
_DIGITS = 5  # of what is stored


class StrangeDistance(NamedTuple):
    """Two atoms at a distance that the training data does not have."""

    atoms: tuple[int, int]
    length: float  # angstrom
    seen: tuple[float, float] | None  # angstrom; None where the training data has no such pair within the cutoff


class Findings(NamedTuple):
    """What a look at a structure found."""

    novelty: np.ndarray  # (J,) of the atoms that were judged
    judged: np.ndarray  # (J,) their indices
    distance: StrangeDistance | None  # the strangest


class DomainCheck:
    """Compares structures of one composition with the training data."""

    def __init__(self, domain: Domain, numbers: np.ndarray) -> None:
        """`numbers` (N,) are of elements that `domain` describes."""
        self.domain = domain
        symbols = list(domain.surroundings)
        kind_of = np.zeros(N_ELEMENTS, dtype=np.int64)
        kind_of[[atomic_numbers[symbol] for symbol in symbols]] = np.arange(len(symbols))
        self.kinds = kind_of[numbers]  # (N,)
        self.n_kinds = len(symbols)
        self.statistics = [domain.surroundings[symbol].arrays() for symbol in symbols]
        self.members = [np.flatnonzero(self.kinds == kind) for kind in range(self.n_kinds)]
        self.shortest = np.full((self.n_kinds, self.n_kinds), np.inf)  # a pair that was not seen is always outside
        self.longest = np.zeros((self.n_kinds, self.n_kinds))
        self.seen: dict[tuple[int, int], tuple[float, float]] = {}
        for pair, (shortest, longest) in domain.distances.items():
            i, j = sorted(symbols.index(symbol) for symbol in pair.split("-"))
            self.seen[i, j] = shortest, longest
            self.shortest[[i, j], [j, i]] = shortest * (1.0 - DISTANCE_MARGIN)
            self.longest[[i, j], [j, i]] = longest * (1.0 + DISTANCE_MARGIN)
        self.neighbors = SkinNeighborList(domain.cutoff)

    def look(self, structure: Structure, turn: int = 0) -> Findings:
        """Judges the distances of all atoms and the novelty of up to `MOST_JUDGED` of them.

        Args:
            structure: one structure, finite.
            turn: whose turn it is in a system of more atoms: counts up from look to look.

        Raises:
            InputError: two atoms lie on top of each other.
        """
        centres, neighbours, vectors, lengths = _edges(structure, self.neighbors)
        distance = self._strangest(centres, neighbours, lengths)
        n_atoms = len(self.kinds)
        first = turn % -(-n_atoms // MOST_JUDGED) * MOST_JUDGED
        last = min(first + MOST_JUDGED, n_atoms)
        edges = slice(*np.searchsorted(centres, [first, last]))  # they are sorted by centre
        kinds = self.kinds[neighbours[edges]]
        x = describe_atoms(
            vectors[edges],
            lengths[edges],
            centres[edges] - first,
            kinds,
            last - first,
            self.n_kinds,
            self.domain.cutoff,
        )
        novelty = np.zeros(last - first)
        for (mean, triangle), members in zip(self.statistics, self.members, strict=True):
            chosen = members[slice(*np.searchsorted(members, [first, last]))] - first
            deviations = (x[chosen] - mean) @ triangle.T
            novelty[chosen] = np.sqrt((deviations * deviations).mean(axis=1))
        return Findings(novelty, np.arange(first, last), distance)

    def _strangest(self, centres: np.ndarray, neighbours: np.ndarray, lengths: np.ndarray) -> StrangeDistance | None:
        pairs = self.kinds[centres], self.kinds[neighbours]
        excess = np.maximum(self.shortest[pairs] - lengths, lengths - self.longest[pairs])
        if not (excess > 0.0).any():
            return None
        worst = int(excess.argmax())
        i, j = sorted((int(centres[worst]), int(neighbours[worst])))
        first, second = sorted((int(self.kinds[i]), int(self.kinds[j])))
        return StrangeDistance((i, j), float(lengths[worst]), self.seen.get((first, second)))


def describe_atoms(
    vectors: np.ndarray,
    lengths: np.ndarray,
    centres: np.ndarray,
    kinds: np.ndarray,
    n_atoms: int,
    n_kinds: int,
    cutoff: float,
) -> np.ndarray:
    """Invariant numbers of the surroundings of each atom, smooth in the positions and zero at the cutoff.

    For each element Z among the neighbours and each radial function g_n, with the normalised real spherical harmonics:

        c_nlm = sum_j of Z  g_n(r_j) Y_lm(r_j)        p_n0 = c_n00,   p_nl = sum_m c_nlm^2   for l = 1, 2

    These are the diagonal elements of the power spectrum of SOAP (Bartok, Kondor and Csanyi, Phys. Rev. B 87, 184115,
    2013), with Gaussians in r as in Behler's symmetry functions (J. Chem. Phys. 134, 074106, 2011), each a constant
    factor wider and further out than the one before, times (1 - (r / r_c)^2)^3.

    Args:
        vectors: (E, 3), angstrom, from atoms to their neighbours.
        lengths: (E,), angstrom, below the cutoff.
        centres: (E,) the atom, from 0 to `n_atoms` - 1.
        kinds: (E,) the element of the neighbour, from 0 to `n_kinds` - 1.
        n_atoms: N.
        n_kinds: K.
        cutoff: angstrom.

    Returns:
        (N, F) with F = 18 K.
    """
    positions = np.geomspace(0.18 * cutoff, 0.8 * cutoff, _N_RADIAL)  # 0.9 to 4 angstrom at a cutoff of 5
    widths = positions * (positions[1] / positions[0] - 1.0)
    offsets = (lengths[:, None] - positions) / widths
    radial = np.exp(-offsets * offsets) * ((1.0 - (lengths / cutoff) ** 2) ** 3)[:, None]  # (E, B)
    x, y, z = vectors.T / lengths
    root = np.sqrt(3.0)
    angular = np.stack(
        [
            np.ones_like(x),
            x,
            y,
            z,
            root * x * y,
            root * y * z,
            root * z * x,
            1.5 * z * z - 0.5,
            root / 2 * (x * x - y * y),
        ]
    )  # (9, E): each l has the norm 1
    rows = centres * n_kinds + kinds
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    products = angular.T[order, :, None] * radial[order, None, :]  # (E, 9, B)
    c = np.zeros((n_atoms * n_kinds, 9, _N_RADIAL))
    if len(rows):
        c[rows[starts]] = np.add.reduceat(products, starts, axis=0)
    p = np.empty((n_atoms * n_kinds, _N_ANGULAR, _N_RADIAL))
    p[:, 0] = c[:, 0]
    p[:, 1] = (c[:, 1:4] ** 2).sum(axis=1)
    p[:, 2] = (c[:, 4:] ** 2).sum(axis=1)
    return p.reshape(n_atoms, n_kinds * _N_ANGULAR * _N_RADIAL)


def describe_frames(train: LabelledFrames, held_out: LabelledFrames, cutoff: float) -> Domain:
    """Describes training data for the contract of a potential.

    The novelty of an atom is the Mahalanobis distance (Proc. Natl. Inst. Sci. India 2, 49, 1936) of its descriptor from
    the training atoms of its element, over the root of the number of dimensions: the root mean square of the deviations
    in standard deviations, so that up to about 1 is ordinary. The threshold is the largest of frames that mean and
    covariance have not seen, times `NOVELTY_MARGIN`.

    What is stored grows with the third power of the number of elements: 50 kB for three.

    Args:
        train: what was trained on.
        held_out: what was not, such as the validation frames; at least one.
        cutoff: angstrom, of the potential; beyond `LONGEST_CUTOFF` nothing is described.
    """
    cutoff = min(cutoff, LONGEST_CUTOFF)
    train, held_out = _fewer(train), _fewer(held_out)
    numbers = np.unique(train.numbers)
    kind_of = np.zeros(N_ELEMENTS, dtype=np.int64)
    kind_of[numbers] = np.arange(len(numbers))
    symbols = [chemical_symbols[number] for number in numbers]
    shortest = np.full((len(symbols), len(symbols)), np.inf)
    longest = np.zeros((len(symbols), len(symbols)))
    rows = []
    for k in range(len(train)):
        kinds = kind_of[train.numbers[train.rows(k)]]
        edges = _edges(from_atoms(train.atoms(k)), SkinNeighborList(cutoff, skin=0.0))
        centres, neighbours, vectors, lengths = edges
        np.minimum.at(shortest, (kinds[centres], kinds[neighbours]), lengths)
        np.maximum.at(longest, (kinds[centres], kinds[neighbours]), lengths)
        rows.append(describe_atoms(vectors, lengths, centres, kinds[neighbours], len(kinds), len(symbols), cutoff))
    x, kinds = np.concatenate(rows), kind_of[train.numbers]
    pairs = [(i, j) for i in range(len(symbols)) for j in range(i, len(symbols)) if longest[i, j] > 0.0]
    domain = Domain(
        descriptor=DESCRIPTOR,
        cutoff=cutoff,
        n_frames=len(train),
        n_held_out=len(held_out),
        distances={
            f"{symbols[i]}-{symbols[j]}": (round(float(shortest[i, j]), 4), round(float(longest[i, j]), 4))
            for i, j in pairs
        },
        surroundings={symbol: _statistics(x[kinds == kind]) for kind, symbol in enumerate(symbols)},
        threshold=1.0,
    )
    largest = 0.0  # measured with the rounded numbers that are stored
    for k in range(len(held_out)):
        check = DomainCheck(domain, held_out.numbers[held_out.rows(k)])
        structure = from_atoms(held_out.atoms(k))
        for turn in range(-(-structure.positions.shape[0] // MOST_JUDGED)):
            largest = max(largest, float(check.look(structure, turn).novelty.max()))
    threshold = float(f"{NOVELTY_MARGIN * largest:.4g}") or 1.0  # 0: no atom has a neighbour
    return domain.model_copy(update={"threshold": threshold})


def _statistics(x: np.ndarray) -> Surroundings:
    """Mean and whitening of the rows of `x` (n, F)."""
    mean = x.mean(axis=0)
    deviations = x - mean
    covariance = deviations.T @ deviations / len(x)
    widths = np.sqrt(np.diag(covariance) + _LEAST_DEVIATION**2)
    correlation = covariance / np.outer(widths, widths) * (1.0 - _SHRINKAGE)
    np.fill_diagonal(correlation, 1.0)
    triangle = np.linalg.inv(np.linalg.cholesky(correlation)) / widths
    return Surroundings(mean=_text(mean), whitening=[_text(row[: k + 1]) for k, row in enumerate(triangle)])


def _text(row: np.ndarray) -> str:
    return " ".join(f"{number:.{_DIGITS}g}" for number in row)


def _fewer(frames: LabelledFrames) -> LabelledFrames:
    """At most about `MOST_DESCRIBED` atoms, in evenly spaced frames."""
    stride = -(-len(frames.numbers) // MOST_DESCRIBED)
    return frames if stride <= 1 else frames.select(np.arange(0, len(frames), stride))


def _edges(structure: Structure, neighbors: SkinNeighborList) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centres (E,), neighbours (E,), vectors (E, 3) and lengths (E,) of the edges of one structure."""
    edge_index, shifts = neighbors(structure)
    centres, neighbours = edge_index.numpy()
    x = structure.positions.numpy()
    vectors = x[neighbours] - x[centres] + shifts.numpy() @ structure.cell[0].numpy()
    return centres, neighbours, vectors, np.sqrt(np.einsum("ea,ea->e", vectors, vectors))
