"""NequIP: neural equivariant interatomic potentials, arXiv 2101.03164."""

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ggnn_ff.graph import Graph
from ggnn_ff.irreps import RMS_OF_SILU, DegreeLinear, RadialWeights, SphericalHarmonics, TensorProductConvolution
from ggnn_ff.layers import ElementEmbedding, ElementIndex
from ggnn_ff.radial import BesselBasis, PolynomialEnvelope


class NequIPHyperparameters(BaseModel):
    """The paper's for rMD17 (Methods, "Training details")."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_features: int = Field(default=64, ge=1, description="of each degree")
    n_layers: int = Field(default=5, ge=1)
    l_max: int = Field(default=3, ge=0, description="highest degree of features and spherical harmonics")
    n_radial: int = Field(default=8, ge=1)
    radial_width: int = Field(default=64, ge=1, description="of the two hidden layers of the radial network")
    n_neighbors: float = Field(default=10.0, gt=0, description="about how many there are; sums are divided by its root")


PRESETS = {
    "small": NequIPHyperparameters(n_features=32, n_layers=3, l_max=2),
    "default": NequIPHyperparameters(),
    "large": NequIPHyperparameters(n_features=128, n_layers=6),
}


class SelfConnection(nn.Module):
    """Mixes features of equal degree with one matrix for each element ("self-connection", figure 1c)."""

    def __init__(self, elements: Sequence[str], n_features: int, n_out: Sequence[int]) -> None:
        super().__init__()
        self.n_degrees = len(n_out)
        self.mix = DegreeLinear([n_features * len(elements)] * len(n_out), n_out)
        for parameter in self.mix.parameters():
            nn.init.normal_(parameter, std=1.0 / math.sqrt(n_features))  # an atom has one element only

    def forward(self, features: list[Tensor], is_element: Tensor) -> list[Tensor]:
        """(N, 2l+1, F) -> (N, 2l+1, n_out[l]); `is_element` is (N, elements), ones and zeros."""
        by_element: list[Tensor] = []
        for x in features[: self.n_degrees]:
            by_element.append((x.unsqueeze(2) * is_element.unsqueeze(1).unsqueeze(3)).flatten(2))
        return self.mix(by_element)


class Gate(nn.Module):
    """SiLU of scalars; features of higher degree are multiplied with a SiLU of a scalar of their own."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features
        self.gain = 1.0 / RMS_OF_SILU

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Degree 0 (N, 1, F * n_degrees), the others (N, 2l+1, F) -> (N, 2l+1, F) each."""
        scalars_and_gates = (self.gain * nn.functional.silu(features[0])).split(self.n_features, dim=2)
        gated = [scalars_and_gates[0]]
        for degree in range(1, len(features)):
            gated.append(scalars_and_gates[degree] * features[degree])
        return gated


class Interaction(nn.Module):
    """Interaction block, figure 1c: self-interaction, convolution, self-interaction, self-connection; then the gate.

    The first block has no self-connection, so that an atom without neighbours has no energy but its shift.
    """

    def __init__(
        self, hyperparameters: NequIPHyperparameters, elements: Sequence[str], l_in: int, l_out: int, *, first: bool
    ) -> None:
        super().__init__()
        n_features = hyperparameters.n_features
        n_in, n_out = [n_features] * (l_in + 1), [n_features * (l_out + 1)] + [n_features] * l_out
        self.before = DegreeLinear(n_in, n_in)
        self.convolution = TensorProductConvolution(l_in, hyperparameters.l_max, l_out)
        n_weights = self.convolution.n_paths * n_features
        self.radial = RadialWeights(hyperparameters.n_radial, hyperparameters.radial_width, n_weights)
        self.after = DegreeLinear([n * n_features for n in self.convolution.n_paths_to], n_out)
        self.self_connection = None if first else SelfConnection(elements, n_features, n_out[: l_in + 1])
        self.gate = Gate(n_features)

    def forward(
        self, features: list[Tensor], is_element: Tensor, harmonics: Tensor, radial: Tensor, edge_index: Tensor
    ) -> list[Tensor]:
        """Features (N, 2l+1, F) for each degree l up to l_in -> the same up to l_out."""
        new = self.after(self.convolution(self.before(features), harmonics, self.radial(radial), edge_index))
        if self.self_connection is not None:
            for degree, old in enumerate(self.self_connection(features, is_element)):
                new[degree] = new[degree] + old
        return self.gate(new)


class NequIP(nn.Module):
    """Equivariant convolutions with features up to degree l_max, arXiv 2101.03164, figure 1.

    Two deviations from the paper: all features have the parity (-1)^l of the spherical harmonics, as they have in
    nequip with `parity: false` (with three layers or fewer, others cannot reach the energy); the frequencies of the
    Bessel functions are not trained. The paper's two linear layers of the readout are one, which is the same function.
    """

    def __init__(self, hyperparameters: NequIPHyperparameters, cutoff: float, elements: Sequence[str]) -> None:
        super().__init__()
        self.n_features = hyperparameters.n_features
        self.embedding = ElementEmbedding(elements, self.n_features)
        self.index = ElementIndex(elements)
        self.scale = 1.0 / math.sqrt(hyperparameters.n_neighbors)
        self.harmonics = SphericalHarmonics(hyperparameters.l_max)
        self.basis = BesselBasis(hyperparameters.n_radial, cutoff)
        self.envelope = PolynomialEnvelope(cutoff, 6)
        self.amplitude = 2.0 / cutoff  # keeps first features below one: gates multiply, and make larger ones explode
        degrees = [0] + [hyperparameters.l_max] * (hyperparameters.n_layers - 1) + [0]  # before, between, after layers
        self.layers = nn.ModuleList(
            Interaction(hyperparameters, elements, degrees[i], degrees[i + 1], first=i == 0)
            for i in range(hyperparameters.n_layers)
        )

    def forward(self, graph: Graph) -> Tensor:
        """Scalar features of each atom, (N, F)."""
        scalars = self.embedding(graph.numbers)  # (N, F)
        edge_vectors = graph.edge_vectors.to(scalars.dtype)
        edge_lengths = torch.linalg.vector_norm(edge_vectors, dim=-1)  # (E,)
        harmonics = self.harmonics(edge_vectors) * self.scale  # (E, (l_max+1)^2)
        envelope = self.amplitude * self.envelope(edge_lengths)
        radial = self.basis(edge_lengths) * envelope.unsqueeze(-1)  # (E, B), equation 8
        elements = torch.arange(self.index.n_elements, device=scalars.device)
        is_element = (self.index(graph.numbers).unsqueeze(1) == elements).to(scalars.dtype)  # (N, Z)
        features = [scalars.unsqueeze(1)]  # degree 0 only
        for layer in self.layers:
            features = layer(features, is_element, harmonics, radial, graph.edge_index)
        return features[0].squeeze(1)
