"""From an energy to forces and stress: the only place that differentiates."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ggnn_ff.graph import Graph, edge_vectors


class Prediction(NamedTuple):
    """What a potential says about S structures with N atoms in all; everything float64."""

    energy: Tensor  # (S,) eV
    atomic_energies: Tensor  # (N,) eV
    forces: Tensor  # (N, 3) eV/angstrom
    stress: Tensor  # (S, 3, 3) eV/angstrom^3; zeros where the cell has no volume


def stress_of(virial: Tensor, cell: Tensor) -> Tensor:
    """Symmetric stress, eV/angstrom^3, from the virial (S, 3, 3), eV; zeros where the cell (S, 3, 3) has no volume."""
    volume = torch.linalg.det(cell).abs().view(-1, 1, 1)  # (S, 1, 1)
    stress = torch.where(volume > 0, virial / volume, torch.zeros_like(virial))
    return 0.5 * (stress + stress.transpose(1, 2))


class EnergyForces(nn.Module):
    """The exact gradient of a potential.

    The energy depends on positions and cell through the edge vectors r_ij only, so one gradient g_ij = dE/dr_ij gives
    the forces F_i = sum_j g_ij - sum_j g_ji and the virial sum_ij r_ij (x) g_ij = dE/dstrain at zero strain, by the
    chain rule and without a second derivative pass.
    """

    def __init__(self, potential: nn.Module) -> None:
        super().__init__()
        self.potential = potential

    def forward(
        self,
        positions: Tensor,
        numbers: Tensor,
        cell: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        n_structures: int,
    ) -> Prediction:
        """Energy, forces and stress.

        Args:
            positions: (N, 3) float64, angstrom.
            numbers: (N,) int64, atomic numbers.
            cell: (S, 3, 3) float64, angstrom, rows are cell vectors.
            edge_index: (2, E) int64, row 0 the centre, row 1 the neighbour; both directions.
            shifts: (E, 3) float64, cell offset of the neighbour.
            batch: (N,) int64, structure index of each atom.
            n_structures: S.

        Returns:
            In training mode the forces keep the graph of the gradient, for a loss on them.
        """
        vectors = edge_vectors(positions.detach(), cell, edge_index, shifts, batch).requires_grad_(True)  # (E, 3)
        energy, atomic_energies = self.potential(Graph(numbers, edge_index, vectors, batch, n_structures))
        total: list[Tensor] = [energy.sum()]
        gradient = torch.autograd.grad(total, [vectors], create_graph=self.training)[0]
        assert gradient is not None  # a type for TorchScript; the energy always depends on its edges
        forces = torch.zeros_like(positions)
        forces = forces.index_add(0, edge_index[0], gradient).index_add(0, edge_index[1], gradient, alpha=-1.0)
        virial = torch.zeros_like(cell).index_add(
            0, batch[edge_index[0]], vectors.detach().unsqueeze(2) * gradient.unsqueeze(1)
        )
        if not self.training:
            energy, atomic_energies = energy.detach(), atomic_energies.detach()
        return Prediction(energy, atomic_energies, forces, stress_of(virial, cell))
