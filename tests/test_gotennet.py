"""GotenNet: the softmax that weighs neighbours."""

import torch

from ggnn_ff.models.gotennet import weighted_softmax


def attention(scores: list[float], weights: list[float]):
    """Attention of one atom, and its gradient with respect to scores and weights."""
    leaves = [torch.tensor(values).unsqueeze(1).requires_grad_(True) for values in (scores, weights)]
    found = weighted_softmax(*leaves, torch.zeros(len(scores), dtype=torch.int64), 1)
    gradients = torch.autograd.grad(found.square().sum(), leaves)
    return [tensor.detach().flatten() for tensor in (found, *gradients)]


def test_attention_is_that_of_the_definition():
    scores, weights = [1.0, -0.5, 2.0], [1.0, 0.3, 0.01]
    expected = torch.tensor(weights) * torch.tensor(scores).exp()
    torch.testing.assert_close(attention(scores, weights)[0], expected / expected.sum())


def test_neighbours_without_weight_change_nothing_whatever_their_score():
    alone = attention([1.0, -0.5], [1.0, 0.3])
    with_another = attention([1.0, -0.5, 500.0], [1.0, 0.3, 0.0])
    for found, expected in zip(with_another, alone, strict=True):
        torch.testing.assert_close(found[:2], expected)
        assert found.isfinite().all()
