"""EGNN: E(n) equivariant graph neural network, arXiv 2102.09844."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ggnn_ff.graph import Graph
from ggnn_ff.layers import ElementEmbedding
from ggnn_ff.radial import PolynomialEnvelope


class EGNNHyperparameters(BaseModel):
    """The paper's defaults for molecules (appendix C.4), with a cutoff."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_features: int = Field(default=128, ge=2)
    n_layers: int = Field(default=7, ge=1)
    envelope_exponent: int = Field(default=6, ge=2, description="p of the envelope; smaller ones fade earlier")


PRESETS = {
    "small": EGNNHyperparameters(n_features=64, n_layers=4),
    "default": EGNNHyperparameters(),
    "large": EGNNHyperparameters(n_features=256),
}


class Convolution(nn.Module):
    """Messages and what atoms make of them: equations 3, 7 (with the soft edges of equation 8) and 6."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features
        # The first layer of phi_e acts on h_i, h_j and the squared distance: three products instead of one with their
        # concatenation. Two of them need to be taken for each atom only; and the weights of the third begin within
        # 1 / angstrom^2, not one over the root of the concatenation's width, so that bond lengths tell at once.
        self.phi_e_atoms = nn.Linear(n_features, 2 * n_features)
        self.phi_e_distance = nn.Linear(1, n_features)
        self.phi_e = nn.Sequential(nn.SiLU(), nn.Linear(n_features, n_features), nn.SiLU())
        self.phi_inf = nn.Sequential(nn.Linear(n_features, 1), nn.Sigmoid())
        self.phi_h = nn.Sequential(nn.Linear(2 * n_features, n_features), nn.SiLU(), nn.Linear(n_features, n_features))

    def forward(
        self, scalars: Tensor, edge_vectors: Tensor, envelope: Tensor, edge_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New scalars (N, F) and the messages (E, F); edge vectors are (E, 3), displaced, and envelope (E, 1)."""
        centre, neighbour = edge_index[0], edge_index[1]
        squared = (edge_vectors * edge_vectors).sum(dim=-1, keepdim=True)  # (E, 1), angstrom^2
        received, sent = self.phi_e_atoms(scalars).split(self.n_features, dim=-1)  # (N, F) each
        messages = self.phi_e(received[centre] + sent[neighbour] + self.phi_e_distance(squared))  # (E, F)
        heard = torch.zeros_like(scalars).index_add(0, centre, messages * (self.phi_inf(messages) * envelope))
        return scalars + self.phi_h(torch.cat([scalars, heard], dim=-1)), messages


class Displacement(nn.Module):
    """Coordinate update, equation 4.

    A hyperbolic tangent bounds phi_x, an option of the authors' code: pushes would otherwise grow with the square of
    the distances that they make, from layer to layer, and may leave the range of float32.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        last = nn.Linear(n_features, 1, bias=False)
        nn.init.xavier_uniform_(last.weight, gain=0.001)  # atoms hardly move at first, as in the authors' code
        self.phi_x = nn.Sequential(nn.Linear(n_features, n_features), nn.SiLU(), last, nn.Tanh())

    def forward(
        self, edge_vectors: Tensor, messages: Tensor, weights: Tensor, edge_index: Tensor, n_atoms: int
    ) -> Tensor:
        """Edge vectors (E, 3) between the atoms once they have moved; weights (E, 1) are those of a mean."""
        centre, neighbour = edge_index[0], edge_index[1]
        pushes = edge_vectors * (self.phi_x(messages) * -weights)  # (E, 3); r_ij = x_j - x_i, the paper has x_i - x_j
        moved = edge_vectors.new_zeros((n_atoms, 3)).index_add(0, centre, pushes)
        return edge_vectors + moved[neighbour] - moved[centre]


class EGNN(nn.Module):
    """Message passing with one vector for each atom, its displaced position, arXiv 2102.09844, section 3.

    An architecture here sees no positions. It needs none: when atom i moves by u_i, the edge vector r_ij becomes
    r_ij + u_j - u_i, and u is a sum of edge vectors; so the update is exact, in periodic cells too.

    Deviations from the paper, for dynamics: messages end smoothly at a cutoff, through a polynomial envelope of the
    original distance, u(r_ij), where the paper has every pair of atoms; the factor C = 1 / (M - 1) of equation 4, with
    M the number of atoms, becomes 1 / (1 + sum_j u(r_ij)), which does not depend on atoms out of reach; and no
    displacement follows the last layer, which nobody would see.
    """

    def __init__(self, hyperparameters: EGNNHyperparameters, cutoff: float, elements: Sequence[str]) -> None:
        super().__init__()
        self.n_features = hyperparameters.n_features
        self.embedding = ElementEmbedding(elements, self.n_features)
        self.envelope = PolynomialEnvelope(cutoff, hyperparameters.envelope_exponent)
        self.first = Convolution(self.n_features)
        n_more = hyperparameters.n_layers - 1
        self.displacements = nn.ModuleList(Displacement(self.n_features) for _ in range(n_more))
        self.convolutions = nn.ModuleList(Convolution(self.n_features) for _ in range(n_more))

    def forward(self, graph: Graph) -> Tensor:
        """Scalar features of each atom, (N, F)."""
        edge_vectors = graph.edge_vectors.to(self.embedding.weight.dtype)
        envelope = self.envelope(torch.linalg.vector_norm(edge_vectors, dim=-1)).unsqueeze(-1)  # (E, 1)
        scalars = self.embedding(graph.numbers)  # (N, F)
        n_atoms = scalars.shape[0]
        centre = graph.edge_index[0]
        reach = envelope.new_ones((n_atoms, 1)).index_add(0, centre, envelope)  # (N, 1)
        weights = envelope / reach[centre]  # (E, 1)
        scalars, messages = self.first(scalars, edge_vectors, envelope, graph.edge_index)
        for displacement, convolution in zip(self.displacements, self.convolutions):  # noqa: B905 (TorchScript knows no strict)
            edge_vectors = displacement(edge_vectors, messages, weights, graph.edge_index, n_atoms)
            scalars, messages = convolution(scalars, edge_vectors, envelope, graph.edge_index)
        return scalars
