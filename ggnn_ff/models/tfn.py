"""TFN: Tensor Field Network, arXiv 1802.08219."""

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ggnn_ff.graph import Graph
from ggnn_ff.irreps import DegreeLinear, RadialWeights, SphericalHarmonics, TensorProductConvolution
from ggnn_ff.layers import ElementEmbedding
from ggnn_ff.radial import BesselBasis, PolynomialEnvelope


class TFNHyperparameters(BaseModel):
    """Three layers, as in the paper's experiments; these have no energies of molecules, so the other sizes are ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_features: int = Field(default=64, ge=2, description="of each degree")
    n_layers: int = Field(default=3, ge=1)
    l_max: int = Field(default=2, ge=0, description="highest degree of features and spherical harmonics")
    n_radial: int = Field(default=8, ge=1)
    radial_width: int = Field(default=64, ge=1, description="of the two hidden layers of the radial network")
    n_neighbors: float = Field(default=10.0, gt=0, description="about how many there are; sums are divided by its root")


PRESETS = {
    "small": TFNHyperparameters(n_features=32),
    "default": TFNHyperparameters(),
    "large": TFNHyperparameters(n_features=128, l_max=3),
}


class Nonlinearity(nn.Module):
    """Of scalars eta(x + b), of the other features eta(|x| + b) x / |x|, with SiLU as eta; section 4.3.

    The paper prints it without the division; its code divides, and features do not grow with their square.
    """

    def __init__(self, n_degrees: int, n_features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_degrees, n_features))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """(N, 2l+1, F) -> (N, 2l+1, F) for each degree."""
        new = [nn.functional.silu(features[0] + self.bias[0])]
        for degree in range(1, len(features)):
            x = features[degree]
            norm = torch.sqrt((x * x).sum(dim=1, keepdim=True) + 0.01)  # (N, 1, F); smooth where x vanishes
            new.append(nn.functional.silu(norm + self.bias[degree]) / norm * x)
        return new


class Layer(nn.Module):
    """Self-interaction, convolution over the neighbours and the atom itself, self-interaction, nonlinearity.

    At distance zero there is no direction and a filter has degree 0 only: the atom's own part of the convolution is one
    matrix for each degree.
    """

    def __init__(self, hyperparameters: TFNHyperparameters, l_in: int, l_out: int) -> None:
        super().__init__()
        n_features = hyperparameters.n_features
        self.before = DegreeLinear([n_features] * (l_in + 1), [n_features] * (l_in + 1))
        self.convolution = TensorProductConvolution(l_in, hyperparameters.l_max, l_out)
        n_weights = self.convolution.n_paths * n_features
        self.radial = RadialWeights(hyperparameters.n_radial, hyperparameters.radial_width, n_weights)
        n_both = min(l_in, l_out) + 1
        self.own = DegreeLinear([n_features] * n_both, [n_features] * n_both)
        self.after = DegreeLinear([n * n_features for n in self.convolution.n_paths_to], [n_features] * (l_out + 1))
        self.nonlinearity = Nonlinearity(l_out + 1, n_features)

    def forward(self, features: list[Tensor], harmonics: Tensor, radial: Tensor, edge_index: Tensor) -> list[Tensor]:
        """Features (N, 2l+1, F) for each degree l up to l_in -> the same up to l_out."""
        new = self.after(self.convolution(self.before(features), harmonics, self.radial(radial), edge_index))
        for degree, own in enumerate(self.own(features)):
            new[degree] = new[degree] + own
        return self.nonlinearity(new)


class TFN(nn.Module):
    """Convolutions with filters R(r) Y(direction) on features up to degree l_max, arXiv 1802.08219, section 4.

    Deviations from the paper: filters end smoothly at the cutoff, for they are made from Bessel functions times an
    envelope; SiLU in place of ReLU and of shifted softplus; couplings that break mirror symmetry, such as the cross
    product of two vectors, are left out, since energies do not change when a molecule is reflected.
    """

    def __init__(self, hyperparameters: TFNHyperparameters, cutoff: float, elements: Sequence[str]) -> None:
        super().__init__()
        self.n_features = hyperparameters.n_features
        self.scale = 1.0 / math.sqrt(hyperparameters.n_neighbors)
        self.embedding = ElementEmbedding(elements, self.n_features)
        self.harmonics = SphericalHarmonics(hyperparameters.l_max)
        self.basis = BesselBasis(hyperparameters.n_radial, cutoff)
        self.envelope = PolynomialEnvelope(cutoff, 6)
        degrees = [0] + [hyperparameters.l_max] * (hyperparameters.n_layers - 1) + [0]  # before, between, after layers
        self.layers = nn.ModuleList(
            Layer(hyperparameters, degrees[i], degrees[i + 1]) for i in range(hyperparameters.n_layers)
        )

    def forward(self, graph: Graph) -> Tensor:
        """Scalar features of each atom, (N, F)."""
        scalars = self.embedding(graph.numbers)  # (N, F)
        edge_vectors = graph.edge_vectors.to(scalars.dtype)
        edge_lengths = torch.linalg.vector_norm(edge_vectors, dim=-1)  # (E,)
        harmonics = self.harmonics(edge_vectors) * self.scale  # (E, (l_max+1)^2)
        radial = self.basis(edge_lengths) * self.envelope(edge_lengths).unsqueeze(-1)  # (E, B)
        features = [scalars.unsqueeze(1)]  # degree 0 only
        for layer in self.layers:
            features = layer(features, harmonics, radial, graph.edge_index)
        return features[0].squeeze(1)
