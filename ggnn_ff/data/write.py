"""Writing labelled frames so that other programs, and `readers`, read them."""

from pathlib import Path

import ase.io
import numpy as np

from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.errors import InputError
from ggnn_ff.files import write_atomically
from ggnn_ff.units import EV_PER_KCAL_PER_MOL


def write_md17_npz(path: Path, frames: LabelledFrames, *, settings: str = "") -> None:
    """Writes frames of one molecule in the layout of MD17: R, E (S, 1), F, z, in kcal/mol and angstrom.

    The level of theory is stored as `theory`, the units as `e_unit` and `r_unit`; what charges and
    magnetic moments the atoms have as `charges` and `magnetic_moments`, (A,).

    Args:
        path: file to write, in one step.
        frames: all with the same atoms in the same order, none periodic.
        settings: how the frames were made, as text; stored as `settings` if not empty.

    Raises:
        InputError: frames have no place in this layout.
    """
    if len(frames) == 0:
        raise InputError("`frames` must have at least one frame, got none")
    n_frames, n_atoms = len(frames), int(frames.n_atoms[0])
    same_size = bool(np.all(frames.n_atoms == n_atoms))
    if not same_size or np.any(frames.numbers.reshape(n_frames, n_atoms) != frames.numbers[:n_atoms]):
        raise InputError("`frames` must all have the same atoms in the same order to fit MD17's layout; write extxyz")
    if frames.pbc.any():
        raise InputError("`frames` must not be periodic, for MD17's layout has no cell; write extxyz")
    electrons = {"charges": frames.charges, "magnetic_moments": frames.magnetic_moments}
    kept = {name: values.reshape(n_frames, n_atoms) for name, values in electrons.items() if values is not None}
    if any(np.any(values != values[0]) for values in kept.values()):
        raise InputError("`frames` must all have the same charges and magnetic moments to fit one file; write extxyz")
    arrays = {
        **{name: values[0] for name, values in kept.items()},
        "R": frames.positions.reshape(n_frames, n_atoms, 3),
        "E": frames.energy[:, None] / EV_PER_KCAL_PER_MOL,
        "F": frames.forces.reshape(n_frames, n_atoms, 3) / EV_PER_KCAL_PER_MOL,
        "z": frames.numbers[:n_atoms].astype(np.uint8),
        "theory": np.array(frames.level_of_theory),
        "e_unit": np.array("kcal/mol"),
        "r_unit": np.array("angstrom"),
    }
    if settings:
        arrays["settings"] = np.array(settings)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    write_atomically(path, write)


def write_extxyz(path: Path, frames: LabelledFrames) -> None:
    """Writes frames as extxyz in eV and angstrom, with `level_of_theory` in the comment line.

    Positions and forces have eight decimals.
    """
    structures = [frames.atoms(index) for index in range(len(frames))]
    for atoms in structures:
        atoms.info["level_of_theory"] = frames.level_of_theory
    write_atomically(path, lambda temporary: ase.io.write(temporary, structures, format="extxyz"))
