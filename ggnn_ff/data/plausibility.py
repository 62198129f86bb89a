"""Questioning units: bond lengths and X-H force constants hardly depend on the molecule and betray the unit.

Three measurements are made on a sample of the frames, in eV and angstrom:

- the distance of every atom to its nearest neighbour over the sum of their covalent radii, close to 1 in
  molecules and solids alike;
- the stretching force constant of X-H bonds, the slope of the force on the hydrogen along the bond against
  the bond length. Hydrogen is light and held by one bond, so this slope is the force constant to a few
  percent;
- for molecules, the difference of energy between similar frames over the work of the forces on the way, close to 1.

A unit mistaken for another changes them by fixed factors. A data set is questioned only if every bit of
evidence agrees on one such factor; no evidence, or mixed evidence, passes.
"""

from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from ggnn_ff.data.frames import MINUS, LabelledFrames
from ggnn_ff.errors import InputError
from ggnn_ff.units import ENERGY_UNITS, LENGTH_UNITS

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
_MIN_PAIRS = 20  # of similar frames; below, their energies say too little
_CORRELATED = 0.6  # energies and work, of data in order by a trapezoid between frames that are not close: 0.8 to 1
_MOST_RATIO = 4.0  # of energies over work; units differ by 20 and more


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
    if MINUS not in frames.level_of_theory:  # a difference of two methods has bonds of any stiffness
        _question_forces(contacts, energy_unit, length_unit, frames.source)
    _question_energies(frames)


def _question_energies(frames: LabelledFrames) -> None:
    """Whether energies differ by the work of the forces, -(F_i + F_j) . (x_j - x_i) / 2, between similar frames."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MAX_FRAMES)).astype(np.int64))
    n_atoms = int(frames.n_atoms[0])
    first = frames.numbers[frames.rows(0)]
    if frames.pbc.any() or len(chosen) < _MIN_PAIRS or n_atoms < 2 or np.any(frames.n_atoms != n_atoms):
        return
    if np.any(frames.numbers.reshape(-1, n_atoms) != first):
        return
    x = frames.positions.reshape(-1, n_atoms, 3)[chosen]
    x = x - x.mean(axis=1, keepdims=True)
    forces, energy = frames.forces.reshape(-1, n_atoms, 3)[chosen], frames.energy[chosen]
    works, differences = [], []
    for i in range(len(chosen)):
        u, _, v = np.linalg.svd(np.einsum("sna,nb->sab", x, x[i]))  # turns each frame onto frame i (Kabsch 1976)
        u[..., -1] *= np.linalg.det(u @ v)[:, None]
        away = np.einsum("sna,sab->snb", x, u @ v) - x[i]
        distance = np.einsum("sna,sna->s", away, away)
        distance[i] = np.inf
        j = int(distance.argmin())
        turned = forces[j] @ (u[j] @ v[j])
        works.append(-0.5 * float(((forces[i] + turned) * away[j]).sum()))
        differences.append(float(energy[j] - energy[i]))
    spread = float(np.sqrt(np.mean(np.square(works)) * np.mean(np.square(differences))))
    if not spread > 0.0:
        return
    correlation = float(np.mean(np.multiply(works, differences))) / spread
    slope = correlation * float(np.sqrt(np.mean(np.square(differences)) / np.mean(np.square(works))))
    if abs(correlation) < _CORRELATED or 1.0 / _MOST_RATIO < slope < _MOST_RATIO:
        return
    said = f"the energies in {frames.source or 'these frames'} differ by {slope:.3g} times the work of the forces"
    if slope < 0:
        raise InputError(f"`energy`: {said} between similar frames, 1 is right: one of both has the wrong sign")
    raise InputError(
        f"`energy`: {said} between similar frames, 1 is right: they are in another unit than the forces; convert them "
        f"in the file (hartree beside eV/angstrom makes {1.0 / ENERGY_UNITS['hartree']:.2g}, kcal/mol "
        f"{1.0 / ENERGY_UNITS['kcal/mol']:.3g})"
    )


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
    advice = {}  # for each unit of force that they look like
    for unit, size in ENERGY_UNITS.items():
        if _all_close(stiffness, assumed / size):
            if unit == energy_unit:
                return
            advice[f"{unit}/{length_unit}"] = f'state energy_unit="{unit}" when reading, or convert the file'
        for other in ("bohr", "nm") if length_unit == "angstrom" else ():
            factor = size / LENGTH_UNITS[other] / assumed
            if (unit, other) != (energy_unit, "bohr") and _all_close(stiffness, 1.0 / factor):  # which is too near
                advice[f"{unit}/{other}"] = f"multiply them in the file by {factor:.6g}, and convert the energies"
    if advice:
        raise InputError(
            f"`energy_unit`: {forces} look like {' or '.join(advice)} beside positions in {length_unit}, not "
            f"{energy_unit}/{length_unit}: taken as {energy_unit}, {text}. "
            + "; ".join(f"If they are {unit}, {what}" for unit, what in advice.items())
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
