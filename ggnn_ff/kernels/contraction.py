"""MACE's symmetric contraction by C++."""

from typing import Any

import torch
from torch import Tensor, nn

from ggnn_ff.kernels.build import load_operators, once
from ggnn_ff.models.mace import SymmetricContraction


class FusedContraction(nn.Module):
    """A `SymmetricContraction` with the weights folded into one coefficient for each element, monomial and channel."""

    def __init__(self, plain: SymmetricContraction) -> None:
        super().__init__()
        register()
        self.weight = plain.weight
        missing = 3 - plain.monomials.shape[0]
        table = nn.functional.pad(plain.monomials, (0, 0, 0, 0, 0, missing), value=plain.one)  # three factors always
        self.register_buffer("monomials", table.contiguous(), persistent=False)
        self.register_buffer("basis", plain.basis, persistent=False)

    def forward(self, features: Tensor, elements: Tensor) -> Tensor:
        """As `SymmetricContraction.forward`."""
        coefficients = torch.einsum("mpk,epf->emkf", self.basis.to(features.dtype), self.weight).contiguous()
        return torch.ops.ggnn_ff_contraction.values(features.contiguous(), coefficients, elements, self.monomials)


@once
def register() -> None:
    """Tells torch how the operators are differentiated, twice."""
    load_operators("contraction")
    operators = torch.ops.ggnn_ff_contraction
    fake, derive = torch.library.register_fake, torch.library.register_autograd
    fake("ggnn_ff_contraction::values", lambda a, c, z, table: a.new_empty(a.shape[0], c.shape[1], a.shape[2]))
    fake("ggnn_ff_contraction::gradient", lambda g, a, c, z, table: torch.empty_like(a))
    fake("ggnn_ff_contraction::coefficients", lambda g, a, c, z, table: torch.empty_like(c))
    fake(
        "ggnn_ff_contraction::second",
        lambda h, g, a, c, z, table: (torch.empty_like(g), torch.empty_like(a), torch.empty_like(c)),
    )

    def keep(ctx: Any, inputs: tuple, output: object) -> None:
        ctx.save_for_backward(*inputs)

    def values_backward(ctx: Any, g: Tensor) -> tuple:
        a, c, z, table = ctx.saved_tensors
        g = g.contiguous()
        to_c = operators.coefficients(g, a, c, z, table) if ctx.needs_input_grad[1] else None
        return operators.gradient(g, a, c, z, table), to_c, None, None

    def gradient_backward(ctx: Any, h: Tensor) -> tuple:
        return *operators.second(h.contiguous(), *ctx.saved_tensors), None, None

    derive("ggnn_ff_contraction::values", values_backward, setup_context=keep)
    derive("ggnn_ff_contraction::gradient", gradient_backward, setup_context=keep)
