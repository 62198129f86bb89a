"""What Newton's equations keep constant: total energy, linear momentum, angular momentum."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ggnn_ff.errors import InputError
from ggnn_ff.stability.blocks import chunks

BLOCK_COUNTS = (8, 16, 32)
"""The error of a slope is estimated with each of these numbers of blocks; the largest one is reported."""
LEAST_ROWS = 16
"""Rows of energies below which a slope has no usable error."""

_CONSTANT = 1e-6  # share of the kinetic energy that files may round away
_MEV_PER_EV = 1000.0
_FS_PER_PS = 1000.0
_PS_PER_NS = 1000.0


@dataclass(frozen=True)
class EnergyConservation:
    """How well a simulation keeps its total energy.

    Attributes:
        drift: slope of the total energy, meV/atom/ps.
        drift_error: its standard error, meV/atom/ps.
        thermal_drift: the drift per degree of freedom over kT, 1/ns, None without kinetic energy.
        thermal_drift_error: its standard error, 1/ns.
        fluctuation: root mean square of the total energy about the fitted line, meV/atom.
        fluctuation_ratio: fluctuation over the standard deviation of the kinetic energy, None if that is
            constant but for rounding.
        duration_ps: time between the first and the last row, ps.
    """

    drift: float
    drift_error: float
    thermal_drift: float | None
    thermal_drift_error: float | None
    fluctuation: float
    fluctuation_ratio: float | None
    duration_ps: float


@dataclass(frozen=True)
class MomentumChange:
    """How far a momentum that should be constant moved.

    Attributes:
        largest_change: largest length of the difference from the first frame, in the unit of the data.
        scale: mean over frames of a sum over atoms of what they could contribute, same unit.
        relative: largest_change / scale, 0 when nothing moves.
    """

    largest_change: float
    scale: float
    relative: float


def energy_conservation(
    times_fs: np.ndarray, potential: np.ndarray, kinetic: np.ndarray, n_atoms: int
) -> EnergyConservation:
    """Drift and fluctuation of the total energy E = potential + kinetic.

    The drift is the slope of the least-squares line through E(t). Energies close in time are correlated, so
    its error comes from a jackknife that leaves out one contiguous block at a time (Kuensch, Ann. Stat. 17,
    1217, 1989): with slope_b the slope without block b of n_b,

        error^2 = (n_b - 1) / n_b * sum_b (slope_b - slope)^2.

    It holds when the correlation time is short against a block; the largest estimate over `BLOCK_COUNTS` is
    taken, since a block too short for the correlation estimates too little.

    With kT = 2 <kinetic> / n of n degrees of freedom, the thermal drift is (dE/dt) / (n kT) = (dE/dt) / (2 <kinetic>),
    whatever n is.

    Args:
        times_fs: (K,) increasing, fs.
        potential: (K,) eV.
        kinetic: (K,) eV.
        n_atoms: number of atoms.

    Returns:
        The figures, per atom.

    Raises:
        InputError: if there are fewer than `LEAST_ROWS` rows or the lengths differ.
    """
    if not len(times_fs) == len(potential) == len(kinetic):
        raise InputError(
            "`times_fs`, `potential` and `kinetic` must have one value per row, got "
            f"{len(times_fs)}, {len(potential)} and {len(kinetic)} values"
        )
    if len(times_fs) < LEAST_ROWS:
        raise InputError(
            f"an energy drift needs at least {LEAST_ROWS} rows of energies, got {len(times_fs)}; run longer "
            "or write energies more often"
        )
    times = (times_fs - times_fs[0]) / _FS_PER_PS
    total = (potential + kinetic) * (_MEV_PER_EV / n_atoms)
    total = total - total.mean()  # before the sums, which would otherwise lose digits
    centred = times - times.mean()
    drift = float(np.sum(centred * total) / np.sum(centred**2))
    fluctuation = float(np.sqrt(np.mean((total - drift * centred) ** 2)))
    drift_error = _slope_error(centred, total, drift)
    kinetic_fluctuation, mean_kinetic = (float(f(kinetic)) * _MEV_PER_EV / n_atoms for f in (np.std, np.mean))
    varies = kinetic_fluctuation > _CONSTANT * mean_kinetic
    thermal = _PS_PER_NS / (2.0 * mean_kinetic) if mean_kinetic > 0 else None
    return EnergyConservation(
        drift=drift,
        drift_error=drift_error,
        thermal_drift=None if thermal is None else thermal * drift,
        thermal_drift_error=None if thermal is None else thermal * drift_error,
        fluctuation=fluctuation,
        fluctuation_ratio=fluctuation / kinetic_fluctuation if varies else None,
        duration_ps=float(times[-1]),
    )


def _slope_error(times: np.ndarray, values: np.ndarray, slope: float) -> float:
    """Standard error of a slope from leaving out one block of rows at a time."""
    terms = np.stack([np.ones_like(times), times, values, times**2, times * values])  # (5, K)
    variances = []
    for count in BLOCK_COUNTS:
        if count > len(times) // 2:
            break
        edges = np.linspace(0, len(times), count, endpoint=False).astype(int)
        rest = terms.sum(axis=1)[:, None] - np.add.reduceat(terms, edges, axis=1)  # (5, count)
        n, t, v, tt, tv = rest
        slopes = (n * tv - t * v) / (n * tt - t**2)
        variances.append((count - 1) / count * np.sum((slopes - slope) ** 2))
    return float(np.sqrt(max(variances)))


def moving_atoms(momenta: np.ndarray) -> np.ndarray:
    """Which atoms have a momentum at any time; all of them where none has.

    Args:
        momenta: (T, N, 3).

    Returns:
        (N,) bool.
    """
    moving = np.zeros(momenta.shape[1], dtype=bool)
    for part in chunks(len(momenta), momenta[0].size):
        moving |= np.any(momenta[part] != 0.0, axis=(0, 2))
    return moving if moving.any() else ~moving


def linear_momentum_change(momenta: np.ndarray) -> MomentumChange:
    """Change of the total momentum P = sum_i p_i, relative to the mean of sum_i |p_i|.

    P is constant when the forces sum to zero, that is when the energy does not change under translation.

    Args:
        momenta: (T, N, 3), any unit.
    """
    return _momentum_change(momenta.shape, lambda part: (momenta[part], np.linalg.norm(momenta[part], axis=2)))


def angular_momentum_change(positions: np.ndarray, momenta: np.ndarray, masses: np.ndarray) -> MomentumChange:
    """Change of the angular momentum L = sum_i (r_i - R) x p_i about the centre of mass R.

    It is given relative to the mean of sum_i |r_i - R| |p_i|. L is constant when the torques sum to zero,
    that is when the energy does not change under rotation. In a periodic system it is not conserved.

    Args:
        positions: (T, N, 3), angstrom, not wrapped.
        momenta: (T, N, 3), any unit.
        masses: (N,), dalton.
    """

    def contributions(part: slice) -> tuple[np.ndarray, np.ndarray]:
        centre = np.einsum("n,tnk->tk", masses, positions[part]) / masses.sum()
        velocity = momenta[part].sum(axis=1) / masses.sum()  # of the centre of mass
        inner = momenta[part] - masses[:, None] * velocity[:, None, :]
        arms = positions[part] - centre[:, None, :]
        return np.cross(arms, inner), np.linalg.norm(arms, axis=2) * np.linalg.norm(inner, axis=2)

    return _momentum_change(positions.shape, contributions)


def _momentum_change(
    shape: tuple[int, ...], contributions: Callable[[slice], tuple[np.ndarray, np.ndarray]]
) -> MomentumChange:
    """From what gives, for a block of the (T, N, 3) frames, the contributions of the atoms and what to compare with.

    The former are (t, N, 3), the latter lengths (t, N).
    """
    total, magnitude = np.empty((shape[0], 3)), 0.0
    for part in chunks(shape[0], 3 * shape[1]):
        vectors, lengths = contributions(part)
        total[part] = vectors.sum(axis=1)
        magnitude += float(lengths.sum())
    largest = float(np.linalg.norm(total - total[0], axis=1).max())
    scale = magnitude / shape[0]
    if largest == 0:
        return MomentumChange(largest, scale, 0.0)
    return MomentumChange(largest, scale, largest / scale)
