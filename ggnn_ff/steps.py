"""Structures that move: evaluated step after step, with neighbours listed anew only when they have to be."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ggnn_ff.compiled import CompiledEnergyForces
from ggnn_ff.export import LoadedPotential
from ggnn_ff.forces import Prediction
from ggnn_ff.graph import Structure
from ggnn_ff.kernels.host import make_edges
from ggnn_ff.neighbors import SHORTEST_DISTANCE, SKIN, SkinNeighborList, neighbor_list


def make_steps(loaded: LoadedPotential) -> Callable[[Structure], Prediction]:
    """What evaluates one structure that moves, or copies of one that move together, in one cell.

    It returns energies, forces and stress, in eV and angstrom, on the CPU, and raises InputError where two atoms lie on
    top of each other, or too far apart.
    """
    if isinstance(loaded.module, CompiledEnergyForces):
        return CompiledSteps(loaded)
    return partial(loaded.predict, neighbors=SkinNeighborList(loaded.contract.cutoff))


class CompiledSteps:
    """As `LoadedPotential.predict` with a `SkinNeighborList`, for a compiled potential; with edges from C++."""

    def __init__(self, loaded: LoadedPotential) -> None:
        """`loaded` from `compile_potential`."""
        self.loaded, self.module = loaded, cast(CompiledEnergyForces, loaded.module)
        self.pbc: Tensor | None = None  # of what is listed

    def __call__(self, structure: Structure) -> Prediction:
        """As what `make_steps` returns."""
        cutoff = self.loaded.contract.cutoff
        if len(structure.numbers) < 2:
            with torch.inference_mode(False):  # a clone can have a gradient, wherever its original was made
                copies = structure._replace(numbers=structure.numbers.clone(), batch=structure.batch.clone())
                return self.loaded.predict(copies, partial(neighbor_list, cutoff=cutoff))
        positions, cell = structure.positions, structure.cell[0]
        if structure.pbc is not self.pbc:
            self.edges, self.pbc = make_edges(cutoff, SKIN, SHORTEST_DISTANCE), structure.pbc
        try:
            found = self.edges.find(positions, cell)
        except ValueError:  # two atoms on one place, which `neighbor_list` tells as an InputError
            found = None
        if found is None:
            edge_index, shifts = neighbor_list(structure, cutoff + SKIN)
            found = self.edges.list(positions, cell, edge_index.t(), shifts)
        tensors = [positions, structure.numbers, structure.cell, *found, structure.batch]
        if self.loaded.device.type == "cpu":
            return self.module.of_edges(*tensors, n_structures=structure.n_structures)
        prediction = self.module.of_edges(
            *(tensor.to(self.loaded.device) for tensor in tensors), n_structures=structure.n_structures
        )
        return Prediction(*(tensor.cpu() for tensor in prediction))

    def __getstate__(self) -> dict[str, Any]:
        """Without edges, which another process lists anew."""
        return {"loaded": self.loaded, "module": self.module, "pbc": None}
