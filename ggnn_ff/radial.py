"""Functions of the interatomic distance: the basis and the envelope that ends it smoothly at the cutoff."""

import math

import torch
from torch import Tensor, nn


class BesselBasis(nn.Module):
    """Spherical Bessel functions of order zero, as PaiNN takes them from DimeNet (arXiv 2003.03123, equation 7).

    b_n(r) = sin(n pi r / r_c) / r for n = 1 ... B; DimeNet's constant factor sqrt(2 / r_c) is left out.
    """

    frequencies: Tensor

    def __init__(self, n_radial: int, cutoff: float) -> None:
        super().__init__()
        frequencies = torch.arange(1, n_radial + 1, dtype=torch.float64) * (math.pi / cutoff)
        # Rounded also for float64, so that a potential is the same function in both precisions.
        self.register_buffer("frequencies", frequencies.to(torch.float32).to(torch.float64), persistent=False)

    def forward(self, edge_lengths: Tensor) -> Tensor:
        """(E,) angstrom -> (E, B)."""
        r = edge_lengths.unsqueeze(-1)
        return torch.sin(r * self.frequencies.to(r.dtype)) / r


class GaussianBasis(nn.Module):
    """Gaussians centred evenly from zero to the cutoff (SchNet, arXiv 1706.08566, equation 4).

    e_k(r) = exp(-(r - mu_k)^2 / (2 sigma^2)) for k = 1 ... B with mu_1 = 0, mu_B = r_c, and sigma their distance.
    """

    centres: Tensor

    def __init__(self, n_radial: int, cutoff: float) -> None:
        super().__init__()
        centres = torch.linspace(0.0, cutoff, n_radial, dtype=torch.float64)
        # Rounded also for float64, so that a potential is the same function in both precisions.
        self.register_buffer("centres", centres.to(torch.float32).to(torch.float64), persistent=False)
        self.width = float(self.centres[1])

    def forward(self, edge_lengths: Tensor) -> Tensor:
        """(E,) angstrom -> (E, B)."""
        offsets = (edge_lengths.unsqueeze(-1) - self.centres.to(edge_lengths.dtype)) / self.width
        return torch.exp(-0.5 * offsets * offsets)


class ExpNormalBasis(nn.Module):
    """Gaussians in exp(-a r) with a = 5 / r_c, as TorchMD-NET takes them from PhysNet (arXiv 2202.02541, equation 1).

    g_k(r) = exp(-b (exp(-a r) - m_k)^2) with B centres m_k from exp(-5) to 1 and b = (2 (1 - exp(-5)) / B)^-2. The
    published formula has a = 1 / angstrom, whatever the cutoff; it is the same at 5 angstrom.
    """

    centres: Tensor

    def __init__(self, n_radial: int, cutoff: float) -> None:
        super().__init__()
        self.decay = 5.0 / cutoff
        self.sharpness = (2.0 * (1.0 - math.exp(-5.0)) / n_radial) ** -2
        centres = torch.linspace(math.exp(-5.0), 1.0, n_radial, dtype=torch.float64)
        self.register_buffer("centres", centres.to(torch.float32).to(torch.float64), persistent=False)

    def forward(self, edge_lengths: Tensor) -> Tensor:
        """(E,) angstrom -> (E, B)."""
        x = torch.exp(-self.decay * edge_lengths).unsqueeze(-1)
        return torch.exp(-self.sharpness * (x - self.centres.to(x.dtype)) ** 2)


class PolynomialEnvelope(nn.Module):
    """One at zero, zero at the cutoff with two zero derivatives there (DimeNet, arXiv 2003.03123, equation 8).

    u(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) with x = r / r_c, so that the energy, the
    forces and the force constants are continuous when an atom crosses the cutoff.
    """

    def __init__(self, cutoff: float, exponent: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.exponent = exponent

    def forward(self, edge_lengths: Tensor) -> Tensor:
        """(E,) angstrom -> (E,); exactly zero at and beyond the cutoff."""
        p = float(self.exponent)
        x = edge_lengths / self.cutoff
        inside = 1.0 + x**p * (-0.5 * (p + 1.0) * (p + 2.0) + x * (p * (p + 2.0) - x * (0.5 * p * (p + 1.0))))
        return torch.where(x < 1.0, inside, torch.zeros_like(inside))
