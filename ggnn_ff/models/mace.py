"""MACE: higher order equivariant message passing, arXiv 2206.07697."""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ggnn_ff.graph import Graph
from ggnn_ff.irreps import DegreeLinear, SphericalHarmonics, TensorProductConvolution, clebsch_gordan
from ggnn_ff.layers import ElementEmbedding
from ggnn_ff.radial import BesselBasis, PolynomialEnvelope

RADIAL_WIDTHS = (64, 64, 64)  # hidden layers of the radial network
READOUT_WIDTH = 16  # hidden layer of the last readout


class MACEHyperparameters(BaseModel):
    """The defaults of the authors' code, 128x0e+128x1o; the paper takes 256 channels for small molecules."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_features: int = Field(default=128, ge=1, description="channels of each irreducible representation")
    n_layers: int = Field(default=2, ge=1)
    l_max: int = Field(default=3, ge=1, le=3, description="largest degree of the spherical harmonics")
    l_hidden: int = Field(default=1, ge=0, le=3, description="largest degree of the features passed between layers")
    correlation: int = Field(default=3, ge=1, le=3, description="largest number of neighbours coupled in one layer")
    n_radial: int = Field(default=8, ge=1)
    envelope_exponent: int = Field(default=5, ge=2, description="p of the envelope; smaller ones fade earlier")
    n_neighbors: float = Field(default=16.0, gt=0.0, description="sums over neighbours are divided by it")

    @model_validator(mode="after")
    def _messages_reach_the_hidden_degrees(self) -> "MACEHyperparameters":
        if self.l_hidden > self.l_max:
            raise ValueError(f"`l_hidden` must be at most `l_max`, got {self.l_hidden} and {self.l_max}")
        return self


PRESETS = {
    "small": MACEHyperparameters(n_features=64),
    "default": MACEHyperparameters(),
    "large": MACEHyperparameters(n_features=256, l_hidden=2),
}


def perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers without biases, SiLU between them; at first each keeps the second moment of its input.

    What is zero stays zero, as smoothly as it came: so the radial functions keep their envelope.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        linear = nn.Linear(n_in, n_out, bias=False)
        nn.init.normal_(linear.weight, std=(1.679 if layers else 1.0) / math.sqrt(n_in))  # SiLU reduces it
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class Interaction(nn.Module):
    """The atomic basis A of equation 8: neighbours' features, coupled to spherical harmonics and summed."""

    def __init__(self, hyperparameters: MACEHyperparameters, l_in: int) -> None:
        super().__init__()
        n_features, l_max = hyperparameters.n_features, hyperparameters.l_max
        self.n_neighbors = hyperparameters.n_neighbors
        self.up = DegreeLinear([n_features] * (l_in + 1), [n_features] * (l_in + 1))
        self.convolution = TensorProductConvolution(l_in, l_max, l_max)
        self.radial = perceptron([hyperparameters.n_radial, *RADIAL_WIDTHS, self.convolution.n_paths * n_features])
        self.mix = DegreeLinear([n * n_features for n in self.convolution.n_paths_to], [n_features] * (l_max + 1))

    def forward(self, features: list[Tensor], harmonics: Tensor, basis: Tensor, edge_index: Tensor) -> Tensor:
        """Features (N, 2l+1, F) for each degree l up to l_in -> A, (N, (l_max+1)^2, F)."""
        sums = self.convolution(self.up(features), harmonics, self.radial(basis), edge_index)
        return torch.cat(self.mix(sums), dim=1) / self.n_neighbors


def coupled(degrees: Sequence[int], l_out: int) -> list[Tensor]:
    """All ways to couple features of these degrees, one after the other, to degree `l_out`.

    Each is (2 l1 + 1, 2 l2 + 1, ..., 2 l_out + 1); together they span the equivariant maps.
    """
    *before, last = degrees
    if not before:
        return [torch.eye(2 * l_out + 1, dtype=torch.float64)] if last == l_out else []
    return [
        torch.tensordot(left, clebsch_gordan(degree, last, l_out), dims=1)
        for degree in range(abs(l_out - last), l_out + last + 1)
        for left in coupled(before, degree)
    ]


@lru_cache
def symmetric_basis(l_max: int, l_out: int, correlation: int) -> tuple[Tensor, Tensor, list[int]]:
    """Generalised Clebsch-Gordan coefficients of equation 10, reduced to those that equal factors can tell apart.

    The components of A commute, so a coupling is a polynomial in them, that is monomials and their coefficients; and
    most couplings are sums of others. Weights on disk belong to this basis, which is therefore made in a fixed order:
    one coupling after the other is made orthogonal to those kept before, and kept if something is left. The first
    coefficient of each is positive, whatever the signs of `clebsch_gordan`. The scalar product is that under which each
    polynomial has unit variance for standard normal A, apart from correlations within a monomial.

    Returns:
        Monomials (correlation, 2 l_out + 1, K) int64, for each component of the output: which components of A to
        multiply, where (l_max+1)^2 stands for the factor one; coefficients (2 l_out + 1, P, K) float64; and of each of
        the P polynomials the order, 1 to `correlation`.
    """
    one = (l_max + 1) ** 2
    monomials = list(itertools.combinations_with_replacement(range(one + 1), correlation))
    column = {monomial: index for index, monomial in enumerate(monomials)}
    variances = [math.prod(math.factorial(m.count(i)) for i in set(m) - {one}) for m in monomials]
    weight = torch.tensor(variances, dtype=torch.float64) / (2 * l_out + 1)
    basis: list[Tensor] = []
    orders: list[int] = []
    for order in range(1, correlation + 1):
        ones = (one,) * (correlation - order)
        for degrees in itertools.combinations_with_replacement(range(l_max + 1), order):
            if (sum(degrees) + l_out) % 2:
                continue  # a pseudotensor
            components = itertools.product(*(range(degree**2, (degree + 1) ** 2) for degree in degrees))
            columns = torch.tensor([column[tuple(sorted(factors + ones))] for factors in components])
            kept: list[Tensor] = []  # of these degrees; those of other degrees share no monomial
            for tensor in coupled(degrees, l_out):
                polynomial = torch.zeros(2 * l_out + 1, len(monomials), dtype=torch.float64)
                polynomial.index_add_(1, columns, tensor.flatten(0, -2).T)
                for other in kept * 2:  # twice, against rounding
                    polynomial -= (polynomial * other * weight).sum() * other
                norm = (polynomial.square() * weight).sum().sqrt()
                if norm > 1e-6:
                    first = polynomial[polynomial.abs() > 1e-6 * norm][0]
                    kept.append(polynomial / (norm * first.sign()))
            basis += kept
            orders += [order] * len(kept)
    coefficients = torch.stack(basis, dim=1)  # (2 l_out + 1, P, all monomials)
    coefficients[coefficients.abs() < 1e-12] = 0.0
    used = [component.any(dim=0).nonzero().flatten() for component in coefficients]
    filling = column[(one,) * correlation]  # has no coefficient
    chosen = nn.utils.rnn.pad_sequence(used, batch_first=True, padding_value=filling)  # (2 l_out + 1, K)
    coefficients = coefficients.gather(2, chosen.unsqueeze(1).expand(-1, len(basis), -1))
    return torch.tensor(monomials)[chosen].permute(2, 0, 1).contiguous(), coefficients, orders


class SymmetricContraction(nn.Module):
    """The messages of equations 10 and 11 of one degree L: weighted sums of products of components of A.

    Only the monomials that occur are multiplied, each once.
    """

    monomials: Tensor
    basis: Tensor

    def __init__(self, n_features: int, n_elements: int, l_max: int, l_out: int, correlation: int) -> None:
        super().__init__()
        monomials, basis, orders = symmetric_basis(l_max, l_out, correlation)
        self.one = (l_max + 1) ** 2  # where monomials have no further factor
        self.register_buffer("monomials", monomials, persistent=False)
        self.register_buffer("basis", basis, persistent=False)
        std = torch.tensor([1.0 / orders.count(order) for order in orders])  # (P,)
        self.weight = nn.Parameter(torch.randn(n_elements, len(orders), n_features) * std.unsqueeze(1))

    def forward(self, features: Tensor, elements: Tensor) -> Tensor:
        """A, (N, (l_max+1)^2, F), and rows of the elements (N,) -> m_L, (N, 2L+1, F)."""
        factors = torch.cat([features, torch.ones_like(features[:, :1])], dim=1).transpose(0, 1)
        products = factors[self.monomials[0]]  # (2L+1, K, N, F)
        for order in range(1, self.monomials.shape[0]):
            products = products * factors[self.monomials[order]]
        b = torch.bmm(self.basis.to(factors.dtype), products.flatten(2))  # (2L+1, P, N F), equation 10
        b = b.view(b.shape[0], b.shape[1], factors.shape[1], factors.shape[2])
        return (b * self.weight[elements].transpose(0, 1)).sum(dim=1).transpose(0, 1)


class Layer(nn.Module):
    """Atomic basis, messages and update: equations 8 to 12."""

    def __init__(self, hyperparameters: MACEHyperparameters, n_elements: int, l_in: int, l_out: int) -> None:
        super().__init__()
        n_features = hyperparameters.n_features
        self.interaction = Interaction(hyperparameters, l_in)
        self.contractions = nn.ModuleList(
            SymmetricContraction(n_features, n_elements, hyperparameters.l_max, degree, hyperparameters.correlation)
            for degree in range(l_out + 1)
        )
        self.update = DegreeLinear([n_features] * (l_out + 1), [n_features] * (l_out + 1))
        n_own = min(l_in, l_out) + 1
        self.own = nn.Parameter(torch.randn(n_own, n_elements, n_features, n_features) / math.sqrt(n_features))

    def forward(
        self, features: list[Tensor], elements: Tensor, harmonics: Tensor, basis: Tensor, edge_index: Tensor
    ) -> list[Tensor]:
        """Features (N, 2l+1, F) for each degree l up to l_in -> the next, up to l_out."""
        a = self.interaction(features, harmonics, basis, edge_index)  # (N, (l_max+1)^2, F)
        messages: list[Tensor] = []
        for contraction in self.contractions:
            messages.append(contraction(a, elements))
        updated = self.update(messages)
        every = torch.arange(self.own.shape[1], device=elements.device)
        chosen = (elements.unsqueeze(1) == every).to(self.own.dtype).view(-1, 1, every.shape[0], 1)
        for degree, own in enumerate(self.own.unbind()):  # (elements, F, F)
            # Of all elements, and then the right one is taken: less to move than a matrix for each atom.
            x = features[degree]
            of_all = x.reshape(-1, x.shape[2]) @ own.transpose(0, 1).flatten(1)  # (N (2l+1), elements F)
            of_all = of_all.view(x.shape[0], x.shape[1], own.shape[0], own.shape[2])
            updated[degree] = updated[degree] + (of_all * chosen).sum(dim=2)
        return updated


class MACE(nn.Module):
    """Equivariant messages of many-body products of the neighbours, arXiv 2206.07697, section 4.

    In the form of the authors' residual blocks: equation 12 has its second term in the first layer too, where it is a
    constant of the element; and the radial network sees the Bessel functions times the envelope, so that, being without
    biases, it needs no envelope of its own.

    Features of an atom are the scalars of the last layer and, as one more, the sum of the linear readouts of the layers
    before (equation 13), which `MACEReadout` adds.
    """

    def __init__(self, hyperparameters: MACEHyperparameters, cutoff: float, elements: Sequence[str]) -> None:
        super().__init__()
        n_features, n_before = hyperparameters.n_features, hyperparameters.n_layers - 1
        self.n_features = n_features + 1
        self.embedding = ElementEmbedding(elements, n_features)
        self.harmonics = SphericalHarmonics(hyperparameters.l_max)
        self.basis = BesselBasis(hyperparameters.n_radial, cutoff)
        self.envelope = PolynomialEnvelope(cutoff, hyperparameters.envelope_exponent)
        degrees = [0] + [hyperparameters.l_hidden] * n_before  # into each layer
        self.layers = nn.ModuleList(
            Layer(hyperparameters, len(elements), l_in, hyperparameters.l_hidden) for l_in in degrees[:-1]
        )
        self.last = Layer(hyperparameters, len(elements), degrees[-1], 0)
        self.readouts = nn.ModuleList(perceptron([n_features, 1]) for _ in range(n_before))

    def forward(self, graph: Graph) -> Tensor:
        """Scalar features of each atom, (N, F + 1)."""
        edge_vectors = graph.edge_vectors.to(self.embedding.weight.dtype)
        edge_lengths = torch.linalg.vector_norm(edge_vectors, dim=-1)  # (E,)
        harmonics = self.harmonics(edge_vectors)  # (E, (l_max+1)^2)
        basis = self.basis(edge_lengths) * self.envelope(edge_lengths).unsqueeze(-1)  # (E, B)
        elements = self.embedding.index(graph.numbers)
        features = [self.embedding(graph.numbers).unsqueeze(1)]  # degree 0 only
        energies = torch.zeros_like(features[0][:, 0, :1])  # (N, 1)
        for layer, readout in zip(self.layers, self.readouts):  # noqa: B905 (TorchScript knows no strict)
            features = layer(features, elements, harmonics, basis, graph.edge_index)
            energies = energies + readout(features[0].squeeze(1))
        features = self.last(features, elements, harmonics, basis, graph.edge_index)
        return torch.cat([features[0].squeeze(1), energies], dim=1)


class MACEReadout(nn.Module):
    """Equation 13: one hidden layer for the scalars of the last layer, plus the readouts of the layers before."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.last = perceptron([n_features - 1, READOUT_WIDTH, 1])

    def forward(self, features: Tensor) -> Tensor:
        """(N, F + 1) -> (N, 1)."""
        return self.last(features[:, :-1]) + features[:, -1:]
