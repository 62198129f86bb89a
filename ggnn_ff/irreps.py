"""Irreducible representations of rotations: spherical harmonics and their couplings, for the steerable architectures.

Features of degree l have 2l+1 components, one block after the other, l = 0 ... l_max: (l_max+1)^2 components in all, in
dimension 1 of (N, (l_max+1)^2, F). Order and axes are those of e3nn: l = 1 is (x, y, z), and y is the polar axis.

Coefficients are float64 buffers that are cast where they are used, as all constants (see `potential.set_dtype`).
"""

import math
import warnings

import torch
from torch import Tensor, nn

from ggnn_ff.errors import InputError


def clebsch_gordan(l1: int, l2: int, l3: int) -> Tensor:
    """Coefficients that couple real features of degrees l1 and l2 to degree l3; the sum of their squares is 1.

    `einsum("abc,...a,...b->...c", coefficients, x1, x2)` turns with x1 and x2. It is even under inversion of l1, l2, l3
    where l1 + l2 + l3 is even, that is a true tensor where x1 and x2 are.

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
            "building this architecture (gemnet, gotennet, mace, nequip, tfn) must find e3nn, which cannot be imported "
            f"({error}); install `ggnn-ff[train]`, or use an exported `.pt` file, which needs no e3nn"
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
