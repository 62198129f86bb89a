"""The attention of the Equivariant Transformer by C++."""

from typing import Any

import torch
from torch import Tensor

from ggnn_ff.kernels.build import load_operators, once
from ggnn_ff.models.equivariant_transformer import AttentionSum, Filters


class FusedAttention(AttentionSum):
    """An `AttentionSum` that stores no messages; for inference only."""

    def __init__(self, plain: AttentionSum) -> None:
        super().__init__(plain.n_heads)
        register()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, vectors: Tensor, filters: Filters, edge_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `AttentionSum.forward`."""
        tensors = (query, key, value, vectors, *filters, edge_index)
        return torch.ops.ggnn_ff_attention.attend(*(one.contiguous() for one in tensors), self.n_heads)


@once
def register() -> None:
    """Tells torch how the operator is differentiated, once; there is no second derivative."""
    load_operators("attention")
    operators = torch.ops.ggnn_ff_attention
    fake = torch.library.register_fake
    fake("ggnn_ff_attention::attend", lambda q, k, v, u, *rest: (torch.empty_like(q), torch.empty_like(u)))
    fake("ggnn_ff_attention::gradient", lambda gs, gt, *inputs: tuple(torch.empty_like(one) for one in inputs[:7]))

    def keep(ctx: Any, inputs: tuple, output: object) -> None:
        ctx.save_for_backward(*inputs[:-1])
        ctx.heads = inputs[-1]

    def backward(ctx: Any, gs: Tensor, gt: Tensor) -> tuple:
        return *operators.gradient(gs.contiguous(), gt.contiguous(), *ctx.saved_tensors, ctx.heads), None, None

    torch.library.register_autograd("ggnn_ff_attention::attend", backward, setup_context=keep)
