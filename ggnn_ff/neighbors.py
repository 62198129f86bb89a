"""Which atoms see each other: vesin's neighbour list, in Python and inside a TorchForce."""

import torch
from torch import Tensor
from vesin_torch import NeighborList

from ggnn_ff.errors import InputError
from ggnn_ff.graph import Structure

SHORTEST_DISTANCE = 0.05  # angstrom; atoms closer than this lie on top of each other


def make_neighbor_list(cutoff: float) -> NeighborList:
    """Vesin's list of all pairs i -> j with length < `cutoff`, both directions, sorted by centre.

    One thread, so that the order of the edges, and with it the last digits of sums, is the same every time.
    """
    return NeighborList(cutoff, full_list=True, sorted=True, n_threads=1)


def neighbor_list(structure: Structure, cutoff: float) -> tuple[Tensor, Tensor]:
    """Edges of each structure, on the CPU, without gradient.

    Args:
        structure: S structures; coordinates may lie outside the cell.
        cutoff: angstrom.

    Returns:
        `edge_index` (2, E) int64 and `shifts` (E, 3) float64.

    Raises:
        InputError: two atoms lie on top of each other.
    """
    edges: list[Tensor] = []
    shifts: list[Tensor] = []
    start = 0
    for s, n_atoms in enumerate(torch.bincount(structure.batch, minlength=structure.n_structures).tolist()):
        positions = structure.positions[start : start + n_atoms].detach()
        pairs, pair_shifts, lengths = make_neighbor_list(cutoff).compute(
            positions, structure.cell[s], structure.pbc[s], "PSd"
        )
        if lengths.numel() > 0 and float(lengths.min()) < SHORTEST_DISTANCE:
            i, j = pairs[int(lengths.argmin())].tolist()
            raise InputError(
                f"`positions` must keep atoms apart, got atoms {i} and {j} at {float(lengths.min()):.4f} angstrom; "
                "the structure is broken (two atoms on one place) or in the wrong unit of length"
            )
        edges.append(pairs.t() + start)
        shifts.append(pair_shifts)
        start += n_atoms
    return torch.cat(edges, dim=1).to(torch.int64), torch.cat(shifts).to(torch.float64)
