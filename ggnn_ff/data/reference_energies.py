"""Energies per element that are subtracted from total energies before a model sees them."""

from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.data.readers import read_structures
from ggnn_ff.errors import InputError
from ggnn_ff.units import ENERGY_UNITS


def reference_energies_from_atoms(path: str | Path, *, energy_unit: str = "eV") -> dict[int, float]:
    """Energies of isolated atoms, from a file with one atom per frame (extxyz with `energy`).

    Args:
        path: the file.
        energy_unit: of the energies in it, a name in `units.ENERGY_UNITS`.

    Returns:
        Atomic number -> energy, eV, by atomic number.

    Raises:
        InputError: the file cannot be read, a frame is not one atom or has no finite energy, or an element
            occurs twice with different energies.
    """
    path = Path(path)
    energies: dict[int, float] = {}
    for index, atoms in enumerate(read_structures(path)):
        where = f"frame {index} (counted from 0) of {path}"
        if len(atoms) != 1:
            raise InputError(f"`path`: each frame must be one isolated atom, got {len(atoms)} atoms in {where}")
        results = atoms.calc.results if atoms.calc is not None else {}
        energy = float(results.get("energy", np.nan)) * ENERGY_UNITS[energy_unit]
        if not np.isfinite(energy):
            raise InputError(f"`path`: each isolated atom must have a finite `energy`, got none in {where}")
        number = int(atoms.numbers[0])
        if energies.setdefault(number, energy) != energy:
            raise InputError(
                f"`path`: each element must have one energy, got {energies[number]} and {energy} eV for "
                f"{chemical_symbols[number]} in {path}; keep the atom of the level of theory of the data"
            )
    return dict(sorted(energies.items()))


def least_squares_reference_energies(frames: LabelledFrames) -> dict[int, float]:
    """The energies per element whose sums over atoms are nearest to the total energies (least squares).

    Minimises sum_s (E_s - sum_z n_sz e_z)^2, where n_sz counts the atoms of element z in frame s. Where the
    counts do not determine the energies, the solution of least norm is taken: with a single composition n_z,
    for example, e_z = mean(E) n_z / sum_z n_z^2. Their sum over the molecule is then exactly the mean total
    energy, but the energy of one element means nothing by itself.

    Returns:
        Atomic number -> energy, eV, by atomic number.

    Raises:
        InputError: there are no frames.
    """
    if len(frames) == 0:
        raise InputError("`frames` must have at least one frame to fit reference energies to, got none")
    elements, element_of_atom = np.unique(frames.numbers, return_inverse=True)
    frame_of_atom = np.repeat(np.arange(len(frames)), frames.n_atoms)
    counts = np.zeros((len(frames), len(elements)))
    np.add.at(counts, (frame_of_atom, element_of_atom), 1.0)
    compositions, frame_composition, multiplicity = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    # One weighted row per composition gives the same solution as one row per frame, at a fraction of the
    # cost.
    mean_energy = np.bincount(frame_composition.reshape(-1), weights=frames.energy) / multiplicity
    weight = np.sqrt(multiplicity)
    solution = np.linalg.lstsq(compositions * weight[:, None], mean_energy * weight, rcond=None)[0]
    return {int(number): float(energy) for number, energy in zip(elements, solution, strict=True)}


def check_reference_energies(energies: dict[int, float], frames: LabelledFrames) -> None:
    """Raises if an element of the frames has no reference energy.

    Raises:
        InputError: naming the elements.
    """
    missing = sorted(set(np.unique(frames.numbers).tolist()) - set(energies))
    if missing:
        raise InputError(
            "`reference_energies` must have every element of the data, got none for "
            f"{', '.join(chemical_symbols[number] for number in missing)}; add an isolated atom of each, or "
            "leave all of them out, and they are fitted by least squares"
        )
