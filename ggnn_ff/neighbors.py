"""Which atoms see each other: vesin's neighbour list, in Python and inside a TorchForce."""

import numpy as np
import torch
from torch import Tensor
from vesin_torch import NeighborList

from ggnn_ff.errors import InputError
from ggnn_ff.graph import Structure, check_finite

SHORTEST_DISTANCE = 0.05  # angstrom; atoms closer than this lie on top of each other
SKIN = 1.0  # angstrom, the margin of lists that are kept for some steps
_NEAR = 1.0  # angstrom, enough to see atoms on one place; a shorter cutoff costs more in a cell


def make_neighbor_list(cutoff: float) -> NeighborList:
    """Vesin's list of all pairs i -> j with length < `cutoff`, both directions, sorted by centre.

    One thread, so that the order of the edges, and with it the last digits of sums, is the same every time.
    """
    return NeighborList(cutoff, full_list=True, sorted=True, n_threads=1)


def spread_too_far(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float) -> bool:
    """Whether vesin's list would end the process, by a division by zero.

    Vesin sorts atoms (N, 3) into cells as wide as the cutoff, at most 100,000. Where there would be more it takes wider
    ones in the same ratio, of which less than one may be left along an axis.
    """
    if positions.shape[0] == 0:
        return False
    extent = positions.amax(0) - positions.amin(0)
    extent = torch.where(pbc, torch.linalg.vector_norm(cell, dim=1), extent)
    cells = torch.clamp(torch.floor(extent / cutoff), min=1.0)
    wider = torch.pow(1e5 / cells.prod(), 1.0 / 3.0)
    return bool(wider < 1.0) and bool((cells * wider).min() < 2.0)  # 2, since one number is rounded after the other


def check_apart(structure: Structure) -> None:
    """Raises what `neighbor_list` raises where a structure is broken."""
    neighbor_list(structure, _NEAR)


def neighbor_list(structure: Structure, cutoff: float) -> tuple[Tensor, Tensor]:
    """Edges of each structure, on the CPU, without gradient.

    Args:
        structure: S structures; coordinates may lie outside the cell.
        cutoff: angstrom.

    Returns:
        `edge_index` (2, E) int64 and `shifts` (E, 3) float64, sorted by centre, neighbour and shift.

    Raises:
        InputError: two atoms lie on top of each other, or too far apart, or positions are not finite.
    """
    check_finite(structure.positions.detach().numpy())
    edges: list[Tensor] = []
    shifts: list[Tensor] = []
    start = 0
    for s, n_atoms in enumerate(torch.bincount(structure.batch, minlength=structure.n_structures).tolist()):
        positions = structure.positions[start : start + n_atoms].detach()
        if spread_too_far(positions, structure.cell[s], structure.pbc[s], cutoff):
            extent = float((positions.amax(0) - positions.amin(0)).max())
            raise InputError(
                f"`positions` must keep atoms together, got atoms spread over {extent:.3g} angstrom; the structure is "
                "broken (atoms have flown off) or in the wrong unit of length"
            )
        pairs, pair_shifts, lengths = make_neighbor_list(cutoff).compute(
            positions, structure.cell[s], structure.pbc[s], "PSd"
        )
        if lengths.numel() > 0 and float(lengths.min()) < SHORTEST_DISTANCE:
            i, j = pairs[int(lengths.argmin())].tolist()
            raise InputError(
                f"`positions` must keep atoms apart, got atoms {i} and {j} at {float(lengths.min()):.4f} angstrom; "
                "the structure is broken (two atoms on one place) or in the wrong unit of length"
            )
        pairs, pair_shifts = _in_order(pairs, pair_shifts)
        edges.append(pairs.t() + start)
        shifts.append(pair_shifts)
        start += n_atoms
    return torch.cat(edges, dim=1).to(torch.int64), torch.cat(shifts).to(torch.float64)


def shortest_edges(structure: Structure, cutoff: float, n_edges: int) -> tuple[Tensor, Tensor]:
    """The `n_edges` shortest edges of one structure, which may be longer than the cutoff.

    Those within the cutoff are all among them if they are not more; the others add exactly nothing to an energy. So
    structures with different numbers of neighbours get tensors of one size.

    Args:
        structure: one.
        cutoff: angstrom.
        n_edges: even, and for molecules at most the number of all pairs in both directions.

    Returns:
        As `neighbor_list`.

    Raises:
        InputError: there are not so many.
    """
    n_atoms = len(structure.numbers)
    if not structure.pbc.any() and n_atoms * (n_atoms - 1) < n_edges:
        raise InputError(
            f"`n_edges` must be at most the {n_atoms * (n_atoms - 1)} of a molecule of {n_atoms} atoms, got {n_edges}; "
            "molecules and crystals do not make batches of one shape: train on them with `run.compile: false`"
        )
    while (found := neighbor_list(structure, cutoff))[0].shape[1] < n_edges:
        cutoff *= 1.1
    (centres, neighbours), shifts = found
    vectors = structure.positions[neighbours] - structure.positions[centres] + shifts @ structure.cell[0]
    x, y, z = shifts.unbind(1)
    forward = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))  # among the images of an atom
    ahead = torch.nonzero((centres < neighbours) | ((centres == neighbours) & forward)).flatten()  # one of each two
    lengths = torch.linalg.vector_norm(vectors[ahead], dim=1)
    kept = ahead[torch.argsort(lengths, stable=True)[: n_edges // 2]]
    pairs = torch.stack([centres[kept], neighbours[kept]], dim=1)
    pairs, shifts = _in_order(torch.cat([pairs, pairs.flip(1)]), torch.cat([shifts[kept], -shifts[kept]]))
    return pairs.t(), shifts


def _in_order(pairs: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs (E, 2) and shifts (E, 3), sorted: one order for one set of edges."""
    order = np.lexsort((*shifts.numpy().T[::-1], *pairs.numpy().T[::-1]))
    return pairs[order], shifts[order]


class SkinNeighborList:
    """Neighbours of structures that move: listed with a margin, and anew only when an atom has moved half of it.

    What it returns are exactly the edges within the cutoff, sorted by centre, as from `neighbor_list`.
    """

    def __init__(self, cutoff: float, skin: float = SKIN) -> None:
        """`cutoff` and `skin` (the margin) in angstrom."""
        self.cutoff, self.skin = cutoff, skin
        self.listed: Structure | None = None  # of which the list was made
        self.n_lists = 0

    def __call__(self, structure: Structure) -> tuple[Tensor, Tensor]:
        """As `neighbor_list`.

        Raises:
            InputError: two atoms lie on top of each other, or too far apart.
        """
        x = structure.positions.detach().numpy()
        if self.listed is None or not self._holds(structure, self.listed, x):
            self._list(structure, x)
        vectors = x[self.neighbours] - x[self.centres] + self.offsets
        squares = np.einsum("ea,ea->e", vectors, vectors)
        if squares.size > 0 and squares.min() < SHORTEST_DISTANCE**2:
            return neighbor_list(structure, self.cutoff)  # says which atoms
        within = squares < self.cutoff**2
        if within.all():
            return self.edge_index, self.shifts
        chosen = torch.from_numpy(np.flatnonzero(within))
        return self.edge_index[:, chosen], self.shifts[chosen]

    def _list(self, structure: Structure, x: np.ndarray) -> None:
        self.edge_index, self.shifts = neighbor_list(structure, self.cutoff + self.skin)
        self.centres, self.neighbours = self.edge_index.contiguous().numpy()
        cells = structure.cell[structure.batch[self.edge_index[0]]]
        self.offsets = torch.einsum("ea,eab->eb", self.shifts, cells).numpy()  # angstrom
        self.listed, self.listed_x = structure, x.copy()
        self.n_lists += 1

    def _holds(self, structure: Structure, listed: Structure, x: np.ndarray) -> bool:
        """Whether no pair that was further apart than cutoff and skin can be within the cutoff now."""
        for new, old in zip(structure[1:5], listed[1:5], strict=True):  # numbers, cell, pbc, batch
            if new is not old and not torch.equal(new, old):
                return False
        displacements = x - self.listed_x
        return float(np.einsum("na,na->n", displacements, displacements).max()) < (0.5 * self.skin) ** 2
