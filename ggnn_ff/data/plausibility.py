"""Questioning units: bond lengths and X-H force constants hardly depend on the molecule and betray the unit.

Two measurements are made on a sample of the frames, both in eV and angstrom:

- the distance of every atom to its nearest neighbour over the sum of their covalent radii, close to 1 in
  molecules and solids alike;
- the stretching force constant of X-H bonds, the slope of the force on the hydrogen along the bond against
  the bond length. Hydrogen is light and held by one bond, so this slope is the force constant to a few
  percent.

A unit mistaken for another changes them by fixed factors. A data set is questioned only if every bit of
evidence agrees on one such factor; no evidence, or mixed evidence, passes.
"""

from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.errors import InputError
from ggnn_ff.units import ANGSTROM_PER_BOHR, ENERGY_UNITS, LENGTH_UNITS

_STRETCH = {  # eV/angstrom^2; harmonic X-H force constants of common hydrides and organic molecules
    5: 22.0,
    6: 30.0,
    7: 40.0,
    8: 49.0,
    9: 60.0,
    14: 17.0,
    15: 20.0,
    16: 26.0,
    17: 32.0,
}
_NOBLE_GASES = (2, 10, 18, 36, 54, 86)  # not held by bonds
_MAX_FRAMES = 100
_MAX_CENTRES = 32  # atoms looked at per frame
_MIN_ATOMS = 8  # below, lengths say too little
_MIN_BONDS = 20  # below, a slope says too little


class _Contacts(NamedTuple):
    """One row for each atom looked at (M in all) and its nearest neighbour.

    Attributes:
        centre: (M,) atomic number.
        neighbour: (M,) atomic number.
        ratio: (M,) distance over the sum of covalent radii.
        length: (M,) distance, angstrom.
        pull: (M,) force on the atom along the bond, away from the neighbour positive, eV/angstrom.
    """

    centre: np.ndarray
    neighbour: np.ndarray
    ratio: np.ndarray
    length: np.ndarray
    pull: np.ndarray


def question_units(frames: LabelledFrames, *, energy_unit: str = "eV", length_unit: str = "angstrom") -> None:
    """Raises if the frames look as if their file used other units than assumed.

    Args:
        frames: as converted to eV and angstrom on the assumption below.
        energy_unit: unit assumed for the file, a name in `units.ENERGY_UNITS`.
        length_unit: unit assumed for the file, a name in `units.LENGTH_UNITS`.

    Raises:
        InputError: naming the unit it looks like and how to state it.
    """
    contacts = _contacts(frames)
    if len(contacts.centre) < _MIN_ATOMS:
        return
    _question_length(contacts, length_unit, frames.source)
    _question_forces(contacts, energy_unit, length_unit, frames.source)


def _question_length(contacts: _Contacts, length_unit: str, source: str) -> None:
    low, median, high = np.percentile(contacts.ratio, [5, 50, 95])
    if low < 1.5 and high > 0.75:  # somewhere two atoms are at a bonded distance
        return
    for unit, angstrom in LENGTH_UNITS.items():
        if unit != length_unit and abs(np.log(median * angstrom / LENGTH_UNITS[length_unit])) < np.log(1.35):
            raise InputError(
                f"`length_unit`: the positions in {source or 'these frames'} look like {unit}, not "
                f"{length_unit}: taken as {length_unit}, atoms are {median:.3g} times the sum of their "
                "covalent radii from their "
                f'nearest neighbour (about 1 is normal). State length_unit="{unit}" when reading, or convert the file'
            )


def _question_forces(contacts: _Contacts, energy_unit: str, length_unit: str, source: str) -> None:
    stiffness = []  # of each kind of X-H bond, relative to what is normal
    text = ""
    for number, normal in _STRETCH.items():
        bonded = (contacts.centre == 1) & (contacts.neighbour == number) & (contacts.ratio < 1.35)
        constant = _force_constant(contacts.length[bonded], contacts.pull[bonded])
        if constant is not None:
            stiffness.append(constant / normal)
            symbol = chemical_symbols[number]
            text = text or (
                f"the {symbol}-H force constant comes out as {constant:.3g} eV/angstrom^2, about {normal:.0f} is normal"
            )
    if not stiffness:
        return
    forces = f"the forces in {source or 'these frames'}"
    if all(0.5 < -ratio < 2 for ratio in stiffness):
        raise InputError(
            f"`forces`: {forces} point the wrong way: they push stretched bonds further apart ({text}). They "
            "look like gradients; forces are minus the gradient: change their sign in the file"
        )
    assumed = ENERGY_UNITS[energy_unit]
    for unit, electronvolt in ENERGY_UNITS.items():
        if unit != energy_unit and _all_close(stiffness, assumed / electronvolt):
            raise InputError(
                f"`energy_unit`: {forces} look like {unit}/{length_unit}, not {energy_unit}/{length_unit}: "
                "taken as "
                f'{energy_unit}, {text}. State energy_unit="{unit}" when reading, or convert the file'
            )
    mixed = ENERGY_UNITS["hartree"] / ANGSTROM_PER_BOHR
    if length_unit == "angstrom" and _all_close(stiffness, assumed / mixed):
        raise InputError(
            f"`energy_unit`: {forces} look like hartree/bohr beside positions in angstrom, not "
            f"{energy_unit}/angstrom: {text}. Multiply them in the file by {mixed / assumed:.6g}, and the "
            f"energies by {ENERGY_UNITS['hartree'] / assumed:.6g} if they are in hartree"
        )


def _all_close(ratios: list[float], factor: float) -> bool:
    return all(ratio > 0 and abs(np.log(ratio / factor)) < np.log(1.36) for ratio in ratios)


def _force_constant(length: np.ndarray, pull: np.ndarray) -> float | None:
    """Minus the slope of the force along a bond against its length, or None where it is ill determined."""
    if len(length) < _MIN_BONDS:
        return None
    length, pull = length - length.mean(), pull - pull.mean()
    if np.sqrt(np.mean(length**2)) < 0.005 or not np.any(pull):
        return None
    covariance = np.mean(length * pull)
    correlation = covariance / np.sqrt(np.mean(length**2) * np.mean(pull**2))
    return float(-covariance / np.mean(length**2)) if abs(correlation) > 0.8 else None


def _contacts(frames: LabelledFrames) -> _Contacts:
    """Nearest neighbours of a sample of the atoms, evenly spread over the frames."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MAX_FRAMES)).astype(np.int64))
    rows = [_contacts_of_frame(frames, int(frame)) for frame in chosen]
    return _Contacts(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _contacts_of_frame(frames: LabelledFrames, index: int) -> _Contacts:
    rows = frames.rows(index)
    numbers, positions, forces = frames.numbers[rows], frames.positions[rows], frames.forces[rows]
    bonded = np.flatnonzero(~np.isin(numbers, _NOBLE_GASES))
    if len(bonded) < 3:  # a diatomic may well be pulled apart on purpose
        bonded = bonded[:0]
    numbers, positions, forces = numbers[bonded], positions[bonded], forces[bonded]
    centres = np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), _MAX_CENTRES)).astype(np.int64))
    steps = [(-1, 0, 1) if periodic else (0,) for periodic in frames.pbc[index]]
    images = np.array(np.meshgrid(*steps)).reshape(3, -1).T @ frames.cell[index]
    radii = covalent_radii[numbers[centres]][:, None] + covalent_radii[numbers][None, :]
    wrapped = _wrap(positions, frames.cell[index], frames.pbc[index])
    best = np.full(len(centres), np.inf)
    neighbour = np.zeros(len(centres), dtype=np.int64)
    vectors = np.zeros((len(centres), 3))
    for image in images:
        away = wrapped[centres][:, None, :] - wrapped[None, :, :] - image  # (centres, atoms, 3)
        ratio = np.linalg.norm(away, axis=-1) / radii
        if not image.any():
            ratio[np.arange(len(centres)), centres] = np.inf
        nearest = ratio.argmin(axis=1) if len(centres) else neighbour
        found = ratio[np.arange(len(centres)), nearest]
        closer = found < best
        best[closer], neighbour[closer] = found[closer], nearest[closer]
        vectors[closer] = away[np.arange(len(centres)), nearest][closer]
    length = np.linalg.norm(vectors, axis=1)
    apart = length > 0  # atoms on top of each other have no direction
    pull = np.einsum("ij,ij->i", forces[centres], vectors)[apart] / length[apart]
    return _Contacts(numbers[centres][apart], numbers[neighbour][apart], best[apart], length[apart], pull)


def _wrap(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Positions moved into the cell along its periodic directions, so that 27 images hold the nearest one."""
    if not pbc.any() or abs(np.linalg.det(cell)) < 1e-12:
        return positions
    fractional = np.linalg.solve(cell.T, positions.T).T
    return positions - np.where(pbc, np.floor(fractional), 0.0) @ cell
