"""SphereNet: spherical message passing with distances, angles and torsions, arXiv 2102.05013.

The scheme of that paper (section 3) updates the message e of each edge j -> i from the messages that end at j, given
the spherical coordinates (d, theta, phi) of their senders k around j with j -> i as axis; atoms sum the messages that
end there. Three architectures are cases of it, which differ in what a message hears of k:

    SchNet      nothing; e_ji = filter(d_ji) * f(x_j), which an output block alone does
    DimeNet     sum over k of e_kj * filter(d_kj, theta)
    SphereNet   sum over k of e_kj * filter(d_kj, theta) * filter(d_kj, theta, phi)

So all blocks are those of `dimenet.py`; `tests/test_spherenet.py` recovers the other two.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ggnn_ff.angular import SphericalBesselBasis, legendre, perpendicular_axes, powers, triplets
from ggnn_ff.graph import Graph
from ggnn_ff.models.dimenet import DimeNetHyperparameters, DirectionalMessagePassing, filter_layers
from ggnn_ff.radial import BesselBasis, PolynomialEnvelope


class SphereNetHyperparameters(DimeNetHyperparameters):
    """The authors' defaults, which are those of DimeNet++, apart from the smooth torsion."""

    torsion: Literal["smooth", "published"] = Field(
        default="smooth", description="published jumps where neighbours swap order; it exists to be compared with"
    )


PRESETS = {
    "small": SphereNetHyperparameters(
        n_features=48, n_triplet_features=24, n_output_features=48, n_layers=3, n_radial=6, n_spherical=4
    ),
    "default": SphereNetHyperparameters(),
    "large": SphereNetHyperparameters(n_features=256, n_triplet_features=128),
}


class SmoothTorsion(nn.Module):
    """Torsions of k against all other neighbours q of j, each as much as its envelope w says.

    sum_q w_q sin^m(theta_q) cos(m (phi_k - phi_q)) / (1 + sum_q w_q), q != k, takes the place of the cos(m phi) of one
    reference. With c = sin(theta) exp(i phi) this is a product of c_k^m and a sum over q that all k share, so the cost
    is that of the triplets, O(n k^2). It is a polynomial of Cartesian components, whatever lines up, and twice
    differentiable where q crosses the cutoff. There are no sines: an energy is the same in a mirror.
    """

    def __init__(self, n_spherical: int) -> None:
        super().__init__()
        self.n_spherical = n_spherical
        self.degrees = [degree for m in range(n_spherical) for degree in range(m, n_spherical)]

    def forward(self, cosines: Tensor, x: Tensor, y: Tensor, weights: Tensor, ji: Tensor, n_edges: int) -> Tensor:
        """Functions of theta and phi, of the degrees in `degrees`; those of order m = 0 know no reference.

        Args:
            cosines: (T,), of the polar angle theta.
            x: (T,), sin(theta) cos(phi), with phi from any direction that belongs to the edge ji.
            y: (T,), sin(theta) sin(phi).
            weights: (T,), envelope of the distance from j to k.
            ji: (T,), in order.
            n_edges: E.

        Returns:
            (T, number of functions).
        """
        c_real, c_imaginary = powers(x, y, self.n_spherical)  # (T, L), c^m
        own = torch.cat([c_real, c_imaginary], dim=-1) * weights.unsqueeze(-1)  # (T, 2L)
        total = torch.zeros(n_edges, own.shape[1], dtype=own.dtype, device=own.device).index_add(0, ji, own)
        others = total[ji] - own  # sum over q
        others = others / (1.0 + others.narrow(1, 0, 1))  # the power zero sums the weights
        a_real, a_imaginary = others.split(self.n_spherical, dim=-1)
        references = c_real * a_real + c_imaginary * a_imaginary  # (T, L), the real part of c^m conj(a_m)
        functions = [legendre(cosines, self.n_spherical)]
        for m in range(1, self.n_spherical):
            functions.append(legendre(cosines, self.n_spherical, m) * references.narrow(1, m, 1))
        return torch.cat(functions, dim=-1)


class PublishedTorsion(nn.Module):
    """The torsion of k against the next neighbour q of j in anticlockwise order about j -> i, as in the authors' code.

    It jumps where the neighbours change order, where one comes or goes at the cutoff, and where q is on the axis. Since
    the mirror image has another order, the energy is not the same there.
    """

    def __init__(self, n_spherical: int) -> None:
        super().__init__()
        self.n_spherical = n_spherical
        cosine_degrees = [degree for m in range(n_spherical) for degree in range(m, n_spherical)]
        self.degrees = cosine_degrees + cosine_degrees[n_spherical:]

    def forward(self, cosines: Tensor, x: Tensor, y: Tensor, weights: Tensor, ji: Tensor, n_edges: int) -> Tensor:
        """All real spherical harmonics, with phi against the reference; arguments as in `SmoothTorsion`."""
        azimuths = torch.atan2(y, x).detach()
        around = torch.argsort(azimuths, stable=True)
        around = around[torch.argsort(ji[around], stable=True)]  # by edge, then anticlockwise
        counts = torch.zeros(n_edges, dtype=torch.int64, device=ji.device).index_add(0, ji, torch.ones_like(ji))
        ends = torch.cumsum(counts, 0)[ji]
        following = torch.arange(ji.shape[0], device=ji.device) + 1
        following = torch.where(following < ends, following, ends - counts[ji])  # after the last comes the first
        reference = torch.empty_like(around).scatter(0, around, around[following])  # of k: its q
        length = torch.sqrt(x * x + y * y + 1e-12)  # sin(theta)
        q_real, q_imaginary = (x / length)[reference], (y / length)[reference]
        # phi grows from k to q: the conjugate of c_k times the direction of q
        real, imaginary = powers(x * q_real + y * q_imaginary, x * q_imaginary - y * q_real, self.n_spherical)
        functions = [legendre(cosines, self.n_spherical)]
        for m in range(1, self.n_spherical):
            functions.append(legendre(cosines, self.n_spherical, m) * real.narrow(1, m, 1))
        for m in range(1, self.n_spherical):
            functions.append(legendre(cosines, self.n_spherical, m) * imaginary.narrow(1, m, 1))
        return torch.cat(functions, dim=-1)


TORSIONS: dict[str, type[SmoothTorsion] | type[PublishedTorsion]] = {
    "smooth": SmoothTorsion,
    "published": PublishedTorsion,
}


class SphereNet(nn.Module):
    """Messages live on edges and know at which angles and torsions they meet.

    Deviations, all for dynamics: torsions against weighted references (`SmoothTorsion`), no functions that change sign
    in a mirror, envelopes on all bases, and those of `DimeNet`.
    """

    degrees: Tensor

    def __init__(self, hyperparameters: SphereNetHyperparameters, cutoff: float, elements: Sequence[str]) -> None:
        super().__init__()
        h = hyperparameters
        self.cutoff, self.n_spherical = cutoff, h.n_spherical
        self.basis = BesselBasis(h.n_radial, cutoff)
        self.spherical_basis = SphericalBesselBasis(h.n_spherical, h.n_radial, cutoff)
        self.envelope = PolynomialEnvelope(cutoff, h.envelope_exponent)
        self.torsion = TORSIONS[h.torsion](h.n_spherical)
        self.register_buffer("degrees", torch.tensor(self.torsion.degrees), persistent=False)
        self.angle_filters = nn.ModuleList(
            filter_layers(h.n_spherical * h.n_radial, h.n_basis_features, h.n_triplet_features)
            for _ in range(h.n_layers)
        )
        self.torsion_filters = nn.ModuleList(
            filter_layers(len(self.torsion.degrees) * h.n_radial, h.n_basis_features, h.n_triplet_features)
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
        towards_k = directions[kj]  # (T, 3), seen from j
        axes = -directions  # (E, 3), from j to i
        first, second = perpendicular_axes(axes)
        cosines = (axes[ji] * towards_k).sum(dim=-1)  # (T,), of the angle at j
        x, y = (first[ji] * towards_k).sum(dim=-1), (second[ji] * towards_k).sum(dim=-1)
        torsions = self.torsion(cosines, x, y, envelope[kj], ji, edge_lengths.shape[0])
        angular = (spherical[kj] * legendre(cosines, self.n_spherical).unsqueeze(-1)).flatten(1)  # (T, L * B)
        torsional = (spherical[:, self.degrees][kj] * torsions.unsqueeze(-1)).flatten(1)  # (T, functions * B)
        filters: list[Tensor] = []  # (T, n_triplet_features) each
        for angle_filter, torsion_filter in zip(self.angle_filters, self.torsion_filters):  # noqa: B905 (TorchScript knows no strict)
            filters.append(angle_filter(angular) * torsion_filter(torsional))
        return self.message_passing(graph, radial, filters, ji, kj)
