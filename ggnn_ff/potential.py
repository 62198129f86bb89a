"""From a graph to its energy: representation, readout, scale and shift per element."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from ggnn_ff.graph import N_ELEMENTS, Graph
from ggnn_ff.models import architecture


class Potential(nn.Module):
    """Energy of each atom and each structure.

    E_i = scale[Z_i] * readout(features_i) + shift[Z_i]. The representation and the readout compute in `dtype`;
    scale, shift and the sum over atoms are float64, so that the total energy is not drowned in rounding.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, name: str, hyperparameters: BaseModel, cutoff: float, elements: Sequence[str], dtype: torch.dtype
    ) -> None:
        """Builds an untrained potential.

        Args:
            name: a key of `ggnn_ff.models.MODELS`.
            hyperparameters: of that architecture.
            cutoff: angstrom.
            elements: chemical symbols; it knows no others.
            dtype: of parameters and features, float32 or float64.
        """
        super().__init__()
        self.cutoff = cutoff
        chosen = architecture(name)
        self.representation = chosen.representation(hyperparameters, cutoff, list(elements))
        self.readout = chosen.readout(int(self.representation.n_features))  # type: ignore[arg-type]
        self.register_buffer("scale", torch.ones(N_ELEMENTS, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(N_ELEMENTS, dtype=torch.float64))
        set_dtype(self, dtype)

    def forward(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Energies in eV: `energy` (S,) and `atomic_energies` (N,), both float64."""
        features = self.representation(graph)  # (N, F)
        contributions = self.readout(features).squeeze(-1).to(torch.float64)  # (N,)
        atomic_energies = contributions * self.scale[graph.numbers] + self.shift[graph.numbers]
        energy = torch.zeros(graph.n_structures, dtype=torch.float64, device=atomic_energies.device)
        return energy.index_add(0, graph.batch, atomic_energies), atomic_energies


def set_dtype(potential: nn.Module, dtype: torch.dtype) -> None:
    """Converts the parameters, eager or scripted.

    Constants are float64 buffers, cast where they are used: so scale, shift and coupling coefficients lose nothing when
    a potential goes from float32 to float64.
    """
    for parameter in potential.parameters():
        parameter.data = parameter.data.to(dtype)
