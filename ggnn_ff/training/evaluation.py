"""Errors of a potential on labelled frames.

It lives here because it runs on the batches of training, so that both see the same graphs; but it needs neither
Lightning nor anything else of the `train` extra, since `ggnn-ff evaluate` has to work without.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ggnn_ff.contract import TestErrors
from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.graph import Graph, edge_vectors
from ggnn_ff.potential import Potential
from ggnn_ff.training.batches import Batch, GraphDataset

ATOMS_AT_ONCE = 2000


@dataclass(frozen=True)
class Evaluation:
    """A potential on labelled frames: what it says beside what the reference says (eV, eV/angstrom)."""

    energy: np.ndarray  # (S,)
    reference_energy: np.ndarray  # (S,)
    forces: np.ndarray  # (N, 3)
    reference_forces: np.ndarray  # (N, 3)
    n_atoms: np.ndarray  # (S,)

    def errors(self, frames: LabelledFrames) -> TestErrors:
        """The customary mean errors."""
        energy = 1e3 * (self.energy - self.reference_energy)
        forces = 1e3 * (self.forces - self.reference_forces)
        return TestErrors(
            name=frames.source,
            sha256=frames.sha256,
            n_frames=len(energy),
            energy_mae_mev=float(np.abs(energy).mean()),
            energy_rmse_mev=float(np.sqrt((energy**2).mean())),
            energy_mae_mev_per_atom=float(np.abs(energy / self.n_atoms).mean()),
            forces_mae_mev_per_angstrom=float(np.abs(forces).mean()),
            forces_rmse_mev_per_angstrom=float(np.sqrt((forces**2).mean())),
        )


def frames_at_once(frames: LabelledFrames) -> int:
    """How many frames are evaluated in one batch: 25, or as many as large ones leave memory for."""
    return max(1, min(25, ATOMS_AT_ONCE // int(frames.n_atoms.max(initial=1))))


@torch.no_grad()
def evaluate_energies(potential: Potential, frames: LabelledFrames) -> np.ndarray:
    """Energies (S,), eV, on the CPU, without what forces cost."""
    energy: list[Tensor] = []
    for batch in _batches(frames, potential.cutoff):
        vectors = edge_vectors(batch.positions, batch.cell, batch.edge_index, batch.shifts, batch.batch)
        graph = Graph(batch.numbers, batch.edge_index, vectors, batch.batch, batch.n_structures)
        energy.append(potential(graph)[0])
    return torch.cat(energy).numpy()


def evaluate_frames(module: torch.nn.Module, frames: LabelledFrames, cutoff: float) -> Evaluation:
    """Runs `module` (`EnergyForces`, eager or scripted, in evaluation mode) over all frames on the CPU."""
    energy: list[Tensor] = []
    forces: list[Tensor] = []
    for batch in _batches(frames, cutoff):
        prediction = module(*batch.inputs)
        energy.append(prediction.energy.detach())
        forces.append(prediction.forces.detach())
    return Evaluation(
        torch.cat(energy).numpy(), frames.energy, torch.cat(forces).numpy(), frames.forces, frames.n_atoms
    )


def _batches(frames: LabelledFrames, cutoff: float) -> Iterator[Batch]:
    dataset, size = GraphDataset(frames, cutoff), frames_at_once(frames)
    for start in range(0, len(dataset), size):
        yield dataset.collate(list(range(start, min(start + size, len(dataset)))))
