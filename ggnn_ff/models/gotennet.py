"""GotenNet: geometric tensor network, ICLR 2025, https://openreview.net/forum?id=5wxCQDtbMo."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ggnn_ff.graph import Graph
from ggnn_ff.irreps import SphericalHarmonics
from ggnn_ff.layers import CUSP, SOFTENING, SOFTENING_DESCRIPTION, ElementEmbedding, dense, softened_norm
from ggnn_ff.radial import ExpNormalBasis, PolynomialEnvelope


class GotenNetHyperparameters(BaseModel):
    """The paper's defaults, for rMD17."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_features: int = Field(default=192, ge=2)
    n_layers: int = Field(default=12, ge=1)
    n_heads: int = Field(default=8, ge=1)
    n_radial: int = Field(default=32, ge=2)
    n_refinement: int = Field(default=768, ge=1, description="features of the inner products that refine edges")
    l_max: int = Field(default=2, ge=1)
    softening: float = Field(default=CUSP, gt=0.0, description=SOFTENING_DESCRIPTION)

    @model_validator(mode="after")
    def _heads_divide_features(self) -> "GotenNetHyperparameters":
        if self.n_features % self.n_heads:
            raise ValueError(f"n_features must be a multiple of n_heads, got {self.n_features} and {self.n_heads}")
        return self


PRESETS = {
    "small": GotenNetHyperparameters(
        n_features=32, n_layers=3, n_heads=4, n_radial=16, n_refinement=32, softening=SOFTENING
    ),
    "default": GotenNetHyperparameters(softening=SOFTENING),
    "large": GotenNetHyperparameters(n_features=256, n_layers=12, softening=SOFTENING),
}


def weighted_softmax(scores: Tensor, weights: Tensor, centre: Tensor, n_atoms: int) -> Tensor:
    """w_ij exp(s_ij) / sum_k w_ik exp(s_ik) over the neighbours of each centre.

    An edge whose weight goes to zero disappears smoothly from all sums.

    Args:
        scores: (E, heads).
        weights: (E, 1); each centre must have a neighbour with weight above zero.
        centre: (E,).
        n_atoms: N.
    """
    index = centre.unsqueeze(1).expand_as(scores)
    counted = scores.detach().masked_fill(weights.detach() == 0.0, -1e30)  # else all that count could underflow
    largest = scores.detach().new_zeros([n_atoms, scores.shape[1]])
    largest = largest.scatter_reduce(0, index, counted, "amax", include_self=False)
    # The same function whatever is subtracted. The bound concerns edges without weight only.
    exponentials = weights * torch.exp((scores - largest[centre]).clamp(max=0.0))
    sums = exponentials.new_zeros([n_atoms, scores.shape[1]]).index_add(0, centre, exponentials)
    return exponentials / sums[centre]


def with_self_edges(
    edge_index: Tensor, edge_lengths: Tensor, harmonics: Tensor, n_atoms: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Adds an edge of length zero, without direction, from each atom to itself: in attention it is its own neighbour.

    Args:
        edge_index: (2, E).
        edge_lengths: (E,).
        harmonics: (E, M).
        n_atoms: N.

    Returns:
        All three with E + N edges.
    """
    atoms = torch.arange(n_atoms, device=edge_index.device)
    return (
        torch.cat([edge_index, torch.stack([atoms, atoms])], dim=1),
        torch.cat([edge_lengths, edge_lengths.new_zeros([n_atoms])]),
        torch.cat([harmonics, harmonics.new_zeros([n_atoms, harmonics.shape[1]])]),
    )


def per_component(features: Tensor, n_features: int) -> Tensor:
    """One set of features for each degree l = 1 ... L, (E, L F), to each of its 2 l + 1 components, (E, M, F)."""
    parts: list[Tensor] = []
    for part in features.split(n_features, dim=1):
        parts.append(part.unsqueeze(1).expand(-1, 2 * len(parts) + 3, -1))
    return torch.cat(parts, dim=1)


class StructuralEmbedding(nn.Module):
    """First features of atoms (equations 1 and 2) and of edges (equation 3)."""

    def __init__(self, elements: Sequence[str], n_features: int, n_radial: int) -> None:
        super().__init__()
        self.atom = ElementEmbedding(elements, n_features)
        self.neighbour = ElementEmbedding(elements, n_features)
        self.filter = dense(n_radial, n_features)
        self.combine = nn.Sequential(
            dense(2 * n_features, n_features), nn.LayerNorm(n_features), nn.SiLU(), dense(n_features, n_features)
        )
        self.edge = dense(n_radial, n_features)

    def forward(self, numbers: Tensor, radial: Tensor, envelope: Tensor, edge_index: Tensor) -> Tensor:
        """(N,), radial functions (E, B), envelope (E, 1), (2, E) -> (N, F)."""
        atoms = self.atom(numbers)
        messages = self.neighbour(numbers)[edge_index[1]] * self.filter(radial) * envelope  # (E, F)
        surroundings = torch.zeros_like(atoms).index_add(0, edge_index[0], messages)
        return self.combine(torch.cat([atoms, surroundings], dim=1))

    def edges(self, scalars: Tensor, radial: Tensor, edge_index: Tensor) -> Tensor:
        """(N, F), (E, B), (2, E) -> (E, F)."""
        return (scalars[edge_index[0]] + scalars[edge_index[1]]) * self.edge(radial)


class TensorAttention(nn.Module):
    """Geometry-aware tensor attention, GATA (section 3.3)."""

    def __init__(self, n_features: int, n_heads: int, l_max: int) -> None:
        super().__init__()
        self.n_features = n_features
        self.n_heads = n_heads
        self.sizes = [n_features, l_max * n_features, l_max * n_features]
        n_out = (1 + 2 * l_max) * n_features
        self.query = dense(n_features, n_features)
        self.key = dense(n_features, n_features)
        self.edge_key = dense(n_features, n_features)
        self.value = nn.Sequential(dense(n_features, n_features), nn.SiLU(), dense(n_features, n_out))
        self.message = nn.Sequential(dense(n_features, n_features), nn.SiLU(), dense(n_features, n_out))
        self.edge_filter = dense(n_features, n_out)
        self.activation = nn.SiLU()

    def forward(
        self, scalars: Tensor, tensors: Tensor, edges: Tensor, harmonics: Tensor, envelope: Tensor, edge_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scalars (N, F) and tensors (N, M, F) after attention; edges (E, F), harmonics (E, M), envelope (E, 1)."""
        centre, neighbour = edge_index[0], edge_index[1]
        products = self.query(scalars)[centre] * self.key(scalars)[neighbour] * self.activation(self.edge_key(edges))
        scores = products.unflatten(1, [self.n_heads, -1]).sum(dim=2)  # (E, heads)
        attention = weighted_softmax(scores, envelope, centre, scalars.shape[0]) / self.n_features**0.5
        values = self.value(scalars)[neighbour].unflatten(1, [self.n_heads, -1])  # (E, heads, (1 + 2L) F / heads)
        attended = (values * attention.unsqueeze(2)).flatten(1)
        filtered = self.message(scalars)[neighbour] * self.edge_filter(edges) * envelope
        ds, from_harmonics, from_tensors = (attended + filtered).split(self.sizes, dim=1)
        dt = harmonics.unsqueeze(2) * per_component(from_harmonics, self.n_features)  # (E, M, F)
        dt = dt + tensors[neighbour] * per_component(from_tensors, self.n_features)
        return scalars.index_add(0, centre, ds), tensors.index_add(0, centre, dt)


class TensorRefinement(nn.Module):
    """Hierarchical tensor refinement, HTR (section 3.4): inner products of the tensors of two atoms change their edge.

    As in the authors' code the part of the tensors along the edge is left out of the products.
    """

    def __init__(self, n_features: int, n_refinement: int, l_max: int) -> None:
        super().__init__()
        self.degree_sizes = [2 * degree + 1 for degree in range(1, l_max + 1)]
        self.query = dense(n_features, n_refinement, bias=False)
        self.keys = nn.ModuleList(dense(n_features, n_refinement, bias=False) for _ in range(l_max))
        self.products = dense(n_refinement, n_features)
        self.edges = nn.Sequential(dense(n_features, n_features), nn.SiLU())

    def forward(self, edges: Tensor, tensors: Tensor, harmonics: Tensor, edge_index: Tensor) -> Tensor:
        """(E, F), (N, M, F), (E, M), (2, E) -> (E, F)."""
        centre, neighbour = edge_index[0], edge_index[1]
        products = torch.zeros_like(edges[:, :1])  # (E, 1), soon (E, R)
        parts, directions = tensors.split(self.degree_sizes, dim=1), harmonics.split(self.degree_sizes, dim=1)
        for degree, to_key in enumerate(self.keys):
            query = self.query(parts[degree])[centre]  # (E, 2l + 1, R)
            key = to_key(parts[degree])[neighbour]
            along = directions[degree].unsqueeze(2)
            products = products + (query * key).sum(dim=1) - (query * along).sum(dim=1) * (key * along).sum(dim=1)
        return edges + self.edges(edges) * self.products(products)


class EquivariantFeedForward(nn.Module):
    """Equivariant feed-forward, EQFF (section 3.5): mixes the features within each atom."""

    def __init__(self, n_features: int, softening: float) -> None:
        super().__init__()
        self.n_features, self.softening = n_features, softening
        self.mix = dense(n_features, n_features, bias=False)
        self.gate = nn.Sequential(dense(2 * n_features, n_features), nn.SiLU(), dense(n_features, 2 * n_features))

    def forward(self, scalars: Tensor, tensors: Tensor) -> tuple[Tensor, Tensor]:
        """(N, F), (N, M, F) -> the same shapes."""
        mixed = self.mix(tensors)
        features = torch.cat([scalars, softened_norm(mixed, self.softening)], dim=1)  # (N, 2F)
        ds, gate = self.gate(features).split(self.n_features, dim=1)
        return scalars + ds, tensors + gate.unsqueeze(1) * mixed


class GotenNet(nn.Module):
    """Attention between atoms with tensors of degrees 1 ... l_max, and without Clebsch-Gordan products.

    Where the paper leaves details open, they are those of the authors' code: an atom is among its own neighbours in
    the attention, which is divided by the root of the number of features; edges are refined in all layers but the last.

    Deviations from the paper, for dynamics: a polynomial envelope with two continuous derivatives, of the exponent
    that is closest to the cosine cutoff, takes its place; the softmax weighs each neighbour with it, since otherwise
    energies jump where an atom crosses the cutoff; lengths of tensors are smooth where these vanish. No dropout. The
    radial functions scale with the cutoff; at 5 angstrom they are those of the paper.
    """

    inverse_norms: Tensor

    def __init__(self, hyperparameters: GotenNetHyperparameters, cutoff: float, elements: Sequence[str]) -> None:
        super().__init__()
        n_features, l_max, n_layers = hyperparameters.n_features, hyperparameters.l_max, hyperparameters.n_layers
        self.n_features = n_features
        self.basis = ExpNormalBasis(hyperparameters.n_radial, cutoff)
        self.envelope = PolynomialEnvelope(cutoff, exponent=3)
        self.harmonics = SphericalHarmonics(l_max)
        degrees = torch.tensor([degree for degree in range(1, l_max + 1) for _ in range(2 * degree + 1)])
        self.register_buffer("inverse_norms", (2.0 * degrees.to(torch.float64) + 1.0) ** -0.5, persistent=False)
        self.embedding = StructuralEmbedding(elements, n_features, hyperparameters.n_radial)
        heads, refinement, softening = hyperparameters.n_heads, hyperparameters.n_refinement, hyperparameters.softening
        self.attentions = nn.ModuleList(TensorAttention(n_features, heads, l_max) for _ in range(n_layers - 1))
        self.refinements = nn.ModuleList(TensorRefinement(n_features, refinement, l_max) for _ in range(n_layers - 1))
        self.feed_forwards = nn.ModuleList(EquivariantFeedForward(n_features, softening) for _ in range(n_layers - 1))
        self.last_attention = TensorAttention(n_features, heads, l_max)
        self.last_feed_forward = EquivariantFeedForward(n_features, softening)

    def forward(self, graph: Graph) -> Tensor:
        """Scalar features of each atom, (N, F)."""
        edge_vectors = graph.edge_vectors.to(self.last_feed_forward.mix.weight.dtype)
        edge_lengths = torch.linalg.vector_norm(edge_vectors, dim=-1)  # (E,)
        harmonics = self.harmonics(edge_vectors)[:, 1:]  # (E, M)
        harmonics = harmonics * self.inverse_norms.to(harmonics.dtype)  # each degree has length one
        radial, envelope = self.radial(edge_lengths)
        scalars = self.embedding(graph.numbers, radial, envelope, graph.edge_index)  # (N, F)
        tensors = scalars.new_zeros((scalars.shape[0], harmonics.shape[1], scalars.shape[1]))  # (N, M, F)

        edge_index, edge_lengths, harmonics = with_self_edges(
            graph.edge_index, edge_lengths, harmonics, scalars.shape[0]
        )
        radial, envelope = self.radial(edge_lengths)
        edges = self.embedding.edges(scalars, radial, edge_index)  # (E, F)
        for attention, refinement, feed_forward in zip(self.attentions, self.refinements, self.feed_forwards):  # noqa: B905 (TorchScript knows no strict)
            scalars, tensors = attention(scalars, tensors, edges, harmonics, envelope, edge_index)
            edges = refinement(edges, tensors, harmonics, edge_index)
            scalars, tensors = feed_forward(scalars, tensors)
        scalars, tensors = self.last_attention(scalars, tensors, edges, harmonics, envelope, edge_index)
        scalars, tensors = self.last_feed_forward(scalars, tensors)
        return scalars

    def radial(self, edge_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(E,) -> radial functions that end at the cutoff (E, B) and the envelope (E, 1)."""
        envelope = self.envelope(edge_lengths).unsqueeze(1)
        return self.basis(edge_lengths) * envelope, envelope
