"""What velocity Verlet tells of a potential: errors of the integrator shrink with the time step, faults do not.

The total energy of velocity Verlet differs from a constant by h^2 times a function of positions and momenta (Hairer,
Lubich and Wanner, Acta Numerica 12, 399, 2003), if the forces are the gradient of a smooth energy. So runs from one
start with different time steps h have fluctuations in proportion to h^2 (the test of Merz and Shirts, PLoS ONE 13,
e0202764, 2018). What another force adds to the energy does not depend on h; a jump of the force adds order h.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

from ggnn_ff.errors import InputError
from ggnn_ff.stability.conservation import LEAST_ROWS, energy_conservation
from ggnn_ff.stability.ensemble import import_physical_validation
from ggnn_ff.stability.gradient import copied, judge
from ggnn_ff.stability.verdict import Verdict
from ggnn_ff.stability.verdicts import DRIFT_THRESHOLD, drift_verdict

EXPONENT: float = 2.0
"""Of the time step in the fluctuation of the total energy, by velocity Verlet and every other integrator of second
order."""

EXPONENT_TOLERANCE: float = 0.3
"""Chosen here: GFN2-xTB of ethanol has an exponent of 2.1 from 0.5 to 2 fs; a jump of the force takes up to 1 from it,
a force that is no gradient 2."""

REVERSIBILITY_THRESHOLD: float = 1e-3
"""Distance from the start over that of the turning point. Chosen here: in 100 fs noise of 1e-5 of the forces comes to
about 1e-5, a self-consistent field that starts from its last solution to 1e-4, a neighbour list that is renewed too
seldom to far more."""

_BLOCKS = 8  # of the jackknife
_ROUNDINGS = 10.0  # of float64; a fluctuation below says nothing
_MEV_PER_EV = 1000.0


@dataclass(frozen=True)
class TimeStepScaling:
    """How the fluctuation of the total energy depends on the time step.

    Attributes:
        timesteps_fs: (M,) increasing, fs.
        fluctuations: (M,) root mean square of the total energy about the fitted line, meV/atom.
        exponent: slope of log(fluctuation) by log(time step), or None if a series is not finite, or constant to
            rounding.
        exponent_error: its standard error.
        drift: of the smallest time step, meV/atom/ps, or None if its series is not finite.
        drift_error: its standard error.
    """

    timesteps_fs: np.ndarray
    fluctuations: np.ndarray
    exponent: float | None
    exponent_error: float | None
    drift: float | None
    drift_error: float | None


def total_energies(atoms: Atoms, timesteps_fs: Sequence[float], duration_fs: float) -> list[np.ndarray]:
    """Runs velocity Verlet at constant energy from one start with each time step.

    Args:
        atoms: with its calculator, momenta and constraints; it is not moved.
        timesteps_fs: (M,) fs, each of which divides the duration.
        duration_fs: of each run, fs.

    Returns:
        For each time step the total energies of the start and after each step, eV.

    Raises:
        InputError: no calculator, no momenta, or a time step that does not divide the duration.
    """
    if not atoms.get_momenta().any():
        raise InputError("`atoms` must have momenta to run at constant energy, got none; set or equilibrate them first")
    totals = []
    for timestep in timesteps_fs:
        n_steps = round(duration_fs / timestep) if timestep > 0 else 0
        if n_steps < 1 or abs(n_steps * timestep - duration_fs) > 1e-6 * duration_fs:
            raise InputError(f"`timesteps_fs` must divide the duration of {duration_fs:g} fs, got {timestep:g}")
        moving = copied(atoms)
        run = VelocityVerlet(moving, timestep * units.fs).irun(n_steps)
        totals.append(np.array([moving.get_total_energy() for _ in run]))
    return totals


def time_step_scaling(
    timesteps_fs: Sequence[float], totals: Sequence[np.ndarray], duration_fs: float, n_atoms: int
) -> TimeStepScaling:
    """Fits the exponent with which the fluctuation of the total energy grows with the time step.

    Its error comes from a jackknife that leaves out one of eight blocks of time of all runs at once: they follow one
    trajectory for long, so that what they sample is common to them. How well a line fits is no part of it, since a
    fluctuation that does not shrink bends the line.

    Args:
        timesteps_fs: (M,) of at least three runs, best in ratios of 2, fs.
        totals: of each run the total energies at equal intervals from begin to end, eV; all runs from one start.
        duration_fs: of each run, fs.
        n_atoms: number of atoms.

    Raises:
        InputError: fewer than three time steps, one that is not positive or comes twice, or too few or short series.
    """
    steps = np.asarray(timesteps_fs, dtype=np.float64)
    _require_comparable(steps, totals)
    order = np.argsort(steps)
    series = [np.asarray(totals[i], dtype=np.float64) for i in order]
    drift = drift_error = exponent = error = None
    if np.isfinite(series[0]).all():
        times = np.linspace(0.0, duration_fs, len(series[0]))
        kept = energy_conservation(times, series[0], np.zeros_like(times), n_atoms)
        drift, drift_error = kept.drift, kept.drift_error
    about_lines = [_without_line(energies) for energies in series]
    fluctuations = _root_mean_squares(about_lines)
    if _fluctuate(about_lines, series):
        blocks = [np.array_split(run, _BLOCKS) for run in about_lines]
        rests = [[np.concatenate(run[:b] + run[b + 1 :]) for run in blocks] for b in range(_BLOCKS)]
        exponent = _fitted_exponent(steps[order], fluctuations)
        without = np.array([_fitted_exponent(steps[order], _root_mean_squares(rest)) for rest in rests])
        error = float(np.sqrt((_BLOCKS - 1) / _BLOCKS * np.sum((without - exponent) ** 2)))
    return TimeStepScaling(steps[order], fluctuations * _MEV_PER_EV / n_atoms, exponent, error, drift, drift_error)


def _require_comparable(steps: np.ndarray, totals: Sequence[np.ndarray]) -> None:
    if len(steps) < 3 or len(np.unique(steps)) < len(steps) or not (steps > 0).all():
        raise InputError(f"`timesteps_fs` must be at least three different positive time steps, got {steps.tolist()}")
    if len(totals) != len(steps):
        raise InputError(f"`totals` must have one series for each of {len(steps)} time steps, got {len(totals)}")
    shortest = min(len(energies) for energies in totals)
    if shortest < LEAST_ROWS:
        raise InputError(f"`totals` must have at least {LEAST_ROWS} energies of each run, got {shortest}; run longer")


def _without_line(energies: np.ndarray) -> np.ndarray:
    """What the least-squares line leaves of energies at equal intervals; NaN if one is not finite."""
    if not np.isfinite(energies).all():
        return np.full(len(energies), np.nan)
    times, centred = np.linspace(-1.0, 1.0, len(energies)), energies - energies[0]
    centred = centred - centred.mean()
    return centred - times * (times @ centred) / (times @ times)


def _root_mean_squares(series: Sequence[np.ndarray]) -> np.ndarray:
    return np.sqrt([np.mean(one**2) for one in series])


def _fluctuate(about_lines: Sequence[np.ndarray], series: Sequence[np.ndarray]) -> bool:
    """Whether all energies are finite and differ from their lines by more than rounding."""
    rounding = np.array([_ROUNDINGS * np.spacing(np.abs(energies).max()) for energies in series])
    return bool((_root_mean_squares(about_lines) > rounding).all())


def _fitted_exponent(steps: np.ndarray, fluctuations: np.ndarray) -> float:
    """Slope of log(fluctuation) by log(step)."""
    x = np.log(steps) - np.log(steps).mean()
    return float(np.sum(x * np.log(fluctuations)) / np.sum(x**2))


def scaling_verdicts(scaling: TimeStepScaling) -> list[Verdict]:
    """Whether the fluctuation of the total energy is the integrator's, and whether a drift is left at the end.

    Args:
        scaling: of velocity Verlet or another integrator of second order.

    Returns:
        One on the exponent, one on the drift of the smallest time step.
    """
    return [_exponent_verdict(scaling), _drift_verdict(scaling)]


def _exponent_verdict(scaling: TimeStepScaling) -> Verdict:
    """Only an exponent that is too small is the potential's fault."""
    name, steps = "exponent of the energy fluctuation", scaling.timesteps_fs
    broken = ~np.isfinite(scaling.fluctuations)
    if broken.any():
        text = f"energies are not finite at a time step of {steps[broken][0]:g} fs"
        text += ", the smallest" if broken[0] else ": not judged, take smaller ones"
        return Verdict(name, None, "", None, False if broken[0] else None, text)
    if scaling.exponent is None or scaling.exponent_error is None:
        return Verdict(name, None, "", None, None, "not measured: the total energy of a run is constant, to rounding")
    missing = EXPONENT - scaling.exponent
    text = (
        f"of the time step, from {steps[0]:g} to {steps[-1]:g} fs; {EXPONENT:g} for a symplectic integrator of second "
        f"order, passes within {EXPONENT_TOLERANCE:g} of it (chosen here: a jump of the force takes up to 1 from it): "
    )
    passed: bool | None = None
    if abs(missing) <= EXPONENT_TOLERANCE:
        passed, meaning = True, "errors of the integrator, which a smaller time step cures"
    elif missing < 0:
        meaning = "not judged, the largest time step is too near the limit of stability, take smaller ones"
    elif missing - 2 * scaling.exponent_error <= EXPONENT_TOLERANCE:
        meaning = "not judged, within twice its error of what passes, run longer"
    else:
        passed, meaning = False, "no time step cures it, the forces are not the gradient of a smooth energy"
    return Verdict(name, scaling.exponent, "", None, passed, text + meaning, scaling.exponent_error)


def _drift_verdict(scaling: TimeStepScaling) -> Verdict:
    name = "energy drift at the smallest time step"
    if scaling.drift is None or scaling.drift_error is None:
        return Verdict(name, None, "meV/atom/ps", DRIFT_THRESHOLD, False, "energies are not finite")
    text = f"slope of the total energy at {scaling.timesteps_fs[0]:g} fs"
    return drift_verdict(name, scaling.drift, scaling.drift_error, DRIFT_THRESHOLD, text)


def convergence_verdict(timesteps_fs: Sequence[float], totals: Sequence[np.ndarray]) -> Verdict:
    """The figure of `physical_validation.integrator.convergence` on the same question, not judged: the exponent is.

    It is given the fluctuations about the fitted lines: a drift is judged apart, by `scaling_verdicts`.

    Args:
        timesteps_fs: (M,) fs.
        totals: of each run the total energies at equal intervals, eV; all runs from one start and of one duration.

    Raises:
        InputError: physical_validation is not installed, or as in `time_step_scaling`.
    """
    steps = np.asarray(timesteps_fs, dtype=np.float64)
    _require_comparable(steps, totals)
    name, module = "time step convergence (physical_validation)", import_physical_validation()
    about_lines = [_without_line(np.asarray(energies, dtype=np.float64)) for energies in totals]
    if not _fluctuate(about_lines, totals):
        text = "not measured: the total energy of a run is constant, to rounding, or not finite"
        return Verdict(name, None, "", None, None, text)
    runs = [
        module.data.SimulationData(dt=step, observables=module.data.ObservableData(constant_of_motion=energies))
        for step, energies in zip(steps, about_lines, strict=True)
    ]
    value = float(module.integrator.convergence(runs, verbose=False))
    text = (
        "largest relative deviation of a ratio of fluctuations about the fitted lines from that of squared time steps, "
        "0.75 where halving the time step does not help; not judged, the exponent is"
    )
    return Verdict(name, value, "", None, None, text)


def reversibility_verdict(
    atoms: Atoms, n_steps: int = 200, timestep_fs: float = 0.5, temperature: float = 300.0, seed: int = 0
) -> Verdict:
    """Velocity Verlet forward, momenta turned round, and as many steps back: the end must be the start.

    It holds for any force that is a function of the positions alone, gradient or not (Hairer, Lubich and Wanner, Acta
    Numerica 12, 399, 2003). It fails for one that depends on what came before, such as by a neighbour list that is
    renewed too seldom, on chance, or on velocities. One that is never renewed is a function of the positions: see
    `symmetry.history_verdicts`.

    Args:
        atoms: with its calculator; momenta are drawn anew.
        n_steps: forward, and back.
        timestep_fs: fs.
        temperature: of the momenta, K.
        seed: of the momenta.

    Raises:
        InputError: there is no calculator.
    """
    moving, random = copied(atoms), np.random.default_rng([seed, 6])
    widths = np.sqrt(units.kB * temperature * moving.get_masses())[:, None]  # of Maxwell and Boltzmann's momenta
    moving.set_momenta(widths * random.standard_normal(moving.positions.shape))
    dynamics = VelocityVerlet(moving, timestep_fs * units.fs)
    dynamics.run(n_steps)
    turn = moving.positions.copy()
    moving.set_momenta(-moving.get_momenta())
    dynamics.run(n_steps)
    value = float(np.linalg.norm(moving.positions - atoms.positions) / np.linalg.norm(turn - atoms.positions))
    text = (
        f"distance from the start after {n_steps} steps forward and back, over that of the turning point; threshold "
        "chosen here, above what the noise of a self-consistent field does"
    )
    return judge("time reversibility", value, 0.0, REVERSIBILITY_THRESHOLD, text)
