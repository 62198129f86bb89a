"""Triplets against brute force, functions of angles against scipy, also their derivatives."""

import numpy as np
import pytest
import torch
from ase import Atoms
from model_checks import CUTOFF, ethanol, oxide, stack
from scipy.special import eval_legendre, spherical_jn
from torch import Tensor

from ggnn_ff.angular import (
    SphericalBesselBasis,
    bessel_zeros,
    legendre,
    perpendicular_axes,
    powers,
    reverse_edges,
    triplets,
)
from ggnn_ff.graph import edge_vectors
from ggnn_ff.neighbors import neighbor_list

STRUCTURES = {
    "molecule": (ethanol(),),
    "crystal": (oxide(),),  # atoms see their own images, and several images of one neighbour
    "one atom of a chain": (Atoms("C", cell=[2.0, 1.0, 1.0], pbc=[True, False, False]),),
    "batch": (ethanol(), Atoms("H"), oxide(), Atoms("HO", positions=[[0, 0, 0], [9, 0, 0]]), ethanol()),
    "no edges": (Atoms("H"),),
}


@pytest.fixture(params=STRUCTURES.values(), ids=STRUCTURES)
def edges(request) -> tuple[Tensor, Tensor, int]:
    structure = stack(*request.param)
    edge_index, shifts = neighbor_list(structure, CUTOFF)
    vectors = edge_vectors(structure.positions, structure.cell, edge_index, shifts, structure.batch)
    return edge_index, vectors, len(structure.numbers)


def is_way_back(edge_index: Tensor, vectors: Tensor, e: int, f: int) -> bool:
    return bool(edge_index[0, e] == edge_index[1, f] and (vectors[e] + vectors[f]).norm() < 1e-8)


@pytest.mark.parametrize("scripted", [False, True], ids=["eager", "scripted"])
def test_triplets(edges, scripted):
    edge_index, vectors, n_atoms = edges
    expected = [
        (e, int(f))
        for e in range(edge_index.shape[1])
        for f in torch.nonzero(edge_index[0] == edge_index[1, e])
        if not is_way_back(edge_index, vectors, e, int(f))
    ]
    function = torch.jit.script(triplets) if scripted else triplets
    ji, kj = function(edge_index, vectors, n_atoms)
    assert ji.dtype == kj.dtype == torch.int64
    assert list(zip(ji.tolist(), kj.tolist(), strict=True)) == expected
    n_neighbours = torch.bincount(edge_index[0], minlength=n_atoms)
    assert len(ji) == int((n_neighbours * (n_neighbours - 1)).sum())


def test_reverse_edges(edges):
    edge_index, vectors, n_atoms = edges
    reverse = reverse_edges(edge_index, vectors, n_atoms)
    assert torch.equal(edge_index[:, reverse], edge_index.flip(0))
    assert torch.allclose(vectors[reverse], -vectors, atol=1e-12)
    assert torch.equal(reverse[reverse], torch.arange(len(reverse)))


def test_reverse_edges_of_rounded_vectors():
    structure = stack(oxide())
    edge_index, shifts = neighbor_list(structure, CUTOFF)
    vectors = edge_vectors(structure.positions + 1e3, structure.cell, edge_index, shifts, structure.batch)
    noise = 1e-4 * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    exact = reverse_edges(edge_index, vectors, 6)
    assert torch.equal(reverse_edges(edge_index, vectors.to(torch.float32) + noise, 6), exact)


def test_bessel_zeros():
    zeros = bessel_zeros(7, 6)
    assert zeros.shape == (7, 6)
    orders = np.arange(7).reshape(-1, 1)
    np.testing.assert_allclose(spherical_jn(orders, zeros), 0.0, atol=1e-14)
    grid = np.linspace(1e-3, zeros.max() + 1e-3, 20_001)
    for order in range(7):  # none is left out
        signs = np.sign(spherical_jn(order, grid[grid < zeros[order, -1] + 1e-2]))
        assert (signs[1:] != signs[:-1]).sum() == 6


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("n_spherical", "n_radial"), [(1, 1), (7, 6), (4, 12)])
def test_spherical_bessel_basis(n_spherical, n_radial, dtype, limit):
    """Values and first derivatives, in units of their largest, from almost zero to the cutoff."""
    r = torch.linspace(0.01, 5.0, 500).to(dtype).requires_grad_(True)
    values = SphericalBesselBasis(n_spherical, n_radial, 5.0)(r)
    assert values.shape == (500, n_spherical, n_radial)
    assert values.dtype == dtype
    orders, zeros = np.arange(n_spherical).reshape(-1, 1), bessel_zeros(n_spherical, n_radial)
    normalisation = np.sqrt(2.0) / np.abs(spherical_jn(orders + 1, zeros))
    x = zeros * r.detach().double().numpy().reshape(-1, 1, 1) / 5.0
    expected = normalisation * spherical_jn(orders, x)
    slopes = normalisation * spherical_jn(orders, x, derivative=True) * zeros / 5.0
    for function in np.ndindex(n_spherical, n_radial):
        (slope,) = torch.autograd.grad(values[:, *function].sum(), r, retain_graph=True)
        for actual, reference in ((values[:, *function].detach(), expected), (slope, slopes)):
            error = np.abs(actual.double().numpy() - reference[:, *function]).max()
            assert error < 10 * limit * np.abs(reference[:, *function]).max()


def test_spherical_bessel_basis_is_orthonormal():
    """With the weight r^2 of a volume, in units of the cutoff."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    x = torch.from_numpy(0.5 * (nodes + 1.0))
    values = SphericalBesselBasis(4, 5, 3.0)(3.0 * x)
    overlap = torch.einsum("q,qln,qlm->lnm", x.square() * torch.from_numpy(0.5 * weights), values, values)
    assert torch.allclose(overlap, torch.eye(5, dtype=torch.float64).expand(4, 5, 5), atol=1e-12)


def test_spherical_bessel_basis_second_derivatives():
    r = torch.tensor([0.05, 1.0, 4.999], dtype=torch.float64, requires_grad=True)
    basis = SphericalBesselBasis(5, 4, 5.0)
    assert torch.autograd.gradcheck(basis, r)
    assert torch.autograd.gradgradcheck(basis, r)
    assert torch.equal(torch.jit.script(basis)(r), basis(r))


def test_legendre():
    cosines = torch.linspace(-1.0, 1.0, 41, dtype=torch.float64)
    values = torch.jit.script(legendre)(cosines, 7)
    for order in range(7):
        expected = np.sqrt((2 * order + 1) / (4 * np.pi)) * eval_legendre(order, cosines.numpy())
        np.testing.assert_allclose(values[:, order].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("order", range(6))
def test_legendre_of_higher_order_is_orthonormal_on_the_sphere(order):
    nodes, weights = np.polynomial.legendre.leggauss(20)
    values = torch.jit.script(legendre)(torch.from_numpy(nodes), 6, order)
    assert values.shape == (20, 6 - order)
    assert (values[-1] > 0).all()  # no sign alternates, cos = 1 being near
    integral_over_phi = 2.0 * np.pi if order == 0 else np.pi  # of cos^2(m phi)
    weights = torch.from_numpy(weights * (1.0 - nodes**2) ** order * integral_over_phi)
    overlap = torch.einsum("q,ql,qk->lk", weights, values, values)
    assert torch.allclose(overlap, torch.eye(6 - order, dtype=torch.float64), atol=1e-12)


def test_perpendicular_axes():
    axes = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    axes = torch.cat([axes, torch.eye(3), -torch.eye(3), torch.ones(1, 3)]).requires_grad_(True)
    axes = axes / axes.norm(dim=1, keepdim=True)
    frames = torch.stack([axes, *torch.jit.script(perpendicular_axes)(axes)], dim=1)
    unit = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(frames @ frames.transpose(1, 2), unit.expand(len(axes), 3, 3), atol=1e-14)
    assert torch.allclose(torch.linalg.det(frames), torch.ones(len(axes), dtype=torch.float64))
    weights = torch.randn(frames.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((frames * weights).sum(), axes)
    assert gradient.abs().max() < 20


def test_powers():
    numbers = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    numbers[0] = 0.0
    real, imaginary = torch.jit.script(powers)(numbers.real, numbers.imag, 5)
    expected = torch.from_numpy(numbers.numpy()[:, None] ** np.arange(5))
    assert torch.allclose(torch.complex(real, imaginary), expected, atol=1e-13)


def test_basis_stays_finite_beyond_the_cutoff():
    """Where compiled training has edges that an envelope takes away."""
    basis = SphericalBesselBasis(5, 4, 5.0)
    r = torch.tensor([5.0, 21.0, 1000.0], dtype=torch.float64, requires_grad=True)
    values = basis(r)
    assert torch.equal(values[1:], values[:1].expand_as(values[1:]))
    assert torch.autograd.grad(values.sum(), r)[0].isfinite().all()
