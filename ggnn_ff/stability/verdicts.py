"""Verdicts on a trajectory: what was measured, against which threshold, and whether it passed."""

from ggnn_ff.bonds import LONGEST_DEVIATION
from ggnn_ff.stability.conservation import (
    LEAST_ROWS,
    MomentumChange,
    angular_momentum_change,
    energy_conservation,
    linear_momentum_change,
    moving_atoms,
)
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.structure import BondDeviations
from ggnn_ff.stability.verdict import Verdict

DRIFT_THRESHOLD: float = 0.5
"""meV/atom/ps. LAMBench counts a drift below this over 10 ps as zero: enough to tell a conservative force
from one that is not. It is the default for potentials of any origin."""

SHIPPED_DRIFT_THRESHOLD: float = 0.01
"""meV/atom/ps over 100 ps: what the potentials that come with ggnn-ff must keep."""

THERMAL_DRIFTS = "OpenMM's user guide has 4e-4 in single, 2e-5 in mixed and 1e-7 in double precision"
"""For orientation: what rounding alone makes of a classical force field at constant energy."""

FLUCTUATION_THRESHOLD: float = 0.1
"""Of the total energy's fluctuation over that of the kinetic energy. Velocity Verlet with the time step h makes it
(w h)^2 / 4 for a vibration of frequency w: 0.1 at h = T / 10, the rule of thumb for the largest time step (Leach,
Molecular Modelling, 2nd edition, 2001, chapter 7). Where kinetic and potential energy are not of one motion, it is
near 1 or above."""

MOMENTUM_THRESHOLD: float = 1e-3
"""Change of the total momentum over the sum of the atoms' momenta, linear and angular. Chosen here: far above
what rounding in float32 does, far below what a force that is not invariant does within picoseconds."""


def _not_conserved(ensemble: str | None) -> str | None:
    """Why conservation laws do not apply, or None if they do."""
    if ensemble in (None, "nve"):
        return None
    return f"not applicable: the thermostat of a {ensemble} run exchanges energy and momentum with the system"


def completion_verdicts(trajectory: Trajectory) -> list[Verdict]:
    """A failed verdict for a run that was stopped; none for others."""
    if trajectory.stopped is None:
        return []
    return [Verdict("run completed", None, "", None, False, trajectory.stopped)]


def energy_verdicts(trajectory: Trajectory, threshold: float) -> list[Verdict]:
    """Drift, also in units of kT, fluctuation and its ratio; or only a drift that says why it was not measured."""
    energies, reason = trajectory.energies, _not_conserved(trajectory.ensemble)
    if reason is None and (energies is None or energies.kinetic is None):
        reason = "not measured: the trajectory has no total energies (potential energies and momenta)"
    elif reason is None and energies is not None and energies.times_fs is None:
        reason = "not measured: the file has no times; give the time between frames in fs"
    elif reason is None and energies is not None and len(energies.potential) < LEAST_ROWS:
        reason = f"not measured: {len(energies.potential)} rows of energies, {LEAST_ROWS} are needed"
    if reason is not None or energies is None or energies.times_fs is None or energies.kinetic is None:
        return [Verdict("energy drift", None, "meV/atom/ps", threshold, None, reason or "not measured")]
    result = energy_conservation(energies.times_fs, energies.potential, energies.kinetic, len(trajectory.numbers))
    ratio, thermal = result.fluctuation_ratio, result.thermal_drift
    text = f"slope of the total energy over {result.duration_ps:.4g} ps"
    if trajectory.ensemble is None:
        text += ", taken as NVE, since the file does not say"
    if thermal is not None:
        text += f"; {thermal:.1e} kT/ns/dof, for which {THERMAL_DRIFTS}"
    return [
        drift_verdict("energy drift", result.drift, result.drift_error, threshold, text),
        Verdict(
            "thermal energy drift",
            thermal,
            "kT/ns/dof",
            None,
            None,
            "the energy drift per degree of freedom, over kT of the mean kinetic energy; not judged",
            result.thermal_drift_error,
        ),
        Verdict(
            "energy fluctuation",
            result.fluctuation,
            "meV/atom",
            None,
            None,
            "root mean square about the fitted line; falls with the square of the time step; not judged",
        ),
        Verdict(
            "energy fluctuation / kinetic",
            ratio,
            "",
            FLUCTUATION_THRESHOLD,
            None if ratio is None else ratio <= FLUCTUATION_THRESHOLD,
            "over the standard deviation of the kinetic energy; the threshold is what velocity Verlet makes of a "
            "vibration at a tenth of its period (Leach, Molecular Modelling, 2001); fails for larger time steps, "
            "forces or energies in other units, wrong masses, and a thermostat",
        ),
    ]


def drift_verdict(name: str, drift: float, error: float, threshold: float, explanation: str) -> Verdict:
    """On a slope of the total energy: judged where twice its standard error leaves no doubt.

    Args:
        name: of the verdict.
        drift: meV/atom/ps.
        error: its standard error, meV/atom/ps.
        threshold: meV/atom/ps.
        explanation: to which the origin of the threshold is added.
    """
    text = f"{explanation}; the threshold was given"
    if threshold == DRIFT_THRESHOLD:
        text = (
            f"{explanation}; LAMBench counts less than {DRIFT_THRESHOLD:g} over 10 ps as zero, the shipped potentials "
            f"keep {SHIPPED_DRIFT_THRESHOLD:g} over 100 ps"
        )
    passed: bool | None = abs(drift) <= threshold
    if abs(abs(drift) - threshold) < 2 * error:
        passed, text = None, f"{text}; not judged: within twice its error of the threshold, run longer"
    return Verdict(name, drift, "meV/atom/ps", threshold, passed, text, error)


def momentum_verdicts(trajectory: Trajectory) -> list[Verdict]:
    """Linear and angular momentum, each measured or with the reason why not."""
    reason = _not_conserved(trajectory.ensemble)
    if reason is None and trajectory.momenta is None:
        reason = "not measured: the trajectory has no momenta"
    elif reason is None and trajectory.momenta is not None and not moving_atoms(trajectory.momenta).all():
        reason = "not applicable: atoms that never move are held from outside"
    angular_reason = reason
    if angular_reason is None and trajectory.pbc.any():
        angular_reason = "not applicable: periodic systems do not conserve angular momentum"
    if angular_reason is None and len(trajectory.numbers) == 1:
        angular_reason = "not applicable: a single atom has none about its own position"
    linear = angular = None
    if reason is None and trajectory.momenta is not None:
        linear = linear_momentum_change(trajectory.momenta)
        if angular_reason is None:
            angular = angular_momentum_change(trajectory.positions, trajectory.momenta, trajectory.masses)
    scale = "largest change over the mean sum of {}; fails when the energy changes under {}"
    return [
        _momentum_verdict("linear momentum", linear, reason or scale.format("|p|", "translation")),
        _momentum_verdict("angular momentum", angular, angular_reason or scale.format("|r| |p|", "rotation")),
    ]


def _momentum_verdict(name: str, change: MomentumChange | None, explanation: str) -> Verdict:
    if change is None:
        return Verdict(name, None, "", MOMENTUM_THRESHOLD, None, explanation)
    passed = change.relative <= MOMENTUM_THRESHOLD
    explanation += "; threshold chosen here, far above what rounding in float32 does"
    return Verdict(name, change.relative, "", MOMENTUM_THRESHOLD, passed, explanation)


def bond_verdict(trajectory: Trajectory, bonds: BondDeviations, has_reference: bool) -> Verdict:
    """Whether all bonds kept their lengths, and the first that did not."""
    name, unit = "largest bond deviation", "angstrom"
    if not bonds.names:
        return Verdict(name, None, unit, LONGEST_DEVIATION, None, "not applicable: no bonds in the first frame")
    if len(trajectory) == 1 and not has_reference:
        text = "not measured: one frame has nothing to be compared with; give more frames or a reference"
        return Verdict(name, None, unit, LONGEST_DEVIATION, None, text)
    origin = "its mean in the reference" if has_reference else "its length in the first frame"
    value = float(bonds.largest.max())
    if bonds.first_frame is None:
        text = f"{bonds.worst}, against {origin}; criterion of arXiv 2210.07237"
        return Verdict(name, value, unit, LONGEST_DEVIATION, True, text)
    when = f"frame {bonds.first_frame}"
    if trajectory.times_fs is not None:
        when += f", {trajectory.times_fs[bonds.first_frame] / 1000.0:.4g} ps"
    text = (
        f"{bonds.broken} is the first to deviate: {bonds.broken_length:.3f} angstrom at {when}, against "
        f"{bonds.broken_reference:.3f}, {origin} (atoms and frames from 0; arXiv 2210.07237)"
    )
    return Verdict(name, value, unit, LONGEST_DEVIATION, False, text)
