"""GemNet-T: geometric message passing over edges and the angles between them, arXiv 2106.08903."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ggnn_ff.angular import SphericalBesselBasis, reverse_edges
from ggnn_ff.graph import Graph
from ggnn_ff.irreps import SphericalHarmonics
from ggnn_ff.layers import ElementEmbedding
from ggnn_ff.radial import BesselBasis, PolynomialEnvelope

CIRCULAR_SCALE = 5.0  # of a single edge's e_CBF, see `GemNet`


class GemNetHyperparameters(BaseModel):
    """The authors' defaults for GemNet-T."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_features: int = Field(default=128, ge=1, description="of each atom and each edge")
    n_triplet_features: int = Field(default=64, ge=1)
    n_basis_features: int = Field(default=16, ge=1, description="between bases and filters")
    n_layers: int = Field(default=4, ge=1)
    n_radial: int = Field(default=6, ge=1)
    n_spherical: int = Field(default=7, ge=1)
    envelope_exponent: int = Field(default=5, ge=2, description="p of the envelope; smaller ones fade earlier")


PRESETS = {
    "small": GemNetHyperparameters(n_features=64, n_triplet_features=32, n_layers=3, n_spherical=5),
    "default": GemNetHyperparameters(),
    "large": GemNetHyperparameters(n_features=256, n_triplet_features=128),
}


class Geometry(NamedTuple):
    """What all blocks know of the edges c -> a: `edge_index` holds a, then c."""

    edge_index: Tensor  # (2, E)
    reverse: Tensor  # (E,), the edge a -> c
    radial_triplet: Tensor  # (E, n_basis_features), e_RBF of |r_ca| after the weights that all blocks share
    radial_atom: Tensor  # (E, n_basis_features), the same with other weights
    circular: Tensor  # (E, n_basis_features, L^2), e_CBF of r_ca after shared weights, as a function of the other edge
    harmonics: Tensor  # (E, L^2), the spherical harmonics of the direction of r_ca


def linear(n_in: int, n_out: int) -> nn.Linear:
    """Without bias; orthogonal, then for each output of mean zero and variance 1 / n_in, as the authors initialise it.

    The mean matters: SiLU makes features mostly positive, and what they have in common would add up over neighbours.
    """
    layer = nn.Linear(n_in, n_out, bias=False)
    with torch.no_grad():
        nn.init.orthogonal_(layer.weight)
        if n_in > 1:
            layer.weight.sub_(layer.weight.mean(dim=1, keepdim=True))
            layer.weight.div_(math.sqrt(n_in) * layer.weight.std(dim=1, unbiased=False, keepdim=True))
    return layer


class ScaledSiLU(nn.Module):
    """SiLU(x) / 0.6, of second moment one for standard normal x."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return nn.functional.silu(x) * (1.0 / 0.6)


def dense(n_in: int, n_out: int) -> nn.Sequential:
    """sigma(W x)."""
    return nn.Sequential(linear(n_in, n_out), ScaledSiLU())


class Residual(nn.Module):
    """Two layers, added to their input."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(dense(n_features, n_features), dense(n_features, n_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., F) -> (..., F)."""
        return (x + self.layers(x)) * (1.0 / math.sqrt(2.0))


class EdgeEmbedding(nn.Module):
    """Message of an edge from its atoms and something it knows, sigma(W [h_c || h_a || x_ca])."""

    def __init__(self, n_features: int, n_edge: int) -> None:
        super().__init__()
        self.layer = dense(2 * n_features + n_edge, n_features)

    def forward(self, atoms: Tensor, edges: Tensor, edge_index: Tensor) -> Tensor:
        """(N, F) and (E, n_edge) -> (E, F)."""
        return self.layer(torch.cat([atoms[edge_index[1]], atoms[edge_index[0]], edges], dim=-1))


class AtomUpdate(nn.Module):
    """What an atom hears from the edges that end there; "atom self-interaction" and output block of figure 4."""

    def __init__(self, n_features: int, n_basis_features: int) -> None:
        super().__init__()
        self.radial_filter = linear(n_basis_features, n_features)
        self.layers = nn.Sequential(dense(n_features, n_features), Residual(n_features), Residual(n_features))

    def forward(self, messages: Tensor, radial: Tensor, edge_index: Tensor, n_atoms: int) -> Tensor:
        """(E, F) and (E, n_basis_features) -> (N, F)."""
        heard = torch.zeros(n_atoms, messages.shape[1], dtype=messages.dtype, device=messages.device)
        return self.layers(heard.index_add(0, edge_index[0], messages * self.radial_filter(radial)))


class EfficientBilinear(nn.Module):
    """sum_b e_CBF(|r_ca|, angle c-a-b) W x_ba over the other edges b -> a, bilinear in basis and messages.

    As in the paper's efficient bilinear layer the sum comes before the weights. One step further, the sum is the same
    for all edges c -> a at an atom but for their own parts: Legendre polynomials of the angle are sums of products of
    spherical harmonics of both directions. So the work grows with the number of edges, not with that of their pairs.
    """

    def __init__(self, n_triplet_features: int, n_basis_features: int) -> None:
        super().__init__()
        self.mix = linear(n_basis_features * n_triplet_features, n_triplet_features)

    def forward(self, x: Tensor, g: Geometry, n_atoms: int) -> Tensor:
        """(E, n_triplet_features) -> (E, n_triplet_features)."""
        centre = g.edge_index[0]
        parts = g.harmonics.unsqueeze(-1) * x.unsqueeze(1)  # (E, L^2, n_triplet_features)
        sums = torch.zeros(n_atoms, parts.shape[1], parts.shape[2], dtype=x.dtype, device=x.device)
        others = sums.index_add(0, centre, parts)[centre] - parts
        return self.mix(torch.bmm(g.circular, others).flatten(1))


class TripletInteraction(nn.Module):
    """One-hop geometric message passing (T-MP of figure 4), symmetric: the edge a -> c hears what c -> a hears."""

    def __init__(self, n_features: int, n_triplet_features: int, n_basis_features: int) -> None:
        super().__init__()
        self.ba = dense(n_features, n_features)
        self.radial_filter = linear(n_basis_features, n_features)
        self.down = dense(n_features, n_triplet_features)
        self.bilinear = EfficientBilinear(n_triplet_features, n_basis_features)
        self.up_ca = dense(n_triplet_features, n_features)
        self.up_ac = dense(n_triplet_features, n_features)

    def forward(self, messages: Tensor, g: Geometry, n_atoms: int) -> Tensor:
        """(E, F) -> (E, F)."""
        x = self.bilinear(self.down(self.ba(messages) * self.radial_filter(g.radial_triplet)), g, n_atoms)
        return (self.up_ca(x) + self.up_ac(x)[g.reverse]) * (1.0 / math.sqrt(2.0))


class InteractionBlock(nn.Module):
    """New messages from those nearby, new features of the atoms from these, and back; figure 4."""

    def __init__(self, n_features: int, n_triplet_features: int, n_basis_features: int) -> None:
        super().__init__()
        self.ca = dense(n_features, n_features)
        self.triplets = TripletInteraction(n_features, n_triplet_features, n_basis_features)
        self.before_skip = Residual(n_features)
        self.after_skip = Residual(n_features)
        self.atom_update = AtomUpdate(n_features, n_basis_features)
        self.edge_embedding = EdgeEmbedding(n_features, n_features)
        self.after_embedding = Residual(n_features)

    def forward(self, atoms: Tensor, messages: Tensor, g: Geometry) -> tuple[Tensor, Tensor]:
        """(N, F) and (E, F), both new."""
        heard = (self.ca(messages) + self.triplets(messages, g, atoms.shape[0])) * (1.0 / math.sqrt(2.0))
        messages = self.after_skip((messages + self.before_skip(heard)) * (1.0 / math.sqrt(2.0)))
        atoms = (atoms + self.atom_update(messages, g.radial_atom, g.edge_index, atoms.shape[0])) * (
            1.0 / math.sqrt(2.0)
        )
        embedded = self.after_embedding(self.edge_embedding(atoms, messages, g.edge_index))
        return atoms, (messages + embedded) * (1.0 / math.sqrt(2.0))


class GemNet(nn.Module):
    """Messages live on edges and know the angles at which they meet; GemNet-T, figure 4, with energies only.

    The features of an atom are those of all output blocks, one after the other: the linear readout of `MODELS` then is
    the sum of the blocks' linear readouts, as in the paper.

    The authors fit a scaling factor to data behind every sum and product of different moments. Here they follow from
    the bases, which are orthonormal in the sphere of radius r_c: a sum over neighbours of the square of any of their
    functions is about 4 pi times the number density of atoms, 0.1 per cubic angstrom in condensed matter, that is about
    one. So sums of messages times radial filters need no factor, and the authors' lie between 0.8 and 1.1. The circular
    basis of a single edge is smaller; it takes a factor of 5 in all, about what the authors' factors for triplets
    amount to (3.3 for the product, 5.8 for the sum, over sqrt(4 pi), since here the angular part has moment one).

    Deviations: the frequencies of the radial basis are fixed, and there are no scaling factors but the above.
    """

    circular_scale: Tensor
    degrees: Tensor

    def __init__(self, hyperparameters: GemNetHyperparameters, cutoff: float, elements: Sequence[str]) -> None:
        super().__init__()
        h = hyperparameters
        self.n_features = h.n_features * (h.n_layers + 1)
        self.radial_scale = math.sqrt(2.0 / cutoff)  # makes the basis orthonormal
        self.basis = BesselBasis(h.n_radial, cutoff)
        self.spherical_basis = SphericalBesselBasis(h.n_spherical, h.n_radial, cutoff)
        self.harmonics = SphericalHarmonics(h.n_spherical - 1)
        self.envelope = PolynomialEnvelope(cutoff, h.envelope_exponent)
        self.radial_triplet = linear(h.n_radial, h.n_basis_features)
        self.radial_atom = linear(h.n_radial, h.n_basis_features)
        self.radial_output = linear(h.n_radial, h.n_basis_features)
        circular = linear(h.n_spherical * h.n_radial, h.n_basis_features).weight.detach()
        self.circular = nn.Parameter(circular.view(h.n_basis_features, h.n_spherical, h.n_radial))
        sizes = 2 * torch.arange(h.n_spherical) + 1  # numbers of harmonics
        scale = CIRCULAR_SCALE * cutoff**-1.5 / sizes.to(torch.float64).sqrt().unsqueeze(-1)
        self.register_buffer("circular_scale", scale, persistent=False)  # (L, 1)
        self.register_buffer("degrees", torch.repeat_interleave(sizes), persistent=False)  # (L^2,)
        self.embedding = ElementEmbedding(elements, h.n_features)
        self.edge_embedding = EdgeEmbedding(h.n_features, h.n_radial)
        self.interactions = nn.ModuleList(
            InteractionBlock(h.n_features, h.n_triplet_features, h.n_basis_features) for _ in range(h.n_layers)
        )
        self.first_output = AtomUpdate(h.n_features, h.n_basis_features)
        self.outputs = nn.ModuleList(AtomUpdate(h.n_features, h.n_basis_features) for _ in range(h.n_layers))

    def forward(self, graph: Graph) -> Tensor:
        """Features of each atom, (N, n_features)."""
        edge_index, n_atoms = graph.edge_index, graph.numbers.shape[0]
        edge_vectors = graph.edge_vectors.to(self.embedding.weight.dtype)
        edge_lengths = torch.linalg.vector_norm(edge_vectors, dim=-1)  # (E,)
        envelope = self.envelope(edge_lengths).unsqueeze(-1)
        radial = self.radial_scale * self.basis(edge_lengths) * envelope  # (E, B)
        spherical = self.spherical_basis(edge_lengths) * envelope.unsqueeze(-1)  # (E, L, B)
        spherical = spherical * self.circular_scale.to(spherical.dtype)
        circular = torch.einsum("elb,ilb->eil", spherical, self.circular)  # (E, n_basis_features, L)
        harmonics = self.harmonics(edge_vectors)  # (E, L^2)
        g = Geometry(
            edge_index=edge_index,
            reverse=reverse_edges(edge_index, graph.edge_vectors, n_atoms),
            radial_triplet=self.radial_triplet(radial),
            radial_atom=self.radial_atom(radial),
            circular=circular[:, :, self.degrees] * harmonics.unsqueeze(1),
            harmonics=harmonics,
        )
        radial_output = self.radial_output(radial)
        atoms = self.embedding(graph.numbers)  # (N, F)
        messages = self.edge_embedding(atoms, radial, edge_index)  # (E, F)
        features = [self.first_output(messages, radial_output, edge_index, n_atoms)]
        for interaction, output in zip(self.interactions, self.outputs):  # noqa: B905 (TorchScript knows no strict)
            atoms, messages = interaction(atoms, messages, g)
            features.append(output(messages, radial_output, edge_index, n_atoms))
        return torch.cat(features, dim=-1)
