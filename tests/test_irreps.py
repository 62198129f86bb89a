"""Spherical harmonics and couplings: those of e3nn, and equivariant to the last digit."""

import sys
import warnings

import pytest
import torch

from ggnn_ff.errors import InputError
from ggnn_ff.irreps import DegreeLinear, RadialWeights, SphericalHarmonics, TensorProductConvolution, clebsch_gordan
from ggnn_ff.potential import set_dtype

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


# --- convolution --------------------------------------------------------------------------------------------------

N_ATOMS, N_FEATURES = 5, 3
EDGES = torch.tensor([[0, 0, 1, 1, 2, 3, 3, 4], [1, 2, 0, 0, 0, 3, 4, 3]])


def random_features(l_max: int, n_features: int = N_FEATURES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = [(N_ATOMS, 2 * degree + 1, n_features) for degree in range(l_max + 1)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def by_e3nn(
    features: list[torch.Tensor], harmonics: torch.Tensor, weights: torch.Tensor, l_edge: int, l_out: int
) -> list[torch.Tensor]:
    """The same convolution with e3nn's tensor product, path by path."""
    paths = [
        (l1, l2, l3)
        for l1 in range(len(features))
        for l3 in range(l_out + 1)
        for l2 in range(l_edge + 1)
        if abs(l1 - l3) <= l2 <= l1 + l3 and (l1 + l2 + l3) % 2 == 0
    ]
    weights = weights.view(len(weights), len(paths), N_FEATURES)
    sums: list[list[torch.Tensor]] = [[] for _ in range(l_out + 1)]
    for index, (l1, l2, l3) in enumerate(paths):
        irreps = [f"{n}x{degree}{'eo'[degree % 2]}" for n, degree in ((N_FEATURES, l1), (1, l2), (N_FEATURES, l3))]
        product = o3.TensorProduct(*irreps, [(0, 0, 0, "uvu", True)], shared_weights=False, internal_weights=False)
        x = features[l1].transpose(1, 2).flatten(1)[EDGES[1]]  # e3nn keeps components last
        message = product(x, harmonics[:, l2**2 : (l2 + 1) ** 2], weights[:, index])
        total = torch.zeros(N_ATOMS, message.shape[1]).index_add(0, EDGES[0], message)
        sums[l3].append(total.view(N_ATOMS, N_FEATURES, 2 * l3 + 1).transpose(1, 2))
    return [torch.cat(parts, dim=2) for parts in sums]


@pytest.mark.parametrize(("l_in", "l_edge", "l_out"), [(0, 2, 2), (2, 2, 2), (3, 3, 0), (1, 3, 3), (0, 0, 0)])
def test_convolution_is_the_tensor_product_of_e3nn(l_in, l_edge, l_out):
    convolution = TensorProductConvolution(l_in, l_edge, l_out)
    features, harmonics = random_features(l_in), SphericalHarmonics(l_edge)(vectors(len(EDGES[0]))[: len(EDGES[0])])
    weights = torch.randn(len(harmonics), convolution.n_paths * N_FEATURES)
    expected = by_e3nn(features, harmonics, weights, l_edge, l_out)
    for one, other in zip(convolution(features, harmonics, weights, EDGES), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("mirror", [False, True])
def test_convolution_is_equivariant_also_after_conversion_from_float32(mirror):
    l_max = 3
    convolution, harmonics = TensorProductConvolution(l_max, l_max, l_max), SphericalHarmonics(l_max)
    radial = RadialWeights(1, 4, convolution.n_paths * N_FEATURES)
    mix = DegreeLinear([n * N_FEATURES for n in convolution.n_paths_to], [2] * (l_max + 1))
    module = torch.nn.ModuleList([convolution, harmonics, radial, mix])
    set_dtype(module, torch.float32)
    set_dtype(module, torch.float64)
    matrix, representation = turn(l_max, mirror=mirror)
    parts = [
        representation[degree**2 : (degree + 1) ** 2, degree**2 : (degree + 1) ** 2] for degree in range(l_max + 1)
    ]

    def convolve(features: list[torch.Tensor], edge_vectors: torch.Tensor) -> list[torch.Tensor]:
        weights = radial(edge_vectors.norm(dim=1, keepdim=True))
        return mix(convolution(features, harmonics(edge_vectors), weights, EDGES))

    features, edge_vectors = random_features(l_max), vectors()[: len(EDGES[0])]
    turned = [torch.einsum("ncf,cd->ndf", x, part) for x, part in zip(features, parts, strict=True)]
    before, after = convolve(features, edge_vectors), convolve(turned, edge_vectors @ matrix)
    for one, other, part in zip(after, before, parts, strict=True):
        torch.testing.assert_close(one, torch.einsum("ncf,cd->ndf", other, part), rtol=0, atol=1e-12)


def test_convolution_keeps_the_variance():
    torch.manual_seed(3)
    n, n_features, l_max = 3000, 8, 2
    convolution = TensorProductConvolution(l_max, l_max, l_max)
    edges = torch.arange(n).repeat(2, 1)
    features = [torch.randn(n, 2 * degree + 1, n_features) for degree in range(l_max + 1)]
    harmonics = SphericalHarmonics(l_max)(torch.randn(n, 3))
    out = convolution(features, harmonics, torch.ones(n, convolution.n_paths * n_features), edges)
    for x in out:
        assert float(x.square().mean()) == pytest.approx(1.0, abs=0.1)


def test_convolution_refuses_harmonics_of_too_low_degree():
    with pytest.raises(InputError, match="`l_edge` must be at least"):
        TensorProductConvolution(2, 1, 2)
