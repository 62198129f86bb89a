"""The two npz layouts of the MD17 family, as arrays in the units of the file."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggnn_ff.errors import InputError


@dataclass(frozen=True)
class Layout:
    """What the arrays of an npz file are called.

    Attributes:
        name: for messages.
        positions: key of (S, A, 3).
        energy: key of (S,) or (S, 1).
        forces: key of (S, A, 3).
        numbers: key of (A,).
        others: keys that real files carry beside these, without meaning for us except `theory` (level of
            theory), `r_unit` and `e_unit` (length and energy unit), `charges` and `magnetic_moments`.
    """

    name: str
    positions: str
    energy: str
    forces: str
    numbers: str
    others: frozenset[str]

    @property
    def required(self) -> tuple[str, str, str, str]:
        """The keys without which the file cannot be read."""
        return (self.positions, self.energy, self.forces, self.numbers)


ELECTRONS = ("charges", "magnetic_moments")  # of the atoms in all frames, (A,); what `write_md17_npz` adds
MD17 = Layout(
    name="MD17",
    positions="R",
    energy="E",
    forces="F",
    numbers="z",
    others=frozenset(
        ["name", "theory", "type", "md5", "code_version", "r_unit", "e_unit", "settings", *ELECTRONS]
        + [f"{array}_{statistic}" for array in "EF" for statistic in ("min", "max", "mean", "var")]
    ),
)
RMD17 = Layout(
    name="rMD17",
    positions="coords",
    energy="energies",
    forces="forces",
    numbers="nuclear_charges",
    others=frozenset(["name", "theory", "md5", "old_indices", "old_energies", "old_forces", "r_unit", "e_unit"]),
)
LAYOUTS = (MD17, RMD17)


@dataclass(frozen=True)
class RawFrames:
    """The arrays of an npz file, in its own units.

    Attributes:
        numbers: (A,).
        positions: (S, A, 3).
        energy: (S,).
        forces: (S, A, 3).
        theory: level of theory, if the file says.
        length_unit: as the file spells it, if it does.
        energy_unit: as the file spells it, if it does.
        charges: (A,), if the file says.
        magnetic_moments: (A,), if the file says.
    """

    numbers: np.ndarray
    positions: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    theory: str | None
    length_unit: str | None
    energy_unit: str | None
    charges: np.ndarray | None
    magnetic_moments: np.ndarray | None


def read_npz(path: Path) -> RawFrames:
    """Reads the arrays of an MD17 or rMD17 npz file; never unpickles.

    Raises:
        InputError: the file is truncated, pickled, of another layout, or its arrays do not fit together.
    """
    try:
        # opened here because numpy leaves the file open when it turns out damaged
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            layout = _recognise(archive.files, path)
            arrays = {key: archive[key] for key in (*layout.required, *ELECTRONS) if key in archive.files}
            theory, length_unit, energy_unit = (
                _text(archive[key]) if key in archive.files else None for key in ("theory", "r_unit", "e_unit")
            )
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:  # RuntimeError: encrypted
        message = f"`path`: {path} is a damaged npz file ({error}); it may be truncated: copy or download it again"
        raise InputError(message) from error
    except InputError:
        raise
    except ValueError as error:
        message = (
            f"`path`: {path} holds pickled Python objects or a damaged array ({error}); unpickling runs code "
            "from the file and is refused: save plain numeric arrays with numpy.savez"
        )
        raise InputError(message) from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise InputError(f"`{key}` in {path} must hold real numbers, got {_kind(array)}")
    numbers, positions, energy, forces = _consistent(layout, arrays, path)
    for key in ELECTRONS:
        if key in arrays and arrays[key].shape != numbers.shape:
            raise InputError(f"`{key}` in {path} must have shape {numbers.shape}, got {arrays[key].shape}")
    electrons = (arrays.get(key) for key in ELECTRONS)
    return RawFrames(numbers, positions, energy, forces, theory, length_unit, energy_unit, *electrons)


def _recognise(keys: list[str], path: Path) -> Layout:
    """The layout these keys belong to: the one of which most required keys are there."""
    layout = max(LAYOUTS, key=lambda candidate: len(set(candidate.required) & set(keys)))
    missing = [key for key in layout.required if key not in keys]
    if missing:
        needed = "; ".join(f"{layout.name} needs {', '.join(layout.required)}" for layout in LAYOUTS)
        raise InputError(
            f"`path`: {path} lacks {_quoted(missing)}. An npz file must have MD17 or rMD17 keys ({needed}); "
            f"it has {', '.join(sorted(keys)) or 'none'}"
        )
    unknown = sorted(set(keys) - set(layout.required) - layout.others)
    if unknown:
        raise InputError(
            f"`path`: {path} has the unknown key {_quoted(unknown)}. Beside {', '.join(layout.required)} a "
            f"file of {layout.name} layout may have {', '.join(sorted(layout.others))}. Remove what is not "
            "needed, or write the data as extxyz if it needs more than this (a cell, structures of different "
            "size)"
        )
    return layout


def _consistent(layout: Layout, arrays: dict[str, np.ndarray], path: Path) -> tuple[np.ndarray, ...]:
    """Numbers (A,), positions (S, A, 3), energy (S,) and forces (S, A, 3), once their shapes agree."""
    positions, energy, forces, numbers = (arrays[key] for key in layout.required)
    if positions.ndim != 3 or positions.shape[2] != 3:
        raise InputError(f"`{layout.positions}` in {path} must have shape (frames, atoms, 3), got {positions.shape}")
    n_frames, n_atoms, _ = positions.shape
    if n_frames == 0 or n_atoms == 0:
        raise InputError(f"`path`: {path} has {n_frames} frames of {n_atoms} atoms; at least one of each is needed")
    if energy.shape == (n_frames, 1):
        energy = energy[:, 0]
    expected = {
        layout.energy: (energy.shape, (n_frames,)),
        layout.forces: (forces.shape, (n_frames, n_atoms, 3)),
        layout.numbers: (numbers.shape, (n_atoms,)),
    }
    for key, (shape, wanted) in expected.items():
        if shape != wanted:
            raise InputError(
                f"`{key}` in {path} must have shape {wanted} to go with `{layout.positions}` of shape "
                f"{positions.shape}, got {shape}"
            )
    if numbers.dtype.kind == "f":
        raise InputError(f"`{layout.numbers}` in {path} must hold whole atomic numbers, got {numbers.dtype}")
    return numbers, positions, energy, forces


def _text(array: Any) -> str | None:
    """The text in a scalar array of str or bytes, or None."""
    if not isinstance(array, np.ndarray) or array.size != 1 or array.dtype.kind not in "SU":
        return None
    value = array.reshape(-1)[0]
    text = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
    return text.strip() or None


def _kind(member: Any) -> str:
    return f"an array of type {member.dtype}" if isinstance(member, np.ndarray) else "no array"


def _quoted(keys: list[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys)
