"""Labelled graphs, batched: neighbour lists are made once, batches are slices put together."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.graph import Structure
from ggnn_ff.neighbors import neighbor_list, shortest_edges


class Batch(NamedTuple):
    """The arguments of `EnergyForces.forward`, and the labels; positions, cell, shifts and labels are float64."""

    positions: Tensor  # (N, 3)
    numbers: Tensor  # (N,)
    cell: Tensor  # (S, 3, 3)
    edge_index: Tensor  # (2, E)
    shifts: Tensor  # (E, 3)
    batch: Tensor  # (N,)
    n_structures: int
    energy: Tensor  # (S,)
    forces: Tensor  # (N, 3)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int]:
        """What `EnergyForces.forward` takes."""
        return self[:7]


class GraphDataset(Dataset[int]):
    """Frames with their edges. An item is an index; `collate` turns indices into a `Batch`.

    With `equal_edges`, frames that have fewer edges than another also get some that are longer than the cutoff, which
    change nothing: a compiled graph holds for one shape.
    """

    def __init__(self, frames: LabelledFrames, cutoff: float, *, equal_edges: bool = False) -> None:
        self.positions = torch.from_numpy(frames.positions)
        self.numbers = torch.from_numpy(frames.numbers)
        self.forces = torch.from_numpy(frames.forces)
        self.energy = torch.from_numpy(frames.energy)
        self.cell = torch.from_numpy(frames.cell)
        self.offsets = frames.offsets
        self.n_atoms = torch.from_numpy(frames.n_atoms)
        structures = [self._structure(frames, s) for s in range(len(frames))]
        listed = [neighbor_list(structure, cutoff) for structure in structures]
        if equal_edges and len(set(frames.n_atoms)) == 1:
            most = max(edges.shape[1] for edges, _ in listed)
            for s, (edges, _) in enumerate(listed):
                if edges.shape[1] < most:
                    listed[s] = shortest_edges(structures[s], cutoff, most)
        self.edges, self.shifts = [edges for edges, _ in listed], [shifts for _, shifts in listed]

    def _structure(self, frames: LabelledFrames, s: int) -> Structure:
        rows = frames.rows(s)
        return Structure(
            positions=self.positions[rows],
            numbers=self.numbers[rows],
            cell=self.cell[s : s + 1],
            pbc=torch.from_numpy(frames.pbc[s : s + 1]),
            batch=torch.zeros(int(frames.n_atoms[s]), dtype=torch.int64),
            n_structures=1,
        )

    def __len__(self) -> int:
        return len(self.edges)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: list[int]) -> Batch:
        """The frames at `indices` as one batch."""
        rows = [slice(int(self.offsets[i]), int(self.offsets[i + 1])) for i in indices]
        n_atoms = self.n_atoms[indices]
        starts = torch.cumsum(n_atoms, 0) - n_atoms
        return Batch(
            positions=torch.cat([self.positions[r] for r in rows]),
            numbers=torch.cat([self.numbers[r] for r in rows]),
            cell=self.cell[indices],
            edge_index=torch.cat([self.edges[i] + start for i, start in zip(indices, starts, strict=True)], dim=1),
            shifts=torch.cat([self.shifts[i] for i in indices]),
            batch=torch.repeat_interleave(torch.arange(len(indices)), n_atoms),
            n_structures=len(indices),
            energy=self.energy[indices],
            forces=torch.cat([self.forces[r] for r in rows]),
        )


class SeededBatches(Sampler[list[int]]):
    """Batches in an order that depends on seed and epoch only, so that a resumed run sees what it would have seen.

    The remainder that does not fill a batch is left out of that epoch. With several processes (Lightning's strategies)
    each takes every n-th batch.
    """

    def __init__(self, n_frames: int, batch_size: int, seed: int) -> None:
        self.n_frames, self.batch_size, self.seed, self.epoch = n_frames, min(batch_size, n_frames), seed, 0

    @property
    def sampler(self) -> "SeededBatches":
        """Itself: Lightning calls `set_epoch` on the sampler of a batch sampler, not on the batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n_frames // self.batch_size // _processes()[1]

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_frames)
        rank, n_processes = _processes()
        for k in range(rank, len(self) * n_processes, n_processes):
            yield order[k * self.batch_size : (k + 1) * self.batch_size].tolist()


def _processes() -> tuple[int, int]:
    """Number of this training process, counted from 0, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
