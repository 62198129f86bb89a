"""DimeNet++: directional message passing, arXiv 2011.14115, with the basis of DimeNet, arXiv 2003.03123."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ggnn_ff.angular import SphericalBesselBasis, legendre, triplets
from ggnn_ff.graph import Graph
from ggnn_ff.layers import ElementEmbedding
from ggnn_ff.radial import BesselBasis, PolynomialEnvelope


class DimeNetHyperparameters(BaseModel):
    """The authors' defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_features: int = Field(default=128, ge=1, description="of each edge")
    n_triplet_features: int = Field(default=64, ge=1)
    n_basis_features: int = Field(default=8, ge=1, description="between basis and filters")
    n_output_features: int = Field(default=256, ge=1)
    n_layers: int = Field(default=4, ge=1)
    n_radial: int = Field(default=6, ge=1)
    n_spherical: int = Field(default=7, ge=1)
    envelope_exponent: int = Field(default=6, ge=2, description="p of the envelope; smaller ones fade earlier")


PRESETS = {
    "small": DimeNetHyperparameters(
        n_features=48, n_triplet_features=24, n_output_features=48, n_layers=3, n_radial=6, n_spherical=5
    ),
    "default": DimeNetHyperparameters(),
    "large": DimeNetHyperparameters(n_features=256, n_triplet_features=128),
}


def orthogonal_linear(n_in: int, n_out: int, bias: bool = True) -> nn.Linear:
    """A layer as the authors initialise it: orthogonal, entries of variance 2 / (n_in + n_out), zero bias."""
    layer = nn.Linear(n_in, n_out, bias=bias)
    with torch.no_grad():
        nn.init.orthogonal_(layer.weight)
        layer.weight.mul_((2.0 / ((n_in + n_out) * layer.weight.square().mean())).sqrt())
        if bias:
            layer.bias.zero_()
    return layer


def filter_layers(n_basis: int, n_hidden: int, n_features: int) -> nn.Sequential:
    """From a basis to one factor for each feature, through a few numbers."""
    return nn.Sequential(orthogonal_linear(n_basis, n_hidden, False), orthogonal_linear(n_hidden, n_features, False))


class EmbeddingBlock(nn.Module):
    """First message of each edge, from its atoms and its length; DimeNet, section 5."""

    def __init__(self, elements: Sequence[str], n_radial: int, n_features: int) -> None:
        super().__init__()
        self.elements = ElementEmbedding(elements, n_features)
        self.radial = nn.Sequential(nn.Linear(n_radial, n_features), nn.SiLU())
        self.message = nn.Sequential(nn.Linear(3 * n_features, n_features), nn.SiLU())

    def forward(self, numbers: Tensor, radial: Tensor, edge_index: Tensor) -> Tensor:
        """(N,) atomic numbers and (E, B) -> (E, F)."""
        atoms = self.elements(numbers)  # (N, F)
        return self.message(torch.cat([atoms[edge_index[0]], atoms[edge_index[1]], self.radial(radial)], dim=-1))


class Residual(nn.Module):
    """Two layers, added to their input."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            orthogonal_linear(n_features, n_features),
            nn.SiLU(),
            orthogonal_linear(n_features, n_features),
            nn.SiLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., F) -> (..., F)."""
        return x + self.layers(x)


class InteractionBlock(nn.Module):
    """Each message hears the messages that end at its sender; DimeNet++, figure 1."""

    def __init__(self, n_radial: int, n_basis_features: int, n_features: int, n_triplet_features: int) -> None:
        super().__init__()
        self.radial_filter = filter_layers(n_radial, n_basis_features, n_features)
        self.kj = nn.Sequential(orthogonal_linear(n_features, n_features), nn.SiLU())
        self.ji = nn.Sequential(orthogonal_linear(n_features, n_features), nn.SiLU())
        self.down = nn.Sequential(orthogonal_linear(n_features, n_triplet_features, False), nn.SiLU())
        self.up = nn.Sequential(orthogonal_linear(n_triplet_features, n_features, False), nn.SiLU())
        self.before_skip = nn.Sequential(Residual(n_features), orthogonal_linear(n_features, n_features), nn.SiLU())
        self.after_skip = nn.Sequential(Residual(n_features), Residual(n_features))

    def forward(self, messages: Tensor, radial: Tensor, triplet_filters: Tensor, ji: Tensor, kj: Tensor) -> Tensor:
        """New messages (E, F); `triplet_filters` (T, n_triplet_features) know the geometry of k -> j -> i."""
        incoming = self.down(self.kj(messages) * self.radial_filter(radial))[kj] * triplet_filters
        heard = torch.zeros(messages.shape[0], incoming.shape[1], dtype=messages.dtype, device=messages.device)
        heard = heard.index_add(0, ji, incoming)  # (E, n_triplet_features)
        return self.after_skip(messages + self.before_skip(self.ji(messages) + self.up(heard)))


class OutputBlock(nn.Module):
    """Features of the atoms from the messages that end there; DimeNet++, figure 1, without the last linear map."""

    def __init__(self, n_radial: int, n_features: int, n_output_features: int) -> None:
        super().__init__()
        self.radial_filter = orthogonal_linear(n_radial, n_features, False)
        self.layers = nn.Sequential(
            orthogonal_linear(n_features, n_output_features, False),
            orthogonal_linear(n_output_features, n_output_features),
            nn.SiLU(),
            orthogonal_linear(n_output_features, n_output_features),
            nn.SiLU(),
            orthogonal_linear(n_output_features, n_output_features),
            nn.SiLU(),
        )

    def forward(self, messages: Tensor, radial: Tensor, edge_index: Tensor, n_atoms: int) -> Tensor:
        """(E, F) -> (N, n_output_features)."""
        atoms = torch.zeros(n_atoms, messages.shape[1], dtype=messages.dtype, device=messages.device)
        return self.layers(atoms.index_add(0, edge_index[0], messages * self.radial_filter(radial)))


class DirectionalMessagePassing(nn.Module):
    """All blocks of DimeNet++, given the geometry: what k -> j -> i means is in the filters of the triplets.

    The features of an atom are those of all output blocks, one after the other: a linear readout of them is the sum of
    the blocks' linear readouts, as in the paper.
    """

    def __init__(self, h: DimeNetHyperparameters, elements: Sequence[str]) -> None:
        super().__init__()
        self.n_features = h.n_output_features * (h.n_layers + 1)
        self.embedding = EmbeddingBlock(elements, h.n_radial, h.n_features)
        self.interactions = nn.ModuleList(
            InteractionBlock(h.n_radial, h.n_basis_features, h.n_features, h.n_triplet_features)
            for _ in range(h.n_layers)
        )
        self.first_output = OutputBlock(h.n_radial, h.n_features, h.n_output_features)
        self.outputs = nn.ModuleList(
            OutputBlock(h.n_radial, h.n_features, h.n_output_features) for _ in range(h.n_layers)
        )

    def forward(self, graph: Graph, radial: Tensor, filters: list[Tensor], ji: Tensor, kj: Tensor) -> Tensor:
        """Features of each atom, (N, n_features).

        Args:
            graph: only its atoms and edges are looked at, not its vectors.
            radial: (E, B), zero at the cutoff.
            filters: of each interaction (T, n_triplet_features), zero where k is at the cutoff.
            ji: (T,), the edges that hear.
            kj: (T,), the edges that are heard.
        """
        edge_index, n_atoms = graph.edge_index, graph.numbers.shape[0]
        messages = self.embedding(graph.numbers, radial, edge_index)  # (E, F)
        features = [self.first_output(messages, radial, edge_index, n_atoms)]
        for layer, (interaction, output) in enumerate(zip(self.interactions, self.outputs)):  # noqa: B905 (TorchScript knows no strict)
            messages = interaction(messages, radial, filters[layer], ji, kj)
            features.append(output(messages, radial, edge_index, n_atoms))
        return torch.cat(features, dim=-1)


class DimeNet(nn.Module):
    """Messages live on edges and know the angles at which they meet, DimeNet++.

    Deviations: the frequencies of the radial basis are fixed, and the envelope multiplies the spherical basis as in
    DimeNet's section 5, where the authors' code multiplies by envelope * r_c / r. Bases are without dimension, as in
    that code.
    """

    def __init__(self, hyperparameters: DimeNetHyperparameters, cutoff: float, elements: Sequence[str]) -> None:
        super().__init__()
        h = hyperparameters
        self.cutoff, self.n_spherical = cutoff, h.n_spherical
        self.basis = BesselBasis(h.n_radial, cutoff)
        self.spherical_basis = SphericalBesselBasis(h.n_spherical, h.n_radial, cutoff)
        self.envelope = PolynomialEnvelope(cutoff, h.envelope_exponent)
        self.angle_filters = nn.ModuleList(
            filter_layers(h.n_spherical * h.n_radial, h.n_basis_features, h.n_triplet_features)
            for _ in range(h.n_layers)
        )
        self.message_passing = DirectionalMessagePassing(h, elements)
        self.n_features = self.message_passing.n_features

    def forward(self, graph: Graph) -> Tensor:
        """Features of each atom, (N, n_features)."""
        edge_vectors = graph.edge_vectors.to(self.message_passing.embedding.elements.weight.dtype)
        edge_lengths = torch.linalg.vector_norm(edge_vectors, dim=-1)  # (E,)
        directions = edge_vectors / edge_lengths.unsqueeze(-1)  # (E, 3)
        envelope = self.envelope(edge_lengths)
        radial = self.cutoff * self.basis(edge_lengths) * envelope.unsqueeze(-1)  # (E, B)
        spherical = self.spherical_basis(edge_lengths) * envelope.view(-1, 1, 1)  # (E, L, B)
        ji, kj = triplets(graph.edge_index, graph.edge_vectors, graph.numbers.shape[0])  # (T,) each
        cosines = -(directions[ji] * directions[kj]).sum(dim=-1)  # (T,), of the angle at j
        angular = (spherical[kj] * legendre(cosines, self.n_spherical).unsqueeze(-1)).flatten(1)  # (T, L * B)
        filters = [angle_filter(angular) for angle_filter in self.angle_filters]  # (T, n_triplet_features) each
        return self.message_passing(graph, radial, filters, ji, kj)
