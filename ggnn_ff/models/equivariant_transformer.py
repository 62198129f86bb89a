"""The Equivariant Transformer of TorchMD-NET, arXiv 2202.02541."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ggnn_ff.graph import Graph
from ggnn_ff.layers import CUSP, SOFTENING, SOFTENING_DESCRIPTION, ElementEmbedding, dense, softened_norm
from ggnn_ff.radial import ExpNormalBasis, PolynomialEnvelope


class EquivariantTransformerHyperparameters(BaseModel):
    """The paper's defaults, for MD17."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_features: int = Field(default=128, ge=2)
    n_layers: int = Field(default=6, ge=1)
    n_heads: int = Field(default=8, ge=1)
    n_radial: int = Field(default=32, ge=2)
    softening: float = Field(default=CUSP, gt=0.0, description=SOFTENING_DESCRIPTION)

    @model_validator(mode="after")
    def _heads_divide_features(self) -> "EquivariantTransformerHyperparameters":
        if self.n_features % self.n_heads:
            raise ValueError(f"n_features must be a multiple of n_heads, got {self.n_features} and {self.n_heads}")
        return self


PRESETS = {
    "small": EquivariantTransformerHyperparameters(
        n_features=32, n_layers=3, n_heads=4, n_radial=16, softening=SOFTENING
    ),
    "default": EquivariantTransformerHyperparameters(softening=SOFTENING),
    "large": EquivariantTransformerHyperparameters(n_features=256, n_layers=8, n_radial=64, softening=SOFTENING),
}


class NeighbourEmbedding(nn.Module):
    """What an atom is, and what surrounds it (embedding layer, equations 3 and 4)."""

    def __init__(self, elements: Sequence[str], n_features: int, n_radial: int) -> None:
        super().__init__()
        self.intrinsic = ElementEmbedding(elements, n_features)
        self.neighbour = ElementEmbedding(elements, n_features)
        self.filter = dense(n_radial, n_features)
        self.combine = dense(2 * n_features, n_features)

    def forward(self, numbers: Tensor, radial: Tensor, envelope: Tensor, edge_index: Tensor) -> Tensor:
        """(N,), radial functions (E, B), envelope (E, 1), (2, E) -> (N, F)."""
        atoms = self.intrinsic(numbers)
        messages = self.neighbour(numbers)[edge_index[1]] * self.filter(radial) * envelope  # (E, F)
        surroundings = torch.zeros_like(atoms).index_add(0, edge_index[0], messages)
        return self.combine(torch.cat([atoms, surroundings], dim=-1))


class Geometry(NamedTuple):
    """What a layer sees of E edges; or of one, E = 1, that stands for many."""

    radial: Tensor  # (E, B)
    envelope: Tensor  # (E, 1)
    directions: Tensor  # (E, 3)


class Filters(NamedTuple):
    """What the distance does to keys and values of E edges, and their directions."""

    key: Tensor  # (E, F)
    value: Tensor  # (E, 3 F)
    directions: Tensor  # (E, 3)


class AttentionSum(nn.Module):
    """What atoms hear from their neighbours; without weights of its own."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.activation = nn.SiLU()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, vectors: Tensor, filters: Filters, edge_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums over the edges of each atom: scalars (N, F) and vectors (N, 3, F).

        Args:
            query: of who hears, (N, F).
            key: of who is heard, (N, F).
            value: of who is heard, (N, 3 F).
            vectors: of who is heard, (N, 3, F).
            filters: of the edges.
            edge_index: centres and neighbours, (2, E).
        """
        centre, neighbour = edge_index[0], edge_index[1]
        ds, dv = self.messages(query[centre], key[neighbour], value[neighbour], vectors[neighbour], filters)
        return torch.zeros_like(query).index_add(0, centre, ds), torch.zeros_like(vectors).index_add(0, centre, dv)

    def messages(
        self, query: Tensor, key: Tensor, value: Tensor, vectors: Tensor, filters: Filters
    ) -> tuple[Tensor, Tensor]:
        """The same for each edge by itself, with a row for each edge everywhere."""
        products = query * key * filters.key
        attention = self.activation(products.unflatten(1, [self.n_heads, -1]).sum(dim=2))  # (E, heads)
        ds, dv_vector, dv_direction = (value * filters.value).split(query.shape[1], dim=1)  # (E, F) each
        ds = (ds.unflatten(1, [self.n_heads, -1]) * attention.unsqueeze(2)).flatten(1)
        dv = vectors * dv_vector.unsqueeze(1) + filters.directions.unsqueeze(2) * dv_direction.unsqueeze(1)
        return ds, dv


class EquivariantAttention(nn.Module):
    """Modified attention mechanism and update layer; equation 9 splits the values in three."""

    def __init__(self, n_features: int, n_heads: int, n_radial: int) -> None:
        super().__init__()
        self.n_features = n_features
        self.norm = nn.LayerNorm(n_features)
        self.query = dense(n_features, n_features)
        self.key = dense(n_features, n_features)
        self.value = dense(n_features, 3 * n_features)
        self.distance_key = dense(n_radial, n_features)
        self.distance_value = dense(n_radial, 3 * n_features)
        self.attention = AttentionSum(n_heads)
        self.output = dense(n_features, 3 * n_features)
        self.mix = dense(n_features, 3 * n_features, bias=False)  # the matrices U1, U2, U3
        self.activation = nn.SiLU()

    def forward(
        self, scalars: Tensor, vectors: Tensor, edge_index: Tensor, edges: Geometry, itself: Geometry
    ) -> tuple[Tensor, Tensor]:
        """Scalars (N, F) and vectors (N, 3, F) after attention; `itself` is the one edge from any atom to itself."""
        normed = self.norm(scalars)
        query, key, value = self.query(normed), self.key(normed), self.value(normed)
        own_ds, own_dv = self.attention.messages(query, key, value, vectors, self.filters(itself))
        ds, dv = self.attention(query, key, value, vectors, self.filters(edges), edge_index)
        a_vv, a_sv, a_ss = self.output(own_ds + ds).split(self.n_features, dim=1)  # (N, F) each
        u1, u2, u3 = self.mix(vectors).split(self.n_features, dim=2)  # (N, 3, F) each
        scalars = scalars + a_ss + a_sv * (u1 * u2).sum(dim=1)
        return scalars, vectors + own_dv + dv + a_vv.unsqueeze(1) * u3

    def filters(self, edges: Geometry) -> Filters:
        """Of E edges."""
        key = self.activation(self.distance_key(edges.radial))
        value = self.activation(self.distance_value(edges.radial)) * edges.envelope
        return Filters(key, value, edges.directions)


class GatedEquivariantBlock(nn.Module):
    """Halves the features and lets vectors speak through their lengths (PaiNN, arXiv 2102.03150, figure 3)."""

    def __init__(self, n_features: int, softening: float) -> None:
        super().__init__()
        self.n_out, self.softening = n_features // 2, softening
        self.lengths = dense(n_features, n_features, bias=False)
        self.mix = dense(n_features, self.n_out, bias=False)
        self.gate = nn.Sequential(dense(2 * n_features, n_features), nn.SiLU(), dense(n_features, 2 * self.n_out))
        self.activation = nn.SiLU()

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(N, F), (N, 3, F) -> (N, F // 2), (N, 3, F // 2)."""
        features = torch.cat([scalars, softened_norm(self.lengths(vectors), self.softening)], dim=1)
        scalars, gates = self.gate(features).split(self.n_out, dim=1)
        return self.activation(scalars), gates.unsqueeze(1) * self.mix(vectors)


class EquivariantTransformer(nn.Module):
    """Attention between atoms with scalar and vector features, arXiv 2202.02541.

    An atom is among its own neighbours in the attention, at distance zero and without direction, as in the authors'
    code. Energies come from two gated equivariant blocks; the second one is what `mlp_readout` makes of the features
    handed on here, the scalars and lengths of vectors after the first.

    Deviations from the paper, all for dynamics: a polynomial envelope with two continuous derivatives, of the exponent
    that is closest to the cosine cutoff, takes its place; it multiplies the values, so that the vectors vanish at the
    cutoff too (in the paper only the attention does, and energies jump there); lengths are smooth at zero. The radial
    functions scale with the cutoff; at 5 angstrom they are those of the paper.
    """

    nowhere: Tensor  # the vector from an atom to itself

    def __init__(
        self, hyperparameters: EquivariantTransformerHyperparameters, cutoff: float, elements: Sequence[str]
    ) -> None:
        super().__init__()
        n_features, n_radial = hyperparameters.n_features, hyperparameters.n_radial
        self.register_buffer("nowhere", torch.zeros(1, 3, dtype=torch.float64), persistent=False)
        self.basis = ExpNormalBasis(n_radial, cutoff)
        self.envelope = PolynomialEnvelope(cutoff, exponent=3)
        self.embedding = NeighbourEmbedding(elements, n_features, n_radial)
        self.layers = nn.ModuleList(
            EquivariantAttention(n_features, hyperparameters.n_heads, n_radial) for _ in range(hyperparameters.n_layers)
        )
        self.norm = nn.LayerNorm(n_features)
        self.softening = hyperparameters.softening
        self.gated = GatedEquivariantBlock(n_features, self.softening)
        self.lengths = dense(n_features // 2, n_features // 2, bias=False)
        self.n_features = 2 * (n_features // 2)

    def forward(self, graph: Graph) -> Tensor:
        """Scalar features of each atom, (N, F)."""
        edge_vectors = graph.edge_vectors.to(self.lengths.weight.dtype)
        edge_lengths = torch.linalg.vector_norm(edge_vectors, dim=-1)  # (E,)
        directions = edge_vectors / edge_lengths.unsqueeze(-1)  # (E, 3)
        nowhere = self.nowhere.to(directions.dtype)
        edges, itself = self.geometry(edge_lengths, directions), self.geometry(nowhere[:, 0], nowhere)
        scalars = self.embedding(graph.numbers, edges.radial, edges.envelope, graph.edge_index)  # (N, F)
        vectors = scalars.new_zeros((scalars.shape[0], 3, scalars.shape[1]))
        for layer in self.layers:
            scalars, vectors = layer(scalars, vectors, graph.edge_index, edges, itself)
        scalars, vectors = self.gated(self.norm(scalars), vectors)
        return torch.cat([scalars, softened_norm(self.lengths(vectors), self.softening)], dim=1)

    def geometry(self, edge_lengths: Tensor, directions: Tensor) -> Geometry:
        """(E,), (E, 3) -> radial functions that end at the cutoff, the envelope, and directions."""
        envelope = self.envelope(edge_lengths).unsqueeze(1)
        return Geometry(self.basis(edge_lengths) * envelope, envelope, directions)
