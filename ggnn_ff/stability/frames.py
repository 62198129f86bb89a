"""A trajectory in memory: flat arrays in angstrom, eV, fs and dalton."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Energies:
    """Energies along a simulation; they may be logged more often than frames.

    Attributes:
        times_fs: (K,) float64, or None if the file does not say when.
        potential: (K,) float64, eV.
        kinetic: (K,) float64, eV, or None if the file has neither kinetic energies nor momenta.
    """

    times_fs: np.ndarray | None
    potential: np.ndarray
    kinetic: np.ndarray | None

    @property
    def total(self) -> np.ndarray | None:
        """(K,) float64, eV: potential plus kinetic, or None without kinetic energies."""
        return None if self.kinetic is None else self.potential + self.kinetic


@dataclass(frozen=True)
class Trajectory:
    """T frames of the same N atoms.

    Attributes:
        source: where it was read from, for people.
        numbers: (N,) int64, atomic numbers.
        masses: (N,) float64, dalton.
        positions: (T, N, 3) float64, angstrom.
        cell: (T, 3, 3) float64, angstrom, rows are cell vectors, zeros where there is none.
        pbc: (3,) bool.
        times_fs: (T,) float64, or None if unknown.
        momenta: (T, N, 3) float64, in ASE's unit (dalton^(1/2) eV^(1/2)), or None.
        energies: or None if the file has none.
        ensemble: one of `ggnn_ff.dynamics.layout.ENSEMBLES`, or None if the file does not say.
        temperature: target of the thermostat, K, or None if there is none or the file does not say.
        degrees_of_freedom: that share the kinetic energy, or None if the file does not say.
        stopped: why the run that wrote it was stopped, or None if it was not or nobody says.
        notes: what was left out while reading and why, for people.
    """

    source: str
    numbers: np.ndarray
    masses: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    times_fs: np.ndarray | None = None
    momenta: np.ndarray | None = None
    energies: Energies | None = None
    ensemble: str | None = None
    temperature: float | None = None
    degrees_of_freedom: int | None = None
    stopped: str | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)
