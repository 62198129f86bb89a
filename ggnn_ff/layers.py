"""Building blocks that several architectures share."""

from collections.abc import Sequence

import torch
from ase.data import atomic_numbers
from torch import Tensor, nn


class ElementIndex(nn.Module):
    """Atomic numbers -> rows of a table with one row for each element of a potential."""

    rows: Tensor

    def __init__(self, elements: Sequence[str]) -> None:
        super().__init__()
        self.n_elements = len(elements)
        rows = torch.full((len(atomic_numbers),), len(elements))  # out of range where an element is foreign
        for row, symbol in enumerate(elements):
            rows[atomic_numbers[symbol]] = row
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """(N,) int64 -> (N,) int64; the number of elements, hence no row, for an element that is not among them."""
        return self.rows[numbers]


class ElementEmbedding(nn.Module):
    """Learned features of each element, standard normal at first."""

    def __init__(self, elements: Sequence[str], n_features: int) -> None:
        super().__init__()
        self.index = ElementIndex(elements)
        self.weight = nn.Parameter(torch.randn(len(elements), n_features))

    def forward(self, numbers: Tensor) -> Tensor:
        """(N,) atomic numbers -> (N, F)."""
        return self.weight[self.index(numbers)]


SOFTENING = 0.1
"""Of `softened_norm` in the presets: where features are of order one, it rounds a cusp and changes little else."""

CUSP = 1e-4
"""The softening of potentials and trainings that name none: those of older versions."""

SOFTENING_DESCRIPTION = f"lengths of vectors v are (v^2 + softening^2)^1/2; {CUSP:g}, as in older potentials, is a cusp"


def softened_norm(vectors: Tensor, softening: float) -> Tensor:
    """Lengths (N, F) of vectors (N, M, F), smooth where they vanish.

    They do where the surroundings of an atom are symmetric, as in the centre of CH4. A length itself has a cusp there,
    and so have forces; the second derivative of this one is 1 / softening.
    """
    return torch.sqrt((vectors * vectors).sum(dim=1) + softening**2)


def dense(n_in: int, n_out: int, bias: bool = True) -> nn.Linear:
    """A linear layer that begins with Xavier-uniform weights and without bias."""
    layer = nn.Linear(n_in, n_out, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp_readout(n_features: int) -> nn.Sequential:
    """(N, F) -> (N, 1) through one hidden layer of half the width, as in SchNet, PaiNN and TorchMD-NET."""
    return nn.Sequential(nn.Linear(n_features, n_features // 2), nn.SiLU(), nn.Linear(n_features // 2, 1))


def linear_readout(n_features: int) -> nn.Linear:
    """(N, F) -> (N, 1), as in NequIP; of concatenated features: the sum of one linear readout for each part."""
    return nn.Linear(n_features, 1)
