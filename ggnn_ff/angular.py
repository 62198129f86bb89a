"""Angles: which edges meet, and functions of the directions between them that are smooth everywhere.

Angles are never formed. Their cosines are dot products of unit vectors, and sines enter only as vectors across an axis,
so that atoms on one line have finite values and derivatives of every order.
"""

import math
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import spherical_jn
from torch import Tensor, nn


def _ranges(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """`starts[r], starts[r] + 1, ...`, `counts[r]` of them for each row r: the rows (T,) and these numbers (T,)."""
    rows = torch.repeat_interleave(counts, output_size=_integer(counts.sum()))
    offsets = starts - (torch.cumsum(counts, 0) - counts)
    return rows, torch.arange(rows.shape[0], device=counts.device) + offsets[rows]


def _integer(scalar: Tensor) -> int:
    """The value of a tensor that holds one integer; while a graph is traced, an integer without value."""
    if torch.jit.is_scripting():
        return int(scalar)
    return scalar.item()  # type: ignore[return-value]


def _edges_of_atoms(edge_index: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
    """The first edge of each atom as centre, (N,), and how many there are, (N,); edges are sorted by centre."""
    counts = torch.zeros(n_atoms, dtype=torch.int64, device=edge_index.device)
    counts = counts.index_add(0, edge_index[0], torch.ones_like(edge_index[0]))
    return torch.cumsum(counts, 0) - counts, counts


def reverse_edges(edge_index: Tensor, edge_vectors: Tensor, n_atoms: int) -> Tensor:
    """The edge j -> i of each edge i -> j, (E,).

    It is the one with the opposite vector: with periodicity several edges lead from j to images of i. Sorted by their
    two atoms, and then by how far they lead in a direction askew to any lattice, the two edges of a pair are next to
    each other. So there are no comparisons that depend on the data, and no tensor is larger than the list of edges.

    Args:
        edge_index: (2, E), both directions.
        edge_vectors: (E, 3), angstrom.
        n_atoms: N.
    """
    centre, neighbour = edge_index[0], edge_index[1]
    vectors = edge_vectors.detach()
    along = vectors[:, 0] + (math.e / 4.0) * vectors[:, 1] + (math.pi / 7.0) * vectors[:, 2]
    ahead = (centre < neighbour) | ((centre == neighbour) & (along > 0))  # one of each two
    by_distance = torch.argsort(torch.where(ahead, along, -along))
    atoms = torch.minimum(centre, neighbour) * n_atoms + torch.maximum(centre, neighbour)
    order = by_distance[torch.argsort(atoms[by_distance], stable=True)]
    return order.view(-1, 2).flip(1).flatten()[torch.argsort(order)]


def triplets(edge_index: Tensor, edge_vectors: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
    """All ways i <- j <- k over two edges, without the way back to i itself; images of i count as other atoms.

    Their number is the sum over atoms of n (n - 1), n being the number of neighbours.

    Args:
        edge_index: (2, E), sorted by centre, both directions.
        edge_vectors: (E, 3), angstrom.
        n_atoms: N.

    Returns:
        Edges "ji" (centre i, neighbour j) and edges "kj" (centre j, neighbour k), (T,) each, ordered by the first.
    """
    way_back = reverse_edges(edge_index, edge_vectors, n_atoms)
    starts, counts = _edges_of_atoms(edge_index, n_atoms)
    edges, others = _ranges(starts[edge_index[1]], counts[edge_index[1]] - 1)
    return edges, others + (others >= way_back[edges]).to(torch.int64)


def bessel_zeros(n_spherical: int, n_radial: int) -> np.ndarray:
    """The first zeros z_ln of the spherical Bessel functions j_l, (n_spherical, n_radial)."""
    zeros = np.arange(1, n_radial + n_spherical) * math.pi  # of j_0; between each two there is one of the next
    table = [zeros[:n_radial]]
    for order in range(1, n_spherical):
        zeros = np.array([brentq(lambda x, n=order: spherical_jn(n, x), *pair, xtol=1e-14) for pair in pairwise(zeros)])
        table.append(zeros[:n_radial])
    return np.array(table)


class SphericalBesselBasis(nn.Module):
    """The radial part of DimeNet's basis (arXiv 2003.03123, equation 6), sqrt(2 / j_{l+1}^2(z_ln)) j_l(z_ln r / r_c).

    The constant r_c^(-3/2) is left out, as in the authors' code. The functions are Chebyshev series in r / r_c, summed
    in float64: the usual recursion loses all digits where the argument is below the order l.
    """

    coefficients: Tensor

    def __init__(self, n_spherical: int, n_radial: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.n_spherical, self.n_radial = n_spherical, n_radial
        zeros = bessel_zeros(n_spherical, n_radial)
        # From degree z on the coefficients fall faster than exponentially; at z + 22 they are below rounding.
        self.n_doublings = math.ceil(math.log2(zeros.max() + 22.0))
        n_terms = 2**self.n_doublings + 1
        nodes = np.cos(math.pi * (np.arange(n_terms) + 0.5) / n_terms).reshape(-1, 1, 1)
        orders = np.arange(n_spherical).reshape(-1, 1)
        values = np.sign(nodes) ** orders * spherical_jn(orders, zeros * np.abs(nodes))
        values *= math.sqrt(2.0) / np.abs(spherical_jn(orders + 1, zeros))
        series = np.polynomial.chebyshev.chebvander(nodes.ravel(), n_terms - 1)  # orthogonal columns
        coefficients = series.T @ values.reshape(n_terms, -1) / (series**2).sum(axis=0).reshape(-1, 1)
        self.register_buffer("coefficients", torch.from_numpy(coefficients), persistent=False)

    def forward(self, edge_lengths: Tensor) -> Tensor:
        """(E,) angstrom -> (E, n_spherical, n_radial); beyond the cutoff, where the series would overflow, as there."""
        x = (edge_lengths.to(self.coefficients.dtype).unsqueeze(-1) / self.cutoff).clamp(max=1.0)
        series = torch.cat([torch.ones_like(x), x], dim=-1)  # T_0, T_1
        for _ in range(self.n_doublings):  # T_{m + n} = 2 T_m T_n - T_{m - n}, for n = 1 ... m at once
            last = series.shape[1] - 1
            more = 2.0 * series[:, last:] * series[:, 1:] - series[:, :last].flip(1)
            series = torch.cat([series, more], dim=-1)
        return (series @ self.coefficients).to(edge_lengths.dtype).view(-1, self.n_spherical, self.n_radial)


def legendre(cosines: Tensor, n_spherical: int, order: int = 0) -> Tensor:
    """The part of the real spherical harmonics Y_lm that depends on the polar angle, divided by sin^m of it.

    Normalised such that these times sin^m cos(m phi) have unit square over the sphere; for m = 0 they are the functions
    of DimeNet's basis, sqrt((2l + 1) / 4 pi) P_l(cos). Signs are without the Condon-Shortley phase.

    Args:
        cosines: (T,).
        n_spherical: the degrees are l = m ... n_spherical - 1.
        order: m.

    Returns:
        (T, n_spherical - m), polynomials of the cosine.
    """
    before, now = torch.zeros_like(cosines), torch.ones_like(cosines)  # derivatives of order m of P_{l-1} and P_l
    for k in range(order):
        now = (2 * k + 1) * now
    functions: list[Tensor] = []
    for degree in range(order, n_spherical):
        square = (2 * degree + 1) / (4.0 * math.pi) * math.factorial(degree - order) / math.factorial(degree + order)
        functions.append(math.sqrt(square if order == 0 else 2.0 * square) * now)
        following = ((2 * degree + 1) * cosines * now - (degree + order) * before) / (degree + 1 - order)
        before, now = now, following
    return torch.stack(functions, dim=-1)


def perpendicular_axes(axes: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors (E, 3) that make a right-handed frame with each unit vector in `axes` (E, 3).

    They jump with the axis, as any choice must somewhere: only what does not depend on the choice may be made of them.
    """
    away = torch.zeros_like(axes).scatter(1, axes.abs().argmin(dim=1, keepdim=True), 1.0)
    first = torch.linalg.cross(away, axes)
    first = first / torch.linalg.vector_norm(first, dim=1, keepdim=True)
    return first, torch.linalg.cross(axes, first)


def powers(real: Tensor, imaginary: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Powers 0 ... n - 1 of complex numbers (T,): their real and imaginary parts, (T, n) each."""
    reals, imaginaries = [torch.ones_like(real)], [torch.zeros_like(real)]
    for _ in range(n - 1):
        a, b = reals[-1], imaginaries[-1]
        reals.append(a * real - b * imaginary)
        imaginaries.append(a * imaginary + b * real)
    return torch.stack(reals, dim=-1), torch.stack(imaginaries, dim=-1)
