"""SchNet: continuous-filter convolutions, arXiv 1706.08566."""

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ggnn_ff.graph import Graph
from ggnn_ff.layers import ElementEmbedding
from ggnn_ff.radial import GaussianBasis, PolynomialEnvelope


class SchNetHyperparameters(BaseModel):
    """The paper's defaults; 25 Gaussians up to 5 angstrom are as wide as the paper's (gamma = 10 / angstrom^2)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_features: int = Field(default=64, ge=2)
    n_layers: int = Field(default=6, ge=1, description="interaction blocks")
    n_radial: int = Field(default=25, ge=2)
    envelope_exponent: int = Field(default=6, ge=2, description="p of the envelope; smaller ones fade earlier")


PRESETS = {
    "small": SchNetHyperparameters(n_layers=3),
    "default": SchNetHyperparameters(),
    "large": SchNetHyperparameters(n_features=128),
}


class ShiftedSoftplus(nn.Module):
    """ln(e^x / 2 + 1/2), section 4.1: smooth, and zero at zero."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, elementwise."""
        # The default threshold, where the function becomes a straight line, is a jump of 2e-9: seen in float64.
        return nn.functional.softplus(x, threshold=40.0) - math.log(2.0)


class Interaction(nn.Module):
    """Interaction block with its filter-generating network, figure 2 (middle and right)."""

    def __init__(self, n_features: int, n_radial: int) -> None:
        super().__init__()
        self.filters = nn.Sequential(
            nn.Linear(n_radial, n_features), ShiftedSoftplus(), nn.Linear(n_features, n_features)
        )
        self.atomwise_in = nn.Linear(n_features, n_features, bias=False)
        self.atomwise_out = nn.Sequential(
            nn.Linear(n_features, n_features), ShiftedSoftplus(), nn.Linear(n_features, n_features)
        )

    def forward(self, scalars: Tensor, basis: Tensor, envelope: Tensor, edge_index: Tensor) -> Tensor:
        """Scalars (N, F) after hearing the neighbours; basis is (E, B), envelope (E, 1)."""
        centre, neighbour = edge_index[0], edge_index[1]
        filters = self.filters(basis) * envelope  # (E, F)
        heard = self.atomwise_in(scalars)[neighbour] * filters  # equation 2
        return scalars + self.atomwise_out(torch.zeros_like(scalars).index_add(0, centre, heard))


class SchNet(nn.Module):
    """Invariant message passing with continuous filters, arXiv 1706.08566, figure 2 (left).

    Two deviations from the paper: filters end smoothly at a cutoff, through a polynomial envelope with two continuous
    derivatives, where the paper has every pair of atoms; and the filter-generating networks have no activation after
    their last layer, as in the authors' own SchNetPack, so that filters can take either sign freely.
    """

    def __init__(self, hyperparameters: SchNetHyperparameters, cutoff: float, elements: Sequence[str]) -> None:
        super().__init__()
        self.n_features = hyperparameters.n_features
        self.embedding = ElementEmbedding(elements, self.n_features)
        self.basis = GaussianBasis(hyperparameters.n_radial, cutoff)
        self.envelope = PolynomialEnvelope(cutoff, hyperparameters.envelope_exponent)
        self.interactions = nn.ModuleList(
            Interaction(self.n_features, hyperparameters.n_radial) for _ in range(hyperparameters.n_layers)
        )

    def forward(self, graph: Graph) -> Tensor:
        """Scalar features of each atom, (N, F)."""
        edge_vectors = graph.edge_vectors.to(self.embedding.weight.dtype)
        edge_lengths = torch.linalg.vector_norm(edge_vectors, dim=-1)  # (E,)
        basis = self.basis(edge_lengths)  # (E, B)
        envelope = self.envelope(edge_lengths).unsqueeze(-1)  # (E, 1)
        scalars = self.embedding(graph.numbers)  # (N, F)
        for interaction in self.interactions:
            scalars = interaction(scalars, basis, envelope, graph.edge_index)
        return scalars


def readout(n_features: int) -> nn.Sequential:
    """(N, F) -> (N, 1) through one hidden layer of half the width, with the activation of the rest."""
    return nn.Sequential(nn.Linear(n_features, n_features // 2), ShiftedSoftplus(), nn.Linear(n_features // 2, 1))
