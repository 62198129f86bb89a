"""Structures that move: evaluated step after step, with neighbours listed anew only when they have to be."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ggnn_ff.compiled import CompiledEnergyForces, stress_of_edges, total_energies
from ggnn_ff.export import LoadedPotential
from ggnn_ff.forces import Prediction
from ggnn_ff.graph import Structure
from ggnn_ff.kernels.host import make_edges
from ggnn_ff.neighbors import SHORTEST_DISTANCE, SKIN, SkinNeighborList, neighbor_list

ATOMS_AT_ONCE = 80
"""Of copies, on one thread: what belongs to their edges stays in its cache."""


def make_steps(loaded: LoadedPotential) -> Callable[[Structure], Prediction]:
    """What evaluates one structure that moves, or copies of one that move together, in one cell.

    It returns energies, forces and stress, in eV and angstrom, on the CPU, and raises InputError where two atoms lie on
    top of each other, or too far apart.
    """
    if isinstance(loaded.module, CompiledEnergyForces):
        return CompiledSteps(loaded)
    return partial(loaded.predict, neighbors=SkinNeighborList(loaded.contract.cutoff))


class CompiledSteps:
    """As `LoadedPotential.predict` with a `SkinNeighborList`, for a compiled potential; edges and call are one in C++.

    Between two calls of a small molecule there should run little else, which has left the processor's cache by then.
    """

    def __init__(self, loaded: LoadedPotential) -> None:
        """`loaded` from `compile_potential`."""
        self.loaded, self.module = loaded, cast(CompiledEnergyForces, loaded.module)
        self.pbc: Tensor | None = None  # of what is listed

    def __call__(self, structure: Structure) -> Prediction:
        """As what `make_steps` returns."""
        if structure.pbc is not self.pbc:  # another structure
            if len(structure.numbers) < 2:
                return self._alone(structure)
            self.edges = make_edges(self.loaded.contract.cutoff, SKIN, SHORTEST_DISTANCE)
            self.numbers, self.pbc = structure.numbers.to(self.loaded.device), structure.pbc
            self.package, self.no_stress = self.module.package(0), torch.zeros_like(structure.cell)
            self.periodic, self.cells = bool(structure.pbc.any()), None
        if structure.cell is not self.cells:
            self.cells, self.cell = structure.cell, structure.cell[0]
        positions, cell = structure.positions, self.cell
        try:
            answer = self._evaluate(positions, cell, structure.n_structures)
        except ValueError:  # two atoms on one place, which `neighbor_list` tells as an InputError
            answer = None
        if answer is None:
            edge_index, shifts = neighbor_list(structure, self.loaded.contract.cutoff + SKIN)
            listed = self.edges.list(positions, cell, edge_index.t(), shifts)
            self.package = self.module.package(listed[0].shape[1] if structure.n_structures == 1 else 0)
            answer = self._evaluate(positions, cell, structure.n_structures)
        energy, energies, forces, gradient, edges, offsets = answer
        if structure.n_structures > 1:
            energy = total_energies(energies, structure.batch, structure.n_structures)
        stress = self.no_stress
        if self.periodic:
            stress = stress_of_edges(structure.cell, structure.batch, positions, edges, offsets, gradient)
        return Prediction(energy, energies, forces, stress)

    def _evaluate(self, positions: Tensor, cell: Tensor, copies: int) -> Any:
        """Of copies each thread takes some, which is quicker than all threads on all of them."""
        if copies == 1 or self.numbers.device.type != "cpu":
            return self.edges.evaluate(self.package, positions, self.numbers, cell)
        at_once = min(max(1, ATOMS_AT_ONCE * copies // len(positions)), -(-copies // torch.get_num_threads()))
        return self.edges.evaluate_copies(self.package, positions, self.numbers, cell, copies, at_once)

    def _alone(self, structure: Structure) -> Prediction:
        with torch.inference_mode(False):  # a clone can have a gradient, wherever its original was made
            copies = structure._replace(numbers=structure.numbers.clone(), batch=structure.batch.clone())
            return self.loaded.predict(copies, partial(neighbor_list, cutoff=self.loaded.contract.cutoff))

    def __getstate__(self) -> dict[str, Any]:
        """Without edges, which another process lists anew."""
        return {"loaded": self.loaded, "module": self.module, "pbc": None}
