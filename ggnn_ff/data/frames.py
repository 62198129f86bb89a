"""Labelled structures in memory: flat arrays, one row per atom or per structure, in eV and angstrom."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols

UNKNOWN_LEVEL = "unknown"
"""The level of theory of files that do not say."""
MINUS = " minus "
"""Between two methods, in the level of theory of their difference."""


@dataclass(frozen=True)
class LabelledFrames:
    """S structures with N atoms in all, with the energy and the forces a reference method gave them.

    Attributes:
        numbers: (N,) int64, atomic numbers.
        positions: (N, 3) float64, angstrom.
        forces: (N, 3) float64, eV/angstrom.
        n_atoms: (S,) int64, atoms in each structure; its sum is N.
        energy: (S,) float64, eV.
        cell: (S, 3, 3) float64, angstrom, rows are cell vectors, zeros where there is none.
        pbc: (S, 3) bool.
        charges: (N,) float64, initial charges of the atoms in e, whose sum is the charge of a structure; None: neutral.
        magnetic_moments: (N,) float64, initial ones of the atoms, in Bohr magnetons, whose sum is the number of
            unpaired electrons; None: none.
        source: where the frames come from, for people (a file name).
        sha256: of the file they were read from, for provenance.
        level_of_theory: such as "PBE/def2-SVP"; "unknown" if the file does not say.
    """

    numbers: np.ndarray
    positions: np.ndarray
    forces: np.ndarray
    n_atoms: np.ndarray
    energy: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    charges: np.ndarray | None = None
    magnetic_moments: np.ndarray | None = None
    source: str = ""
    sha256: str = ""
    level_of_theory: str = UNKNOWN_LEVEL

    def __len__(self) -> int:
        return len(self.n_atoms)

    @cached_property
    def offsets(self) -> np.ndarray:
        """(S + 1,) int64: structure s owns the atoms `offsets[s]:offsets[s + 1]`."""
        return np.concatenate([[0], np.cumsum(self.n_atoms)]).astype(np.int64)

    @property
    def elements(self) -> list[str]:
        """Chemical symbols that occur, by atomic number."""
        return [chemical_symbols[number] for number in np.unique(self.numbers)]

    def rows(self, index: int) -> slice:
        """The rows of the per-atom arrays that belong to structure `index`."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def select(self, indices: np.ndarray) -> "LabelledFrames":
        """The structures at `indices` (any order, int64), as new frames with the same provenance."""
        rows = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in indices]
        atoms = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        return replace(
            self,
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            forces=self.forces[atoms],
            n_atoms=self.n_atoms[indices],
            energy=self.energy[indices],
            cell=self.cell[indices],
            pbc=self.pbc[indices],
            charges=None if self.charges is None else self.charges[atoms],
            magnetic_moments=None if self.magnetic_moments is None else self.magnetic_moments[atoms],
        )

    def with_electrons_of(self, structures: Sequence[Atoms]) -> "LabelledFrames":
        """These frames with the initial charges and magnetic moments of the S structures that they are."""
        charges = np.concatenate([atoms.get_initial_charges() for atoms in structures])
        moments = np.concatenate([atoms.get_initial_magnetic_moments() for atoms in structures])
        return replace(
            self,
            charges=charges if charges.any() else None,
            magnetic_moments=moments if moments.any() else None,
        )

    def atoms(self, index: int) -> Atoms:
        """Structure `index` as ASE Atoms that carries its reference energy and forces."""
        rows = self.rows(index)
        atoms = Atoms(
            numbers=self.numbers[rows],
            positions=self.positions[rows],
            cell=self.cell[index],
            pbc=self.pbc[index],
            charges=None if self.charges is None else self.charges[rows],
            magmoms=None if self.magnetic_moments is None else self.magnetic_moments[rows],
        )
        atoms.calc = SinglePointCalculator(atoms, energy=float(self.energy[index]), forces=self.forces[rows])
        return atoms
