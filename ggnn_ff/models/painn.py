"""PaiNN: polarizable atom interaction network, arXiv 2102.03150."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ggnn_ff.graph import Graph
from ggnn_ff.layers import CUSP, SOFTENING, SOFTENING_DESCRIPTION, ElementEmbedding, softened_norm
from ggnn_ff.radial import BesselBasis, PolynomialEnvelope


class PaiNNHyperparameters(BaseModel):
    """The paper's defaults (section 5), apart from the envelope."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_features: int = Field(default=128, ge=1)
    n_layers: int = Field(default=3, ge=1)
    n_radial: int = Field(default=20, ge=1)
    envelope_exponent: int = Field(default=6, ge=2, description="p of the envelope; smaller ones fade earlier")
    softening: float = Field(default=CUSP, gt=0.0, description=SOFTENING_DESCRIPTION)


PRESETS = {
    "small": PaiNNHyperparameters(n_features=32, n_radial=8, softening=SOFTENING),
    "default": PaiNNHyperparameters(softening=SOFTENING),
    "large": PaiNNHyperparameters(n_features=256, softening=SOFTENING),
}


class Message(nn.Module):
    """Message block, equations 7 and 8."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features
        self.phi = nn.Sequential(nn.Linear(n_features, n_features), nn.SiLU(), nn.Linear(n_features, 3 * n_features))

    def forward(
        self, scalars: Tensor, vectors: Tensor, filters: Tensor, directions: Tensor, edge_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scalars (N, F) and vectors (N, 3, F) after hearing the neighbours; filters are (E, 3F)."""
        centre, neighbour = edge_index[0], edge_index[1]
        ds, dv_direction, dv_vector = (self.phi(scalars)[neighbour] * filters).split(
            self.n_features, dim=-1
        )  # (E, F) each
        dv = dv_direction.unsqueeze(1) * directions.unsqueeze(-1)  # (E, 3, F)
        dv = dv + dv_vector.unsqueeze(1) * vectors[neighbour]
        return scalars.index_add(0, centre, ds), vectors.index_add(0, centre, dv)


class Update(nn.Module):
    """Update block, equations 9 and 10."""

    def __init__(self, n_features: int, softening: float) -> None:
        super().__init__()
        self.n_features, self.softening = n_features, softening
        self.mix = nn.Linear(n_features, 2 * n_features, bias=False)  # the matrices V and U
        self.a = nn.Sequential(nn.Linear(2 * n_features, n_features), nn.SiLU(), nn.Linear(n_features, 3 * n_features))

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (N, F) and vectors (N, 3, F) after mixing within each atom."""
        v, u = self.mix(vectors).split(self.n_features, dim=-1)  # (N, 3, F) each
        features = torch.cat([scalars, softened_norm(v, self.softening)], dim=-1)  # (N, 2F)
        a_ss, a_sv, a_vv = self.a(features).split(self.n_features, dim=-1)  # (N, F) each
        return scalars + a_ss + a_sv * (v * u).sum(dim=1), vectors + a_vv.unsqueeze(1) * u


class PaiNN(nn.Module):
    """Equivariant message passing with scalar and vector features, arXiv 2102.03150, figure 2.

    Three deviations from the paper, for dynamics: the cosine cutoff is replaced by a polynomial envelope with two
    continuous derivatives, lengths of vectors are smooth where these vanish, and the filters of all layers come from
    one matrix product.
    """

    def __init__(self, hyperparameters: PaiNNHyperparameters, cutoff: float, elements: Sequence[str]) -> None:
        super().__init__()
        self.n_features = hyperparameters.n_features
        n_filters = 3 * self.n_features
        self.embedding = ElementEmbedding(elements, self.n_features)
        self.basis = BesselBasis(hyperparameters.n_radial, cutoff)
        self.envelope = PolynomialEnvelope(cutoff, hyperparameters.envelope_exponent)
        self.filters = nn.Linear(hyperparameters.n_radial, hyperparameters.n_layers * n_filters)
        self.messages = nn.ModuleList(Message(self.n_features) for _ in range(hyperparameters.n_layers))
        self.updates = nn.ModuleList(
            Update(self.n_features, hyperparameters.softening) for _ in range(hyperparameters.n_layers)
        )

    def forward(self, graph: Graph) -> Tensor:
        """Scalar features of each atom, (N, F)."""
        edge_vectors = graph.edge_vectors.to(self.embedding.weight.dtype)
        edge_lengths = torch.linalg.vector_norm(edge_vectors, dim=-1)  # (E,)
        directions = edge_vectors / edge_lengths.unsqueeze(-1)  # (E, 3)
        filters = self.filters(self.basis(edge_lengths)) * self.envelope(edge_lengths).unsqueeze(-1)
        scalars = self.embedding(graph.numbers)  # (N, F)
        vectors = scalars.new_zeros((scalars.shape[0], 3, self.n_features))
        n_filters = 3 * self.n_features
        for layer, (message, update) in enumerate(zip(self.messages, self.updates)):  # noqa: B905 (TorchScript knows no strict)
            layer_filters = filters.narrow(1, layer * n_filters, n_filters)  # (E, 3F)
            scalars, vectors = message(scalars, vectors, layer_filters, directions, graph.edge_index)
            scalars, vectors = update(scalars, vectors)
        return scalars
