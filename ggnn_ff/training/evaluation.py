"""Errors of a potential on labelled frames.

It lives here because it runs on the batches of training, so that both see the same graphs; but it needs neither
Lightning nor anything else of the `train` extra, since `ggnn-ff evaluate` has to work without.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ggnn_ff.contract import TestErrors
from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.training.batches import GraphDataset

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
    """How many frames are evaluated in one batch: 50, or as many as large ones leave memory for."""
    return max(1, min(50, ATOMS_AT_ONCE // int(frames.n_atoms.max(initial=1))))


def evaluate_frames(module: torch.nn.Module, frames: LabelledFrames, cutoff: float) -> Evaluation:
    """Runs `module` (`EnergyForces`, eager or scripted, in evaluation mode) over all frames on the CPU."""
    dataset, batch_size = GraphDataset(frames, cutoff), frames_at_once(frames)
    energy: list[Tensor] = []
    forces: list[Tensor] = []
    for start in range(0, len(dataset), batch_size):
        batch = dataset.collate(list(range(start, min(start + batch_size, len(dataset)))))
        prediction = module(*batch.inputs)
        energy.append(prediction.energy.detach())
        forces.append(prediction.forces.detach())
    return Evaluation(
        torch.cat(energy).numpy(), frames.energy, torch.cat(forces).numpy(), frames.forces, frames.n_atoms
    )
