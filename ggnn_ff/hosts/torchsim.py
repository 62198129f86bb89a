"""The potential as a torch-sim model: many structures, or many replicas of one, in one evaluation."""

from pathlib import Path

import torch
from torch import Tensor
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState

from ggnn_ff.compiled import fast_form
from ggnn_ff.contract import check_elements
from ggnn_ff.errors import InputError
from ggnn_ff.export import LoadedPotential, as_loaded
from ggnn_ff.graph import Structure
from ggnn_ff.neighbors import SkinNeighborList


class GGNNModel(ModelInterface):
    """torch-sim model with energy, forces and stress, in float64, whatever the precision of the potential.

    Example:
        state = torch_sim.initialize_state([atoms] * 32, device=model.device, dtype=model.dtype)
        initialize, step = torch_sim.nve(model, dt=..., kT=...)
    """

    def __init__(
        self,
        potential: str | Path | LoadedPotential,
        device: str = "cpu",
        dtype: str | None = None,
        compile: bool | None = None,
    ) -> None:
        """As `GGNNCalculator`.

        Raises:
            InputError: what cannot be loaded, or compiled if `compile` is True.
        """
        super().__init__()
        self.potential = fast_form(as_loaded(potential, device, dtype), compile)
        self._device = self.potential.device
        self._dtype = torch.float64  # of positions and energies; that of the weights is the potential's
        self._compute_stress = self._compute_forces = True
        self.neighbors = SkinNeighborList(self.potential.contract.cutoff)
        self.numbers: Tensor | None = None  # those that were found to be known

    def forward(self, state: SimState) -> dict[str, Tensor]:
        """Energy (S,) in eV, forces (N, 3) in eV/angstrom, stress (S, 3, 3) in eV/angstrom^3.

        Raises:
            InputError: an element that the potential does not know, positions that are not finite or of another
                dtype, or two atoms on one place.
        """
        structure = self._structure(state)
        prediction = self.potential.predict(structure, self.neighbors)
        tensors = {"energy": prediction.energy, "forces": prediction.forces, "stress": prediction.stress}
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def _structure(self, state: SimState) -> Structure:
        """On the CPU, where neighbours are listed."""
        positions = state.positions.detach().cpu()
        if positions.dtype != self._dtype:
            raise InputError(
                f"`state.positions` must be float64, got {positions.dtype}; make the state with dtype=model.dtype"
            )
        if not torch.isfinite(positions).all():
            raise InputError("`state.positions` must be finite, got NaN or infinity; the dynamics that made it blew up")
        numbers = state.atomic_numbers.cpu().to(torch.int64)
        if self.numbers is None or not torch.equal(numbers, self.numbers):
            check_elements(self.potential.contract, numbers.numpy())
            self.numbers = numbers
        cell = state.row_vector_cell.detach().cpu().to(self._dtype).clone(memory_format=torch.contiguous_format)
        n_structures = cell.shape[0]
        if not state.pbc:
            cell = torch.zeros_like(cell)  # only a box
        elif bool((torch.linalg.det(cell).abs() < 1e-8).any()):
            raise InputError("`state.cell` must span a volume where `state.pbc`, got none; set the cells, or pbc=False")
        pbc = torch.full((n_structures, 3), bool(state.pbc))
        batch = state.system_idx.cpu()
        return Structure(positions, numbers, cell, pbc, batch, n_structures)
