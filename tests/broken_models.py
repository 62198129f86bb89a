"""Toy potentials: a sound one, and copies of it with one defect each that a physical check must reject."""

import math

import torch
from torch import Tensor, nn

from ggnn_ff.forces import EnergyForces, Prediction
from ggnn_ff.graph import Graph
from ggnn_ff.radial import PolynomialEnvelope


class Toy(nn.Module):
    """E_i = a[Z_i] + tanh(sum_j w_ij) with w_ij = a[Z_i] a[Z_j] envelope(r_ij) / r_ij."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.polynomial = PolynomialEnvelope(cutoff, 6)
        self.a = nn.Parameter(torch.linspace(0.4, 2.0, 119, dtype=torch.float64))

    def envelope(self, lengths: Tensor) -> Tensor:
        return self.polynomial(lengths)

    def weights(self, graph: Graph) -> Tensor:
        """(E,)"""
        lengths = torch.linalg.vector_norm(graph.edge_vectors, dim=-1)
        pairs = self.a[graph.numbers[graph.edge_index[0]]] * self.a[graph.numbers[graph.edge_index[1]]]
        return pairs * self.envelope(lengths) / lengths

    def at_centres(self, graph: Graph, edge_values: Tensor) -> Tensor:
        """Sum over the edges of each atom."""
        zeros = edge_values.new_zeros([graph.numbers.shape[0]] + list(edge_values.shape[1:]))  # noqa: RUF005 (TorchScript)
        return zeros.index_add(0, graph.edge_index[0], edge_values)

    def atomic_energies(self, graph: Graph) -> Tensor:
        return self.a[graph.numbers] + torch.tanh(self.at_centres(graph, self.weights(graph)))

    def forward(self, graph: Graph) -> tuple[Tensor, Tensor]:
        atomic_energies = self.atomic_energies(graph)
        energy = torch.zeros(graph.n_structures, dtype=torch.float64)
        return energy.index_add(0, graph.batch, atomic_energies), atomic_energies


# --- defects of the energy ----------------------------------------------------------------------------------------


class SharpCutoff(Toy):
    """The energy jumps at the cutoff."""

    def envelope(self, lengths: Tensor) -> Tensor:
        return torch.where(lengths < self.cutoff, 1.0, 0.0)


class LinearCutoff(Toy):
    """The force jumps at the cutoff."""

    def envelope(self, lengths: Tensor) -> Tensor:
        return torch.relu(1.0 - lengths / self.cutoff)


class CosineCutoff(Toy):
    """The force constant jumps at the cutoff."""

    def envelope(self, lengths: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.cos(math.pi * lengths / self.cutoff))


class XComponent(Toy):
    """Space has a preferred direction."""

    def weights(self, graph: Graph) -> Tensor:
        return super().weights(graph) * (1.0 + 0.01 * graph.edge_vectors[:, 0] ** 2)


class TripleProduct(Toy):
    """A shape and its mirror image differ."""

    def atomic_energies(self, graph: Graph) -> Tensor:
        w = self.weights(graph).unsqueeze(1)
        a, b, c = (self.at_centres(graph, graph.edge_vectors * w**k) for k in (1, 2, 3))
        return super().atomic_energies(graph) + 1e-3 * (a * torch.linalg.cross(b, c)).sum(dim=1)


class AtomIndex(Toy):
    """Atoms of one element differ."""

    def atomic_energies(self, graph: Graph) -> Tensor:
        rank = torch.arange(graph.numbers.shape[0], dtype=torch.float64)
        return super().atomic_energies(graph) * (1.0 + 0.01 * rank)


class MeanOverAtoms(Toy):
    """Each atom feels the mean of all atoms, near or far, of its own structure or of another one."""

    def atomic_energies(self, graph: Graph) -> Tensor:
        energies = super().atomic_energies(graph)
        return energies * (1.0 + 0.1 * energies.mean())


class MeanOverNeighbours(Toy):
    """Divides by the number of neighbours, which may be none."""

    def atomic_energies(self, graph: Graph) -> Tensor:
        weights = self.weights(graph)
        return self.a[graph.numbers] + self.at_centres(graph, weights) / self.at_centres(
            graph, weights.detach() * 0 + 1
        )


class Arccos(Toy):
    """Angles by arccos, whose derivative is infinite where atoms lie on one line."""

    def angles(self, cosines: Tensor) -> Tensor:
        return torch.acos(cosines)

    def atomic_energies(self, graph: Graph) -> Tensor:
        directions = graph.edge_vectors / torch.linalg.vector_norm(graph.edge_vectors, dim=-1, keepdim=True)
        cosines = (directions @ directions.T).clamp(-1.0, 1.0)
        same_centre = graph.edge_index[0].unsqueeze(0) == graph.edge_index[0].unsqueeze(1)
        weights = self.weights(graph)
        pairs = same_centre * weights.unsqueeze(0) * weights.unsqueeze(1)
        angular = (self.angles(cosines) * pairs).sum(dim=1)
        return super().atomic_energies(graph) + 1e-2 * self.at_centres(graph, angular)


class SafeArccos(Arccos):
    """The same, kept finite in the usual way: the kink is still there, rounded off."""

    def angles(self, cosines: Tensor) -> Tensor:
        return torch.acos(cosines * (1.0 - 1e-7))


class LengthOfTheSum(Toy):
    """The length of a sum of vectors, kept finite in the usual way: a cusp where the surroundings are symmetric."""

    def atomic_energies(self, graph: Graph) -> Tensor:
        lengths = torch.linalg.vector_norm(graph.edge_vectors, dim=-1, keepdim=True)
        total = self.at_centres(graph, self.weights(graph).unsqueeze(1) * graph.edge_vectors / lengths)
        return super().atomic_energies(graph) + 0.1 * torch.sqrt((total * total).sum(dim=1) + 1e-8)


class AbsoluteVolume(Toy):
    """The size of a dihedral angle without its sign: a kink where atoms lie in one plane."""

    def atomic_energies(self, graph: Graph) -> Tensor:
        lengths = torch.linalg.vector_norm(graph.edge_vectors, dim=-1)
        weighted = self.weights(graph).unsqueeze(1) * graph.edge_vectors
        a, b, c = (self.at_centres(graph, weighted * lengths.unsqueeze(1) ** k) for k in (0, 2, 4))
        return super().atomic_energies(graph) + 1e-2 * (a * torch.linalg.cross(b, c)).sum(dim=1).abs()


class NearestNeighbour(Toy):
    """Angles from the direction of the nearest neighbour, whoever that is."""

    def atomic_energies(self, graph: Graph) -> Tensor:
        lengths = torch.linalg.vector_norm(graph.edge_vectors, dim=-1)
        directions = graph.edge_vectors / lengths.unsqueeze(1)
        same_centre = graph.edge_index[0].unsqueeze(0) == graph.edge_index[0].unsqueeze(1)
        nearest = torch.where(same_centre, lengths.unsqueeze(0), math.inf).argmin(dim=1)
        cosines = (directions * directions[nearest]).sum(dim=1)
        return super().atomic_energies(graph) + 1e-2 * self.at_centres(graph, cosines * self.weights(graph))


class Overflow(Toy):
    """Repulsion without bounds."""

    def weights(self, graph: Graph) -> Tensor:
        lengths = torch.linalg.vector_norm(graph.edge_vectors, dim=-1)
        return super().weights(graph) + 1e-3 * torch.exp(lengths**-3) * self.envelope(lengths)


class ConstantSlope(Toy):
    """Its gradient is right, the gradient of its gradient is not."""

    def atomic_energies(self, graph: Graph) -> Tensor:
        return self.a[graph.numbers] + _TanhWithConstantSlope.apply(self.at_centres(graph, self.weights(graph)))


class _TanhWithConstantSlope(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.slope = 1.0 - torch.tanh(x) ** 2
        return torch.tanh(x)

    @staticmethod
    def backward(context, gradient):
        return gradient * context.slope


class Noise(Toy):
    """Never gives the same answer twice."""

    def atomic_energies(self, graph: Graph) -> Tensor:
        return super().atomic_energies(graph) * (1.0 + 1e-12 * torch.rand(()).double())


class OtherWhenScripted(Toy):
    """TorchScript takes a branch of its own."""

    def atomic_energies(self, graph: Graph) -> Tensor:
        energies = self.a[graph.numbers] + torch.tanh(self.at_centres(graph, self.weights(graph)))
        if torch.jit.is_scripting():
            energies = energies * (1.0 + 1e-8)
        return energies


class Float32(Toy):
    """What a feature dtype of float32 does."""

    def weights(self, graph: Graph) -> Tensor:
        return super().weights(graph._replace(edge_vectors=graph.edge_vectors.float().double()))


class BFloat16(Toy):
    """Loses far more digits than float32 does."""

    def weights(self, graph: Graph) -> Tensor:
        return super().weights(graph._replace(edge_vectors=graph.edge_vectors.bfloat16().double()))


# --- defects of the gradient --------------------------------------------------------------------------------------


class ScaledForces(EnergyForces):
    """One part in a hundred thousand too large."""

    def forward(self, *arguments) -> Prediction:
        prediction = super().forward(*arguments)
        return prediction._replace(forces=prediction.forces * (1.0 + 1e-5))


class WrongSign(EnergyForces):
    """The gradient instead of minus the gradient."""

    def forward(self, *arguments) -> Prediction:
        prediction = super().forward(*arguments)
        return prediction._replace(forces=-prediction.forces)


class CurlForces(EnergyForces):
    """A small swirl around the z axis: no energy has these forces."""

    def forward(self, positions, *arguments) -> Prediction:
        prediction = super().forward(positions, *arguments)
        x, y, _ = (positions - positions.mean(dim=0)).unbind(dim=1)
        return prediction._replace(forces=prediction.forces + 1e-4 * torch.stack([-y, x, 0 * x], dim=1))


class DetachedForces(EnergyForces):
    """A loss on these forces teaches nothing."""

    def forward(self, *arguments) -> Prediction:
        prediction = super().forward(*arguments)
        return prediction._replace(forces=prediction.forces.detach())


class WrongStressSign(EnergyForces):
    """Pressure instead of stress."""

    def forward(self, *arguments) -> Prediction:
        prediction = super().forward(*arguments)
        return prediction._replace(stress=-prediction.stress)


class SignedVolume(EnergyForces):
    """The determinant of a left-handed cell is negative; the volume is not."""

    def forward(self, positions, numbers, cell, *arguments) -> Prediction:
        prediction = super().forward(positions, numbers, cell, *arguments)
        return prediction._replace(stress=prediction.stress * torch.linalg.det(cell).sign().view(-1, 1, 1))


class AbsolutePositions(EnergyForces):
    """An external field, with its force."""

    def forward(self, positions, numbers, cell, edge_index, shifts, batch, n_structures) -> Prediction:
        prediction = super().forward(positions, numbers, cell, edge_index, shifts, batch, n_structures)
        field = torch.zeros_like(prediction.energy).index_add(0, batch, 1e-3 * positions[:, 2])
        force = torch.tensor([0.0, 0.0, -1e-3], dtype=torch.float64)
        return prediction._replace(energy=prediction.energy + field, forces=prediction.forces + force)


class NoShifts(EnergyForces):
    """Forgets that neighbours may be images."""

    def forward(self, positions, numbers, cell, edge_index, shifts, batch, n_structures) -> Prediction:
        return super().forward(positions, numbers, cell, edge_index, 0 * shifts, batch, n_structures)
