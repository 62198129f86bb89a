"""Structures and graphs as tensors: the two immutable tuples that everything else passes on."""

from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ggnn_ff.errors import InputError

N_ELEMENTS = 119  # rows of a table that is indexed by atomic number


class Structure(NamedTuple):
    """S atomic structures with N atoms in all, before a neighbour list exists."""

    positions: Tensor  # (N, 3) float64, angstrom
    numbers: Tensor  # (N,) int64
    cell: Tensor  # (S, 3, 3) float64, angstrom; rows are cell vectors, zeros if not periodic
    pbc: Tensor  # (S, 3) bool
    batch: Tensor  # (N,) int64, structure index of each atom, sorted
    n_structures: int


class Graph(NamedTuple):
    """What an architecture sees: no positions, no cell, so invariance to translation is structural."""

    numbers: Tensor  # (N,) int64
    edge_index: Tensor  # (2, E) int64; row 0 = centre i (receives), row 1 = neighbour j (sends)
    edge_vectors: Tensor  # (E, 3) angstrom, from i to j
    batch: Tensor  # (N,) int64
    n_structures: int


def edge_vectors(positions: Tensor, cell: Tensor, edge_index: Tensor, shifts: Tensor, batch: Tensor) -> Tensor:
    """Vectors from centre i to neighbour j, `positions[j] + shifts @ cell - positions[i]`.

    Args:
        positions: (N, 3), angstrom.
        cell: (S, 3, 3), angstrom.
        edge_index: (2, E).
        shifts: (E, 3), integers in the dtype of `positions`.
        batch: (N,).

    Returns:
        (E, 3), angstrom.
    """
    centre, neighbour = edge_index[0], edge_index[1]
    offsets = torch.einsum("ea,eab->eb", shifts, cell[batch[centre]])
    return positions[neighbour] - positions[centre] + offsets


def moved(structure: Structure, positions: np.ndarray) -> Structure:
    """One structure with other `positions` (N, 3); whether they are finite is seen where neighbours are listed."""
    return structure._replace(positions=torch.from_numpy(positions.copy()))


def check_finite(positions: np.ndarray) -> None:
    """Raises InputError unless all positions (N, 3) are numbers."""
    if not np.isfinite(positions).all():
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
        raise InputError(
            f"`atoms.positions` must be finite, got NaN or infinity for {bad.size} of {len(positions)} atoms (first: "
            f"atom {bad[0]}); the structure is broken or the dynamics that made it blew up"
        )


def from_atoms(atoms: Atoms) -> Structure:
    """One structure from ASE, checked; a cell that is periodic in no direction is only a box, and becomes zeros.

    Raises:
        InputError: no atoms, positions or cell that are not finite, a ghost atom (number 0), or a periodic
            direction without a cell vector.
    """
    if len(atoms) == 0:
        raise InputError("`atoms` must hold at least one atom, got an empty structure; check the file it came from")
    positions = np.asarray(atoms.positions, dtype=np.float64)
    check_finite(positions)
    if (atoms.numbers <= 0).any():
        index = int(np.flatnonzero(atoms.numbers <= 0)[0])
        raise InputError(f"`atoms.numbers` must be positive, got {atoms.numbers[index]} for atom {index}; remove it")
    cell, pbc = np.asarray(atoms.cell.array, dtype=np.float64), np.asarray(atoms.pbc, dtype=bool)
    if not np.isfinite(cell).all():
        raise InputError("`atoms.cell` must be finite, got NaN or infinity")
    if pbc.any():
        if (np.linalg.norm(cell[pbc], axis=1) < 1e-8).any():
            raise InputError(
                f"`atoms.cell` must have a vector in each periodic direction, got pbc={pbc.tolist()} and cell "
                f"{cell.tolist()}; set atoms.cell, or atoms.pbc = False for a molecule"
            )
        cell = np.asarray(atoms.cell.complete().array, dtype=np.float64)
        if abs(np.linalg.det(cell)) < 1e-8:
            raise InputError(f"`atoms.cell` must span a volume, got linearly dependent vectors {cell.tolist()}")
    else:
        cell = np.zeros((3, 3))
    return Structure(
        positions=torch.from_numpy(positions.copy()),
        numbers=torch.from_numpy(atoms.numbers.astype(np.int64)),
        cell=torch.from_numpy(cell.copy()).unsqueeze(0),
        pbc=torch.from_numpy(pbc.copy()).unsqueeze(0),
        batch=torch.zeros(len(atoms), dtype=torch.int64),
        n_structures=1,
    )
