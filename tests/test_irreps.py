"""Spherical harmonics and couplings: those of e3nn, and equivariant to the last digit."""

import sys
import warnings

import pytest
import torch

from ggnn_ff.errors import InputError
from ggnn_ff.irreps import SphericalHarmonics, clebsch_gordan

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from e3nn import o3

L_MAX = 5


def vectors(n: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    axes = torch.eye(3, dtype=torch.float64)
    return torch.cat([torch.randn(n, 3, generator=generator, dtype=torch.float64), axes, -axes])


def turn(l_max: int, *, mirror: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """A rotation (and inversion) of vectors, and of features of degrees 0 to l_max; both act from the right."""
    torch.manual_seed(1)
    rotation = o3.rand_matrix(dtype=torch.float64)
    irreps = o3.Irreps.spherical_harmonics(l_max)
    matrix = -rotation if mirror else rotation
    representation = torch.block_diag(
        *(o3.wigner_D(ir.l, *o3.matrix_to_angles(rotation)) * (ir.p if mirror else 1) for _, ir in irreps)
    )
    return matrix.T, representation.T


@pytest.fixture(autouse=True)
def float64():
    """The oracle computes in the default type; ours never looks at it."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("l_max", range(L_MAX + 1))
def test_harmonics_are_those_of_e3nn(l_max):
    ours = SphericalHarmonics(l_max)(vectors())
    theirs = o3.spherical_harmonics(list(range(l_max + 1)), vectors(), normalize=True, normalization="component")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_harmonics_are_normalised_to_their_number_of_components():
    harmonics = SphericalHarmonics(L_MAX)(vectors())
    for degree, part in enumerate(harmonics.split([2 * degree + 1 for degree in range(L_MAX + 1)], dim=1)):
        torch.testing.assert_close(part.square().sum(1), torch.full((len(part),), 2.0 * degree + 1), rtol=1e-13, atol=0)


@pytest.mark.parametrize("mirror", [False, True])
def test_harmonics_are_equivariant(mirror):
    matrix, representation = turn(L_MAX, mirror=mirror)
    harmonics = SphericalHarmonics(L_MAX)
    torch.testing.assert_close(harmonics(vectors() @ matrix), harmonics(vectors()) @ representation, rtol=0, atol=1e-13)


def test_harmonics_of_no_edges():
    assert SphericalHarmonics(3)(torch.zeros(0, 3)).shape == (0, 16)


def test_harmonics_scripted_and_in_float32():
    module = SphericalHarmonics(4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        scripted = torch.jit.script(module)
    torch.testing.assert_close(scripted(vectors()), module(vectors()), rtol=0, atol=1e-14)
    rounded = module(vectors().float())
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), module(vectors()), rtol=0, atol=1e-5)


def test_harmonics_have_second_derivatives():
    harmonics = SphericalHarmonics(4)
    assert torch.autograd.gradgradcheck(lambda v: harmonics(v)[:, 1:], vectors(4).requires_grad_(True))


@pytest.mark.parametrize(("l1", "l2", "l3"), [(1, 1, 1), (1, 1, 2), (2, 3, 1), (3, 3, 4)])
def test_couplings_are_equivariant_and_normalised(l1, l2, l3):
    coefficients = clebsch_gordan(l1, l2, l3)
    assert coefficients.dtype == torch.float64
    torch.testing.assert_close(coefficients.square().sum(), torch.tensor(1.0), rtol=1e-14, atol=0)
    angles = o3.rand_angles()
    turned = torch.einsum("abc,ai,bj,ck->ijk", coefficients, *(o3.wigner_D(degree, *angles) for degree in (l1, l2, l3)))
    torch.testing.assert_close(turned, coefficients, rtol=0, atol=1e-14)


def test_couplings_without_e3nn_are_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "e3nn.o3", None)
    with pytest.raises(InputError, match=r"install `ggnn-ff\[train\]`"):
        clebsch_gordan(1, 1, 2)
