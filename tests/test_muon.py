"""The optimizer Muon: its steps have no singular values, and are those of AdamW where there is no matrix."""

import pytest
import torch
from torch import nn

from ggnn_ff.models import MODELS
from ggnn_ff.potential import Potential
from ggnn_ff.training.muon import Muon, find_matrices, orthogonalised
from ggnn_ff.training.vector import OneVector

RATE = 0.01


def one_vector(*layers: nn.Module) -> OneVector:
    return OneVector(nn.Sequential(*layers).double())


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 16, 50), (2, 50, 16)])
def test_singular_values_become_about_one_and_directions_stay(shape):
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    matrices = u @ torch.diag(torch.logspace(-1.5, 1.0, min(shape[1:]), dtype=torch.float64)) @ v
    inside = u.transpose(1, 2) @ orthogonalised(matrices) @ v.transpose(1, 2)  # in the given directions
    values = inside.diagonal(dim1=1, dim2=2)
    assert bool(((values > 0.65) & (values < 1.25)).all())
    torch.testing.assert_close(inside, torch.diag_embed(values), rtol=0.0, atol=1e-10)


def test_a_matrix_of_zeros_has_no_direction():
    assert torch.equal(orthogonalised(torch.zeros(1, 16, 16)), torch.zeros(1, 16, 16))


def test_size_of_a_step_does_not_depend_on_that_of_the_gradient():
    model = one_vector(nn.Linear(64, 32, bias=False))
    moved = []
    for size in (1e-4, 1e4):
        before = model.weights.detach().clone()
        model.weights.grad = size * torch.randn_like(before)
        Muon(model, lr=RATE, weight_decay=0.0, amsgrad=False).step()
        moved.append(float((model.weights.detach() - before).square().mean().sqrt()))
    assert moved == pytest.approx([0.2 * RATE] * 2, rel=0.2)  # as Adam's usually are


@pytest.mark.parametrize("amsgrad", [False, True])
def test_weights_that_are_no_matrices_take_the_steps_of_adamw(amsgrad):
    model = one_vector(nn.Linear(8, 40), nn.Linear(40, 3))  # sides below 16
    other = nn.Parameter(model.weights.detach().clone())
    ours = Muon(model, lr=RATE, weight_decay=0.1, amsgrad=amsgrad)
    adamw = torch.optim.AdamW([other], lr=RATE, weight_decay=0.1, amsgrad=amsgrad)
    for k in range(5):
        gradient = torch.randn_like(other) / (1 + k)
        for weights, optimizer in ((model.weights, ours), (other, adamw)):
            weights.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(model.weights, other, rtol=1e-12, atol=1e-14)


def test_goes_on_from_its_state_as_if_it_had_not_stopped():
    gradients = torch.randn(4, 20 * 20 + 20, dtype=torch.float64)
    results = []
    for stops in (False, True):
        torch.manual_seed(1)
        model = one_vector(nn.Linear(20, 20))
        optimizer = Muon(model, lr=RATE, weight_decay=0.1, amsgrad=True)
        for k, gradient in enumerate(gradients):
            if stops and k == 2:
                state = optimizer.state_dict()
                optimizer = Muon(model, lr=RATE, weight_decay=0.1, amsgrad=True)
                optimizer.load_state_dict(state)
            model.weights.grad = gradient.clone()
            optimizer.step()
        results.append(model.weights.detach().clone())
    assert torch.equal(*results)


@pytest.mark.parametrize("name", MODELS)
def test_most_weights_of_an_architecture_are_in_matrices(name):
    model = OneVector(Potential(name, MODELS[name].presets["small"], 5.0, ["H", "C", "O"], torch.float32))
    found = find_matrices(model)
    shares = [m * n * len(starts) / model.weights.numel() for (m, n), starts in found.items()]
    assert 0.6 < sum(shares) < 1.0
    names = list(model.shapes)
    begin = {name: sum(model.shapes[other].numel() for other in names[: names.index(name)]) for name in names}
    inside = {name for name, first in begin.items() if any(first in starts for starts in found.values())}
    assert not [name for name in inside if "embedding.weight" in name or "contractions" in name or "bias" in name]
