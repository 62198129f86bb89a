"""MACE's many-body messages are the textbook's, and turn with the molecule."""

import itertools
import math

import model_checks
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.spatial.transform import Rotation
from torch import Tensor

from ggnn_ff.export import evaluate
from ggnn_ff.forces import EnergyForces
from ggnn_ff.irreps import SphericalHarmonics, clebsch_gordan
from ggnn_ff.models.mace import Layer, MACEHyperparameters, SymmetricContraction, symmetric_basis
from ggnn_ff.potential import Potential

L_MAX = 3
COMPONENTS = (L_MAX + 1) ** 2


def couplings(l_out: int, order: int) -> Tensor:
    """The textbook's generalised Clebsch-Gordan tensors: each tree of couplings of `order` factors of all degrees.

    (2 l_out + 1, 16, ..., 16, paths) without a change of parity, not symmetric and not independent.
    """
    degrees = range(L_MAX + 1)
    unit = torch.eye(COMPONENTS, dtype=torch.float64)
    trees = [(degree, degree, unit[degree**2 : (degree + 1) ** 2]) for degree in degrees]  # parity, degree, tensor
    for _ in range(order - 1):
        longer = []
        for (parity, before, tensor), degree in itertools.product(trees, degrees):
            for after in range(abs(before - degree), before + degree + 1):
                coupled = torch.zeros(2 * after + 1, *[COMPONENTS] * tensor.ndim, dtype=torch.float64)
                coefficients = clebsch_gordan(before, degree, after)
                coupled[..., degree**2 : (degree + 1) ** 2] = torch.einsum("abc,a...->c...b", coefficients, tensor)
                longer.append((parity + degree, after, coupled))
        trees = longer
    return torch.stack([t for parity, degree, t in trees if degree == l_out and (parity + l_out) % 2 == 0], dim=-1)


def textbook(a: Tensor, l_out: int) -> Tensor:
    """Equation 10, sum over components of U A ... A for all orders and paths; (16, N) -> (N, 2L+1, paths)."""
    values = []
    for order in (1, 2, 3):
        letters = "ijk"[:order]
        operands = ",".join(f"{letter}n" for letter in letters)
        values.append(torch.einsum(f"m{letters}p,{operands}->nmp", couplings(l_out, order), *[a] * order))
    return torch.cat(values, dim=-1)


@pytest.mark.parametrize("l_out", [0, 1])
def test_contraction_equals_the_textbook(l_out):
    """The textbook's couplings depend on each other; both span the same, and weights can be put into either form."""
    generator = torch.Generator().manual_seed(0)
    n_paths, n_elements = symmetric_basis(L_MAX, l_out, 3)[1].shape[1], 2
    contraction = SymmetricContraction(n_paths, n_elements, L_MAX, l_out, 3).double()
    a = torch.randn(COMPONENTS, 120, generator=generator, dtype=torch.float64)
    features = a.T.unsqueeze(-1).expand(-1, -1, n_paths)
    elements = torch.arange(120) % n_elements
    weight = contraction.weight.detach().clone()
    with torch.no_grad():
        message = contraction(features, elements)  # (N, 2L+1, F)
        contraction.weight.copy_(torch.eye(n_paths))
        ours, theirs = contraction(features, elements), textbook(a, l_out)  # (N, 2L+1, paths)
    assert theirs.shape[2] > ours.shape[2]
    fitted, fresh = slice(0, 100), slice(100, 120)
    for one, other in ((ours, theirs), (theirs, ours)):
        solution = torch.linalg.lstsq(one[fitted].flatten(0, 1), other[fitted].flatten(0, 1), driver="gelsd").solution
        model_checks.assert_close(one[fresh] @ solution, other[fresh], 1e-9)
    expected = torch.einsum("nmp,pq,nqf->nmf", theirs[fresh], solution, weight[elements[fresh]])
    model_checks.assert_close(message[fresh], expected, 1e-9)


def character(angle: Tensor, inverted: bool) -> Tensor:
    """Trace of a rotation by `angle`, with inversion or without, over degrees 0 ... L_MAX of parity (-1)^l."""
    return sum(of_degree(degree, angle, inverted) for degree in range(L_MAX + 1))


def of_degree(degree: int, angle: Tensor, inverted: bool) -> Tensor:
    """The same of one degree."""
    sign = (-1) ** degree if inverted else 1
    return sign * sum(torch.cos(m * angle) for m in range(-degree, degree + 1))


def count(l_out: int, order: int) -> int:
    """How often degree `l_out` occurs in the symmetric power of degrees 0 ... L_MAX, by characters of O(3)."""
    n = 64  # exact for these trigonometric polynomials
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    total = 0.0
    for inverted in (False, True):
        chi = [character(k * angle, inverted and k % 2 == 1) for k in (1, 2, 3)]  # of g, g^2, g^3
        power = {1: chi[0], 2: (chi[0] ** 2 + chi[1]) / 2, 3: (chi[0] ** 3 + 3 * chi[0] * chi[1] + 2 * chi[2]) / 6}[
            order
        ]
        total += float((power * of_degree(l_out, angle, inverted) * (1 - torch.cos(angle))).mean()) / 2
    assert abs(total - round(total)) < 1e-9
    return round(total)


@pytest.mark.parametrize("l_out", [0, 1, 2, 3])
def test_basis_has_as_many_elements_as_group_theory_says(l_out):
    _, coefficients, orders = symmetric_basis(L_MAX, l_out, 3)
    assert [orders.count(order) for order in (1, 2, 3)] == [count(l_out, order) for order in (1, 2, 3)]
    assert coefficients.shape[1] == len(orders)
    assert [count(0, order) for order in (1, 2, 3)] == [1, 4, 8]


def test_basis_is_the_one_that_weights_on_disk_were_made_with():
    """Order, sign or scale of one element changed would show."""
    expected = {0: -0.219037868540348, 1: 2.346454661833599, 2: -1.814005777939615}
    for l_out, value in expected.items():
        monomials, coefficients, _ = symmetric_basis(L_MAX, l_out, 3)
        numbers = torch.arange(coefficients.numel(), dtype=torch.float64).view_as(coefficients)
        places = (monomials * torch.tensor([1, 17, 289]).view(3, 1, 1)).sum(dim=0).unsqueeze(1)  # (2L+1, 1, K)
        fingerprint = float((coefficients * torch.cos(numbers + places)).sum())
        assert fingerprint == pytest.approx(value, abs=1e-9)


def representation(matrix: Tensor, l_max: int) -> Tensor:
    """What spherical harmonics are multiplied with when directions are, from random directions."""
    directions = torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    harmonics = SphericalHarmonics(l_max)
    return torch.linalg.lstsq(harmonics(directions), harmonics(directions @ matrix.T)).solution.T


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_features_of_all_degrees_turn_with_the_edges(mirror):
    generator = torch.Generator().manual_seed(2)
    hyperparameters = MACEHyperparameters(n_features=8, l_hidden=2, n_neighbors=4.0)
    torch.manual_seed(0)
    layer = Layer(hyperparameters, n_elements=2, l_in=2, l_out=2).double()
    elements = torch.tensor([0, 1, 0, 1])
    edge_index = torch.tensor([(i, j) for i in range(4) for j in range(4) if i != j]).T
    vectors = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    basis = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    features = torch.randn(4, 9, 8, generator=generator, dtype=torch.float64)
    matrix = mirror * torch.from_numpy(Rotation.random(random_state=7).as_matrix())
    harmonics, degrees = SphericalHarmonics(L_MAX), [1, 3, 5]

    def outputs(vectors: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        inputs = list(features.split(degrees, dim=1))
        a = layer.interaction(inputs, harmonics(vectors), basis, edge_index)
        return a, torch.cat(layer(inputs, elements, harmonics(vectors), basis, edge_index), dim=1)

    with torch.no_grad():
        before = outputs(vectors, features)
        after = outputs(vectors @ matrix.T, representation(matrix, 2) @ features)
    for one, other, l_max in zip(after, before, (L_MAX, 2), strict=True):
        assert float(other.abs().max()) > 0.1
        model_checks.assert_close(one, representation(matrix, l_max) @ other, 1e-9)


@pytest.mark.parametrize(
    "options", [{"n_layers": 1}, {"n_layers": 3}, {"correlation": 1}, {"correlation": 2, "l_max": 2, "l_hidden": 2}]
)
def test_other_sizes(options):
    """Invariant, the gradient of their energy, and TorchScript as eager."""
    torch.manual_seed(0)
    hyperparameters = MACEHyperparameters(**{"n_features": 8, "n_neighbors": 4.0} | options)
    potential = Potential("mace", hyperparameters, model_checks.CUTOFF, ["H", "C", "O", "Ti"], torch.float64)
    potential.scale.mul_(10.0)
    module = EnergyForces(potential).eval()
    model_checks.check_rotation(module)
    model_checks.check_torchscript_equals_eager(module)
    prediction = evaluate(module, model_checks.ethanol(), model_checks.CUTOFF, torch.device("cpu"))
    assert np.abs(prediction.forces.numpy()).max() > 0.01


def test_hidden_degrees_must_be_reached():
    with pytest.raises(ValidationError, match="`l_hidden` must be at most `l_max`, got 2 and 1"):
        MACEHyperparameters(l_max=1, l_hidden=2)
