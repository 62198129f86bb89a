"""Muon: steps in which all directions of a weight matrix count alike."""

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from ggnn_ff.training.vector import OneVector

SMALLEST_SIDE = 16  # of a matrix; smaller ones, biases, embeddings and weights of couplings take steps of Adam
MOMENTUM, MEAN, SQUARE = 0.95, 0.9, 0.999  # how much of these averages a step keeps
RMS_OF_ADAM = 0.2  # of its steps, in units of the learning rate: so one learning rate does for both
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon (K. Jordan 2024) for the matrices of a model in one vector, scaled to steps of AdamW (arXiv 2502.16982).

    The step of an m x n matrix is its momentum M = U S V^T without the singular values, U V^T, times 0.2 max(m, n)^0.5.
    All other weights take steps of AdamW, with `amsgrad` those of AMSGrad. Matrices of one shape are treated together,
    each shape by another of torch's threads.
    """

    def __init__(self, model: OneVector, *, lr: float, weight_decay: float, amsgrad: bool) -> None:
        super().__init__(model.parameters(), {"lr": lr, "weight_decay": weight_decay, "amsgrad": amsgrad})
        found = find_matrices(model)
        # The longest first, so that threads end together.
        by_cost = sorted(found, key=lambda shape: -len(found[shape]) * min(shape) ** 2 * max(shape))
        self.matrices = {shape: found[shape] for shape in by_cost}
        self.pool = ThreadPoolExecutor(torch.get_num_threads(), "muon", torch.set_num_threads, (1,))
        others = torch.ones(model.weights.shape, dtype=torch.bool)
        for (rows, columns), starts in self.matrices.items():
            for start in starts:
                others[start : start + rows * columns] = False
        self.others = others.nonzero().flatten()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` computes loss and gradient first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        (weights,) = group["params"]
        if weights.grad is None:
            return loss
        self.others = self.others.to(weights.device)
        state, gradient, others = self.state[weights], weights.grad, self.others
        if not state:
            state.update(step=0, momentum=torch.zeros_like(weights))
            state.update({name: torch.zeros_like(gradient[others]) for name in ("mean", "square", "largest")})
        state["step"] += 1
        momentum = state["momentum"].lerp_(gradient, 1.0 - MOMENTUM)
        update = torch.lerp(gradient, momentum, MOMENTUM)  # Nesterov's
        list(self.pool.map(lambda shape: _orthogonalise(update, shape, self.matrices[shape]), self.matrices))
        update[others] = _adam(gradient[others], state, group["amsgrad"])
        weights.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
        return loss


@torch.no_grad()
def _orthogonalise(update: Tensor, shape: tuple[int, int], starts: list[int]) -> None:
    """Makes steps of the momenta of all matrices of one shape, in place."""
    parts = [update[start : start + shape[0] * shape[1]].view(shape) for start in starts]
    steps = RMS_OF_ADAM * max(shape) ** 0.5 * orthogonalised(torch.stack(parts))
    for part, one in zip(parts, steps, strict=True):
        part.copy_(one)


def _adam(gradient: Tensor, state: dict[str, Any], amsgrad: bool) -> Tensor:
    mean, square = state["mean"].lerp_(gradient, 1.0 - MEAN), state["square"]
    square.mul_(SQUARE).addcmul_(gradient, gradient, value=1.0 - SQUARE)
    if amsgrad:
        square = torch.maximum(state["largest"], square, out=state["largest"])
    root = (square / (1.0 - SQUARE ** state["step"])).sqrt_().add_(1e-8)
    return mean.div(root).div_(1.0 - MEAN ** state["step"])


def find_matrices(model: OneVector) -> dict[tuple[int, int], list[int]]:
    """Where matrices of each shape begin in the vector: weights of linear layers, and stacks of them (4 dimensions)."""
    linear = {f"{name}.weight" for name, module in model.model.named_modules() if isinstance(module, nn.Linear)}
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    start = 0
    for name, shape in model.shapes.items():
        if (name in linear or len(shape) == 4) and min(shape[-2:]) >= SMALLEST_SIDE:
            size = shape[-2] * shape[-1]
            found[shape[-2], shape[-1]] += range(start, start + shape.numel(), size)
        start += shape.numel()
    return dict(found)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Almost U V^T of each matrix U S V^T, (K, m, n), by Newton-Schulz iterations.

    Singular values above some 0.002 of the norm of the matrix come to 0.65 to 1.25; smaller ones stay smaller.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalised(matrices.transpose(1, 2).contiguous()).transpose(1, 2)
    a, b, c = NEWTON_SCHULZ
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-12)
    for _ in range(ITERATIONS):
        product = torch.bmm(x, x.transpose(1, 2))
        polynomial = torch.baddbmm(product, product, product, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x
