"""Reading labelled frames: the format is recognised by content, units become eV and angstrom once, here."""

import hashlib
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.io.extxyz import read_extxyz

from ggnn_ff.data.frames import UNKNOWN_LEVEL, LabelledFrames
from ggnn_ff.data.npz_layouts import RawFrames, read_npz
from ggnn_ff.data.plausibility import question_units
from ggnn_ff.errors import InputError, nearest
from ggnn_ff.units import ENERGY_UNITS, LENGTH_UNITS

_SPELLINGS = {  # how files of the MD17 family spell units, in lower case -> name in `units`
    "a": "angstrom",
    "ang": "angstrom",
    "angstrom": "angstrom",
    "å": "angstrom",
    "bohr": "bohr",
    "nm": "nm",
    "ev": "eV",
    "mev": "meV",
    "kcal/mol": "kcal/mol",
    "kj/mol": "kJ/mol",
    "hartree": "hartree",
    "ha": "hartree",
}
_MAX_ATOMIC_NUMBER = 118


def read_frames(
    path: str | Path,
    *,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    level_of_theory: str | None = None,
) -> LabelledFrames:
    """Reads structures with energies and forces from a file, in eV and angstrom.

    Recognised by content, whatever the suffix: MD17 npz (keys R, E, F, z), rMD17 npz (coords, energies,
    forces, nuclear_charges), extxyz, and any other file from which ASE reads energies and forces. The cell of
    a frame that is not periodic in any direction is set to zero.

    Args:
        path: the file.
        energy_unit: unit of the energies in the file, a name in `units.ENERGY_UNITS`; forces are in this unit
            per `length_unit`. Without it: what an npz file says of itself, else kcal/mol for npz and eV for
            the rest.
        length_unit: unit of the positions, a name in `units.LENGTH_UNITS`. Without it: what an npz file says
            of itself, else angstrom.
        level_of_theory: of the labels. Without it: `theory` of an npz file, `level_of_theory` in the comment
            line of an extxyz file, else "unknown".

    Returns:
        The frames, with the SHA-256 of the file.

    Raises:
        InputError: the file is missing, empty, damaged or foreign; its arrays do not fit together; an energy
            or forces are missing; a value is NaN or infinite; or the values are implausible in the units
            assumed.
    """
    path = Path(path)
    _check_unit("energy_unit", energy_unit, ENERGY_UNITS)
    _check_unit("length_unit", length_unit, LENGTH_UNITS)
    if not path.is_file():
        raise InputError(f"`path` must be a file that exists, got {path}{_nearest_file(path)}")
    if path.stat().st_size == 0:
        raise InputError(f"`path`: {path} is empty; a labelled data set is needed")
    with open(path, "rb") as file:
        start = file.read(4096)
    if start.startswith(b"PK\x03\x04"):
        raw = read_npz(path)
        energy_unit = energy_unit or _unit_in_file(raw.energy_unit, ENERGY_UNITS, "e_unit", path) or "kcal/mol"
        length_unit = length_unit or _unit_in_file(raw.length_unit, LENGTH_UNITS, "r_unit", path) or "angstrom"
        frames = _from_arrays(raw)
    elif start.startswith(b"\x93NUMPY"):
        raise InputError(
            f"`path`: {path} is a single numpy array (npy); save positions, energies, forces and atomic "
            "numbers together with numpy.savez(path, R=..., E=..., F=..., z=...)"
        )
    else:
        energy_unit, length_unit = energy_unit or "eV", length_unit or "angstrom"
        frames = _from_atoms(read_structures(path), path)
    return _finish(frames, path, energy_unit, length_unit, level_of_theory)


def read_structures(path: Path) -> list[Atoms]:
    """All frames of a file that ASE reads, extxyz recognised by content.

    Raises:
        InputError: the file is missing, or ASE cannot read it.
    """
    if not path.is_file():
        raise InputError(f"`path` must be a file that exists, got {path}{_nearest_file(path)}")
    try:
        # ASE warns about oddities of single formats; what we need from the file is checked explicitly below.
        with warnings.catch_warnings(action="ignore"):
            if _looks_like_xyz(path):
                _refuse_cut_line(path)
                with open(path, encoding="utf-8") as file:
                    structures = list(read_extxyz(file, index=slice(None)))
            else:
                structures = list(ase.io.iread(path, index=":"))
    except Exception as error:  # ASE's readers raise whatever their parsing happens to raise
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise InputError(
            f"`path`: {path} cannot be read as extxyz or as another format that ASE knows ({reason}); it may "
            "be truncated or of another kind. MD17 or rMD17 npz, or extxyz with energy and forces, is needed"
        ) from error
    if not structures:
        raise InputError(f"`path`: {path} has no frames; at least one is needed")
    return structures


def _refuse_cut_line(path: Path) -> None:
    """Half a number is a number too."""
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            raise ValueError(
                "the last line does not end in a newline, as if it had been cut off; add one if it is whole"
            )


def _looks_like_xyz(path: Path) -> bool:
    """Whether the first line is one whole number, the count of atoms."""
    with open(path, "rb") as file:
        return file.readline(64).strip().isdigit()


def _from_arrays(raw: RawFrames) -> LabelledFrames:
    n_frames, n_atoms, _ = raw.positions.shape
    return LabelledFrames(
        numbers=np.tile(raw.numbers.astype(np.int64), n_frames),
        positions=raw.positions.reshape(-1, 3).astype(np.float64),
        forces=raw.forces.reshape(-1, 3).astype(np.float64),
        n_atoms=np.full(n_frames, n_atoms, dtype=np.int64),
        energy=raw.energy.astype(np.float64),
        cell=np.zeros((n_frames, 3, 3)),
        pbc=np.zeros((n_frames, 3), dtype=bool),
        charges=None if raw.charges is None else np.tile(raw.charges.astype(np.float64), n_frames),
        magnetic_moments=None
        if raw.magnetic_moments is None
        else np.tile(raw.magnetic_moments.astype(np.float64), n_frames),
        level_of_theory=raw.theory or UNKNOWN_LEVEL,
    )


def _from_atoms(structures: list[Atoms], path: Path) -> LabelledFrames:
    energies, forces = [], []
    for index, atoms in enumerate(structures):
        if len(atoms) == 0:
            raise InputError(f"`path`: frame {index} (counted from 0) of {path} has no atoms; remove it")
        results = atoms.calc.results if atoms.calc is not None else {}
        missing = [name for name in ("energy", "forces") if name not in results]
        if missing:
            there = sorted({*results, *atoms.info, *atoms.arrays} - {"numbers", "positions"})
            raise InputError(
                f"`path`: frame {index} (counted from 0) of {path} has no {' and no '.join(missing)}; in "
                "extxyz they must be called `energy` and `forces`. It has "
                f"{', '.join(there) or 'nothing but positions'}: rename what holds them. Isolated atoms for "
                "the reference energies belong in a file of their own"
            )
        energies.append(_numbers(results["energy"], (), "energy", index, path))
        forces.append(_numbers(results["forces"], (len(atoms), 3), "forces", index, path))
    pbc = np.array([atoms.pbc for atoms in structures], dtype=bool)
    cell = np.array([atoms.cell.array for atoms in structures], dtype=np.float64)
    theories = {str(atoms.info["level_of_theory"]) for atoms in structures if "level_of_theory" in atoms.info}
    if len(theories) > 1:
        raise InputError(
            f"`path`: {path} mixes levels of theory ({', '.join(sorted(theories))}); their energies have "
            "nothing in common: split the file, one level each"
        )
    return LabelledFrames(
        numbers=np.concatenate([atoms.numbers for atoms in structures]).astype(np.int64),
        positions=np.concatenate([atoms.positions for atoms in structures]).astype(np.float64),
        forces=np.concatenate(forces),
        n_atoms=np.array([len(atoms) for atoms in structures], dtype=np.int64),
        energy=np.array(energies),
        cell=cell * np.any(pbc, axis=1, keepdims=True)[:, :, None],
        pbc=pbc,
        level_of_theory=theories.pop() if theories else UNKNOWN_LEVEL,
    ).with_electrons_of(structures)


def _numbers(values: Any, shape: tuple[int, ...], name: str, index: int, path: Path) -> np.ndarray:
    """A label as an array of this shape; files may hold text, or columns of another width."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or array.shape != shape:
        what = "one number" if shape == () else f"{shape[1]} numbers for each of {shape[0]} atoms"
        raise InputError(
            f"`{name}` must be {what}, got {values if array is None else array.shape} in frame {index} (counted from "
            f"0) of {path}; correct the file"
        )
    return array


def _finish(
    raw: LabelledFrames, path: Path, energy_unit: str, length_unit: str, level_of_theory: str | None
) -> LabelledFrames:
    """Checks the values, converts them to eV and angstrom, questions the units and records the provenance."""
    _check_values(raw, path)
    energy, length = ENERGY_UNITS[energy_unit], LENGTH_UNITS[length_unit]
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    frames = replace(
        raw,
        positions=raw.positions * length,
        forces=raw.forces * (energy / length),
        energy=raw.energy * energy,
        cell=raw.cell * length,
        source=path.name,
        sha256=sha256,
        level_of_theory=level_of_theory or raw.level_of_theory,
    )
    question_units(frames, energy_unit=energy_unit, length_unit=length_unit)
    return frames


def _check_values(frames: LabelledFrames, path: Path) -> None:
    """Every number finite and every atom an element."""
    per_atom = {"positions": frames.positions, "forces": frames.forces}
    for name, values in per_atom.items():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            frame = int(np.searchsorted(frames.offsets, bad[0], side="right")) - 1
            atom = int(bad[0] - frames.offsets[frame])
            raise InputError(
                f"`{name}` must be finite, got {values[bad[0]].tolist()} for atom {atom} of frame {frame} "
                f"(counted from 0) in {path}; remove the frame or compute it again"
            )
    per_frame = {"energy": frames.energy[:, None], "cell": frames.cell.reshape(-1, 9)}
    for name, values in per_frame.items():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise InputError(
                f"`{name}` must be finite, got {values[bad[0]].tolist()} in frame {int(bad[0])} (counted "
                f"from 0) of {path}; remove the frame or compute it again"
            )
    foreign = frames.numbers[(frames.numbers < 1) | (frames.numbers > _MAX_ATOMIC_NUMBER)]
    if len(foreign):
        raise InputError(
            f"atomic numbers must be from 1 to {_MAX_ATOMIC_NUMBER}, got {int(foreign[0])} in {path}; dummy "
            "atoms have no place in labelled data"
        )


def _check_unit(argument: str, unit: str | None, known: dict[str, float]) -> None:
    if unit is not None and unit not in known:
        raise InputError(f"`{argument}` must be one of {', '.join(known)}, got '{unit}'{nearest(unit, known)}")


def _unit_in_file(spelling: str | None, known: dict[str, float], key: str, path: Path) -> str | None:
    if spelling is None:
        return None
    unit = _SPELLINGS.get(spelling.lower())
    if unit not in known:
        argument = "energy_unit" if known is ENERGY_UNITS else "length_unit"
        raise InputError(
            f"`{key}` in {path} must be one of {', '.join(known)}, got '{spelling}'; state the unit: {argument}=\"...\""
        )
    return unit


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (the folder {path.parent} does not exist)"
    return nearest(path.name, [entry.name for entry in path.parent.iterdir()])
