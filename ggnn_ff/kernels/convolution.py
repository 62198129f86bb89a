"""The tensor product convolution of steerable architectures by C++."""

from typing import Any

import torch
from torch import Tensor, nn

from ggnn_ff.irreps import HarmonicsToMatrices, TensorProductConvolution
from ggnn_ff.kernels.build import load_operators, once


class FusedConvolution(nn.Module):
    """A `TensorProductConvolution` that stores nothing of the size of edges times rows times features."""

    pairs: Tensor
    paths: Tensor
    terms: Tensor
    coefficients: Tensor

    def __init__(self, plain: TensorProductConvolution) -> None:
        super().__init__()
        register()
        self.n_paths, self.n_paths_to = plain.n_paths, plain.n_paths_to
        pairs: list[tuple[int, int]] = []  # row, component of the neighbour's features: all of one degree
        paths: list[int] = []  # of each row
        terms: list[tuple[int, int]] = []  # pair, harmonic
        coefficients: list[float] = []
        for degree in range(len(plain.n_paths_to)):
            for m in range(2 * degree + 1):
                for weight, l_in, matrices in _paths_to(plain, degree):
                    row = len(paths)
                    paths.append(weight)
                    for component in range(2 * l_in + 1):
                        of_harmonics = matrices[:, m, component]
                        for harmonic in of_harmonics.nonzero().flatten().tolist():
                            terms.append((len(pairs), harmonic))
                            coefficients.append(float(of_harmonics[harmonic]))
                        pairs.append((row, l_in**2 + component))
        tables = {"pairs": torch.tensor(pairs).T.contiguous(), "paths": torch.tensor(paths)}
        tables["terms"] = torch.tensor(terms).T.contiguous()
        tables["coefficients"] = torch.tensor(coefficients, dtype=torch.float64)
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, features: list[Tensor], harmonics: Tensor, weights: Tensor, edge_index: Tensor) -> list[Tensor]:
        """As `TensorProductConvolution.forward`."""
        x = torch.cat(features, dim=1)  # (N, (l_in+1)^2, F)
        w = weights.view(weights.shape[0], self.n_paths, -1)
        tables = (self.pairs, self.paths, self.terms, self.coefficients)
        operator = torch.ops.ggnn_ff_convolution.convolve
        sums = operator(x, harmonics.contiguous(), w.contiguous(), edge_index.contiguous(), *tables)  # (N, rows, F)
        rows = [(2 * degree + 1) * number for degree, number in enumerate(self.n_paths_to)]
        # In two steps, each of which the compiler sees through; in one it divides for each number to find its place.
        return [
            of_degree.unflatten(1, (2 * degree + 1, number)).flatten(2)
            for degree, (of_degree, number) in enumerate(zip(sums.split(rows, dim=1), self.n_paths_to, strict=True))
        ]


def _paths_to(plain: TensorProductConvolution, degree: int) -> list[tuple[int, int, Tensor]]:
    """Index of the weight, l1, and coefficients (harmonics, 2 l3 + 1, 2 l1 + 1) of each path to a degree l3."""
    found = []
    first_weight = 0
    for l_in, coupling in enumerate(plain.couplings):
        assert isinstance(coupling, HarmonicsToMatrices)
        table = coupling.coupling.view(coupling.coupling.shape[0], -1, 2 * l_in + 1)
        first_row, before = sum(coupling.n_rows[:degree]), sum(coupling.n_paths_to[:degree])
        for path in range(coupling.n_paths_to[degree]):
            start = first_row + path * (2 * degree + 1)
            found.append((first_weight + before + path, l_in, table[:, start : start + 2 * degree + 1]))
        first_weight += sum(coupling.n_paths_to)
    return found


@once
def register() -> None:
    """Tells torch how the operators are differentiated, twice."""
    load_operators("convolution")
    operators = torch.ops.ggnn_ff_convolution
    fake, derive = torch.library.register_fake, torch.library.register_autograd
    fake(
        "ggnn_ff_convolution::convolve",
        lambda x, y, w, edges, pairs, paths, *rest: x.new_empty(x.shape[0], paths.shape[0], x.shape[2]),
    )
    fake(
        "ggnn_ff_convolution::gradient",
        lambda g, x, y, w, *rest: (torch.empty_like(x), torch.empty_like(y), torch.empty_like(w)),
    )
    fake(
        "ggnn_ff_convolution::second",
        lambda hx, hy, hw, g, x, y, w, *rest: tuple(torch.empty_like(one) for one in (g, x, y, w)),
    )

    def keep(ctx: Any, inputs: tuple, output: object) -> None:
        ctx.save_for_backward(*inputs)

    def convolve_backward(ctx: Any, g: Tensor) -> tuple:
        return *operators.gradient(g.contiguous(), *ctx.saved_tensors), *[None] * 5

    def gradient_backward(ctx: Any, *h: Tensor) -> tuple:
        return *operators.second(*(one.contiguous() for one in h), *ctx.saved_tensors), *[None] * 5

    derive("ggnn_ff_convolution::convolve", convolve_backward, setup_context=keep)
    derive("ggnn_ff_convolution::gradient", gradient_backward, setup_context=keep)
