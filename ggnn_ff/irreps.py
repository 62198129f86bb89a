"""Irreducible representations of rotations: spherical harmonics and their couplings, for the steerable architectures.

Features of degree l have 2l+1 components: (N, 2l+1, F), in a list of degrees 0 ... l_max. Order and axes are those of
e3nn: l = 1 is (x, y, z), and y is the polar axis. All are true tensors: their parity is (-1)^l, as the harmonics'.

Coefficients are float64 buffers that are cast where they are used, as all constants (see `potential.set_dtype`).
"""

import itertools
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ggnn_ff.errors import InputError

RMS_OF_SILU = 0.5964692111226098  # of a normal distribution
RMS_OF_BESSEL = 0.4  # of `BesselBasis` times its envelope, at usual distances


def clebsch_gordan(l1: int, l2: int, l3: int) -> Tensor:
    """Coefficients that couple real features of degrees l1 and l2 to degree l3; the sum of their squares is 1.

    `einsum("abc,...a,...b->...c", coefficients, x1, x2)` turns with x1 and x2. Where l1 + l2 + l3 is even, two true
    tensors make a true tensor; where it is odd, a pseudotensor.

    Returns:
        (2 l1 + 1, 2 l2 + 1, 2 l3 + 1), float64; e3nn's `wigner_3j`.

    Raises:
        InputError: e3nn is not installed.
    """
    try:
        with warnings.catch_warnings():
            # e3nn makes TorchScript, which torch deprecates, when it is imported
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            from e3nn.o3 import wigner_3j
    except ImportError as error:
        raise InputError(
            "training or compiling this architecture (gemnet, gotennet, mace, nequip, tfn) must find e3nn, which "
            f"cannot be imported ({error}); install `ggnn-ff[train]`. Exported `.pt` files run without it, uncompiled"
        ) from error
    return wigner_3j(l1, l2, l3, dtype=torch.float64, device="cpu")


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics of directions, degrees 0 to l_max, as polynomials of the direction.

    Of each degree the squares sum to 2l+1 ("component" normalisation). Degree l comes from degree l-1 and the direction
    by one product and one matrix product: Y_l = c_l (Y_{l-1} x Y_1)_l.
    """

    def __init__(self, l_max: int) -> None:
        super().__init__()
        self.l_max = l_max
        raises = []
        pole = torch.tensor([0.0, math.sqrt(3.0), 0.0], dtype=torch.float64)  # Y_1 where m = 0 alone is non-zero
        for degree in range(2, l_max + 1):
            coupling = clebsch_gordan(degree - 1, 1, degree)
            pole = torch.einsum("abc,a,b->c", coupling, pole, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
            factor = math.sqrt(2 * degree + 1) / float(pole[degree])
            raises.append(RaiseDegree(coupling * factor))
            pole = pole * factor
        self.raises = nn.ModuleList(raises)

    def forward(self, edge_vectors: Tensor) -> Tensor:
        """(E, 3), of any length but zero -> (E, (l_max+1)^2)."""
        directions = edge_vectors / torch.linalg.vector_norm(edge_vectors, dim=-1, keepdim=True)
        harmonics = [torch.ones_like(directions[:, :1])]
        if self.l_max > 0:
            harmonics.append(directions * math.sqrt(3.0))
        for step in self.raises:
            harmonics.append(step(harmonics[-1], directions))  # (E, 2l+1)
        return torch.cat(harmonics, dim=1)


class RaiseDegree(nn.Module):
    """Spherical harmonics of one degree from those of the degree below."""

    coupling: Tensor

    def __init__(self, coupling: Tensor) -> None:
        super().__init__()
        self.register_buffer("coupling", coupling.flatten(0, 1), persistent=False)  # (3 (2l-1), 2l+1)

    def forward(self, below: Tensor, directions: Tensor) -> Tensor:
        """(E, 2l-1) and (E, 3) -> (E, 2l+1)."""
        products = (below.unsqueeze(2) * directions.unsqueeze(1)).flatten(1)  # (E, 3 (2l-1))
        return products @ self.coupling.to(products.dtype)


class DegreeLinear(nn.Module):
    """Mixes features of equal degree, each degree with a matrix of its own ("self-interaction")."""

    def __init__(self, n_in: Sequence[int], n_out: Sequence[int]) -> None:
        super().__init__()
        linears = [nn.Linear(a, b, bias=False) for a, b in zip(n_in, n_out, strict=True)]
        for linear in linears:
            nn.init.normal_(linear.weight, std=1.0 / math.sqrt(linear.in_features))  # keeps the variance
        self.degrees = nn.ModuleList(linears)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """(N, 2l+1, n_in[l]) -> (N, 2l+1, n_out[l]) for each degree l."""
        mixed: list[Tensor] = []
        for degree, linear in enumerate(self.degrees):
            x = features[degree]
            rows = linear(x.reshape(-1, x.shape[2]))  # one product of matrices, not one for each atom
            mixed.append(rows.view(x.shape[0], x.shape[1], -1))
        return mixed


class TensorProductConvolution(nn.Module):
    """Couples features of the neighbours with spherical harmonics, and sums over the neighbours.

    A_i[p] = sum_j w_ij[p] (x_j[l1] x Y_ij[l2])_l3 for each path p = (l1, l2, l3) with even l1 + l2 + l3, and each
    feature; a product has the variance of its factors in each component.

    Few large operations: for each l1 the harmonics become one matrix per edge, from the components of x to those of
    all paths. Weights are ordered by l1, then l3, then l2.

    Attributes:
        n_paths: number of weights, for each feature.
        n_paths_to: number of paths that end in each degree l3.
    """

    def __init__(self, l_in: int, l_edge: int, l_out: int) -> None:
        super().__init__()
        if l_edge < max(l_in, l_out):
            raise InputError(f"`l_edge` must be at least `l_in` and `l_out`, got {l_edge}, {l_in} and {l_out}")
        couplings = [HarmonicsToMatrices(degree, l_edge, l_out) for degree in range(l_in + 1)]
        self.n_paths_from = [sum(coupling.n_paths_to) for coupling in couplings]
        self.n_paths_to = [sum(numbers) for numbers in zip(*(c.n_paths_to for c in couplings), strict=True)]
        self.n_paths = sum(self.n_paths_from)
        self.couplings = nn.ModuleList(couplings)
        self.n_rows = [number * (2 * degree + 1) for degree, number in enumerate(self.n_paths_to)]

    def forward(self, features: list[Tensor], harmonics: Tensor, weights: Tensor, edge_index: Tensor) -> list[Tensor]:
        """The sum over neighbours, each path as features of its own.

        Args:
            features: for each degree up to l_in, (N, 2l+1, F).
            harmonics: (E, (l_edge+1)^2).
            weights: (E, n_paths * F).
            edge_index: (2, E).

        Returns:
            For each degree up to l_out, (N, 2l+1, n_paths_to[l] * F).
        """
        centre, neighbour = edge_index[0], edge_index[1]
        n_atoms, _, n_features = features[0].shape
        weights_from = weights.view(-1, self.n_paths, n_features).split(self.n_paths_from, dim=1)
        products: list[list[Tensor]] = []
        for degree, coupling in enumerate(self.couplings):
            products.append(coupling(features[degree][neighbour], harmonics, weights_from[degree]))
        messages: list[Tensor] = []
        for degree in range(len(self.n_paths_to)):
            for product in products:
                messages.append(product[degree])
        message = torch.cat(messages, dim=1)  # (E, rows, F), sorted by l3, then l1, then l2
        total = message.new_zeros((n_atoms, message.shape[1], n_features)).index_add(0, centre, message)
        sums: list[Tensor] = []
        for degree, rows in enumerate(total.split(self.n_rows, dim=1)):
            paths = rows.reshape(n_atoms, self.n_paths_to[degree], 2 * degree + 1, n_features)
            sums.append(paths.transpose(1, 2).reshape(n_atoms, 2 * degree + 1, self.n_paths_to[degree] * n_features))
        return sums


class HarmonicsToMatrices(nn.Module):
    """All paths of `TensorProductConvolution` that start from features of one degree l1."""

    coupling: Tensor

    def __init__(self, l_in: int, l_edge: int, l_out: int) -> None:
        super().__init__()
        self.n_components = 2 * l_in + 1
        self.n_paths_to: list[int] = []
        blocks = []
        for degree in range(l_out + 1):
            edge_degrees = range(abs(l_in - degree), min(l_in + degree, l_edge) + 1, 2)
            self.n_paths_to.append(len(edge_degrees))
            for edge_degree in edge_degrees:
                block = torch.zeros((l_edge + 1) ** 2, 2 * degree + 1, self.n_components, dtype=torch.float64)
                used = slice(edge_degree**2, (edge_degree + 1) ** 2)
                block[used] = clebsch_gordan(l_in, edge_degree, degree).permute(1, 2, 0) * math.sqrt(2 * degree + 1)
                blocks.append(block)
        rows = torch.cat(blocks, dim=1)  # (harmonics, rows, 2 l1 + 1)
        self.n_rows = [number * (2 * degree + 1) for degree, number in enumerate(self.n_paths_to)]
        self.register_buffer("coupling", rows.flatten(1), persistent=False)

    def forward(self, features: Tensor, harmonics: Tensor, weights: Tensor) -> list[Tensor]:
        """Features (E, 2 l1 + 1, F), weights (E, paths, F) -> for each degree l3, (E, paths to it * (2 l3 + 1), F)."""
        matrices = (harmonics @ self.coupling.to(harmonics.dtype)).view(-1, sum(self.n_rows), self.n_components)
        products = torch.bmm(matrices, features).split(self.n_rows, dim=1)  # (E, rows, F) in all
        weights_to = weights.split(self.n_paths_to, dim=1)
        weighted: list[Tensor] = []
        for degree, number in enumerate(self.n_paths_to):
            product = products[degree].unflatten(1, (number, 2 * degree + 1))  # (E, paths, 2 l3 + 1, F)
            weighted.append((product * weights_to[degree].unsqueeze(2)).flatten(1, 2))
        return weighted


class RadialWeights(nn.Module):
    """A multilayer perceptron without biases on radial functions: where they vanish smoothly, so do the weights.

    Its first weights are such that at usual distances (1 to 4 angstrom, where Bessel functions times their envelope are
    about 0.4) what comes out is of order one: otherwise each layer of a network begins with smaller features of
    degrees above 0, and the neighbours' are not heard.
    """

    def __init__(self, n_radial: int, width: int, n_out: int) -> None:
        super().__init__()
        sizes = [n_radial, width, width, n_out]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            linear = nn.Linear(a, b, bias=False)
            gain = 1.0 / RMS_OF_SILU if layers else 1.0 / RMS_OF_BESSEL
            nn.init.normal_(linear.weight, std=gain / math.sqrt(a))
            layers += [linear, nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, radial: Tensor) -> Tensor:
        """(E, B) -> (E, n_out)."""
        return self.layers(radial)
