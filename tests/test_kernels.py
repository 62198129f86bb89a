"""C++ in place of a model's own code: the same values and derivatives, of every order that training needs."""

import pytest
import torch

from ggnn_ff.kernels import FusedContraction, with_kernels
from ggnn_ff.models.mace import MACE, MACEHyperparameters, SymmetricContraction

L_MAX, N_ATOMS, N_ELEMENTS = 2, 5, 3


def contractions(l_out, correlation, n_features, dtype=torch.float64):
    generator = torch.Generator().manual_seed(l_out)
    plain = SymmetricContraction(n_features, N_ELEMENTS, L_MAX, l_out, correlation).to(dtype)
    fused = with_kernels(torch.nn.Sequential(plain))[0]
    assert isinstance(fused, FusedContraction)
    features = torch.randn(N_ATOMS, (L_MAX + 1) ** 2, n_features, generator=generator, dtype=dtype)
    return plain, fused, features, torch.arange(N_ATOMS) % N_ELEMENTS


@pytest.mark.parametrize("l_out", [0, 1])
@pytest.mark.parametrize("correlation", [1, 2, 3])
@pytest.mark.parametrize("n_features", [3, 16, 20])  # less than a block, one, and one with a rest
def test_contraction_and_its_first_two_derivatives_are_those_of_the_model(l_out, correlation, n_features):
    plain, fused, features, elements = contractions(l_out, correlation, n_features)
    answers = []
    for module in (plain, fused):
        x = features.clone().requires_grad_(True)
        y = module(x, elements)
        (g,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        loss = g.square().sum() + y.square().sum()
        answers.append([y, g, *torch.autograd.grad(loss, [x, module.weight])])
    for ours, reference in zip(answers[1], answers[0], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


def test_copy_shares_the_parameters_and_leaves_the_model_alone():
    model = MACE(MACEHyperparameters(n_features=4, n_layers=2, l_max=L_MAX), 5.0, ["H", "C"])
    twin = with_kernels(model)
    assert not any(isinstance(module, FusedContraction) for module in model.modules())
    assert sum(isinstance(module, FusedContraction) for module in twin.modules()) == 3
    theirs = dict(twin.named_parameters())
    assert theirs.keys() == dict(model.named_parameters()).keys()
    assert all(theirs[name] is parameter for name, parameter in model.named_parameters())


def test_model_without_a_kernel_is_handed_back():
    model = torch.nn.Linear(2, 2)
    assert with_kernels(model) is model
