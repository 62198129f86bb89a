"""A check of a trajectory: everything that can be said of it, as figures and verdicts."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ggnn_ff.bonds import LONGEST_DEVIATION
from ggnn_ff.dynamics.layout import ENSEMBLES
from ggnn_ff.errors import InputError
from ggnn_ff.stability.consistency import length_verdict, velocity_verdict
from ggnn_ff.stability.dihedrals import dihedral_distributions, dihedral_verdict
from ggnn_ff.stability.ensemble import ensemble_verdicts
from ggnn_ff.stability.liquids import (
    COLLAPSE_THRESHOLD,
    Diffusion,
    RadialDistributions,
    collapse_verdict,
    diffusion,
    diffusion_verdicts,
    radial_distribution_verdicts,
    radial_distributions,
)
from ggnn_ff.stability.structure import (
    BondDeviations,
    bond_deviations,
    distance_distribution,
    distribution_error,
)
from ggnn_ff.stability.topology import same_atoms, topology_verdicts
from ggnn_ff.stability.trajectory import Trajectory, read_trajectory
from ggnn_ff.stability.verdict import Verdict
from ggnn_ff.stability.verdicts import (
    DRIFT_THRESHOLD,
    bond_verdict,
    completion_verdicts,
    energy_verdicts,
    momentum_verdicts,
)
from ggnn_ff.stability.vibrations import density_of_states_verdict, vibrational_spectrum

LAST_WAVENUMBER: float = 5000.0
"""1/cm, where the spectra that are shown end; no molecule vibrates faster."""

_MOST_DISTANCES = 50_000_000  # in an h(r); longer trajectories are thinned, which the report says
_MOST_RADIAL_DISTANCES = 10_000_000  # in all g(r), whose bins are wider
_MOST_POINTS = 200  # of a mean square displacement


@dataclass(frozen=True)
class Report:
    """Everything that a check found.

    Attributes:
        trajectory: what was checked.
        verdicts: one per check, those that do not apply too.
        bonds: deviations of the bonds.
        distances: (n_bins,) angstrom, centres of the bins of the distance distribution.
        distribution: (n_bins,) 1/angstrom, h(r) of the trajectory.
        reference_distribution: (n_bins,) 1/angstrom, h(r) of the reference, or None.
        radial: g(r) of a trajectory that is periodic in three directions, or None.
        reference_radial: g(r) of the reference, or None.
        diffusion: mean square displacements of the elements of a periodic trajectory, if they could be measured.
        spectrum: wavenumbers, 1/cm, and vibrational density of states, cm, or None.
        reference_spectrum: those of the reference, or None.
    """

    trajectory: Trajectory
    verdicts: tuple[Verdict, ...]
    bonds: BondDeviations
    distances: np.ndarray
    distribution: np.ndarray
    reference_distribution: np.ndarray | None
    radial: RadialDistributions | None = None
    reference_radial: RadialDistributions | None = None
    diffusion: tuple[Diffusion, ...] = ()
    spectrum: tuple[np.ndarray, np.ndarray] | None = None
    reference_spectrum: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def passed(self) -> bool:
        """Whether no verdict failed."""
        return all(verdict.passed is not False for verdict in self.verdicts)

    @property
    def summary(self) -> str:
        """FAILED, inconclusive or passed, and on how many checks that rests.

        Inconclusive is what fails nothing but leaves everything, or at constant energy the drift, without a verdict.
        """
        checks = [verdict for verdict in self.verdicts if verdict.threshold is not None or verdict.passed is not None]
        judged = [verdict.name for verdict in checks if verdict.passed is not None]
        counted = f"{len(judged)} of {len(checks)} checks judged"
        if not self.passed:
            return f"FAILED, {counted}"
        if not judged or (self.trajectory.ensemble in (None, "nve") and "energy drift" not in judged):
            return f"inconclusive: {counted}, the energy drift not among them; the verdicts say why"
        return f"passed, {counted}"

    def to_dict(self) -> dict[str, Any]:
        """The figures, verdicts and short curves in plain types for JSON; without the series of each frame."""
        trajectory, bonds = self.trajectory, self.bonds
        first_ps = None
        if bonds.first_frame is not None and trajectory.times_fs is not None:
            first_ps = float(trajectory.times_fs[bonds.first_frame]) / 1000.0
        return {
            "source": trajectory.source,
            "n_atoms": len(trajectory.numbers),
            "n_frames": len(trajectory),
            "ensemble": trajectory.ensemble,
            "notes": list(trajectory.notes),
            "passed": self.passed,
            "summary": self.summary,
            "first_broken_bond": None
            if bonds.first_frame is None
            else {
                "bond": bonds.broken,
                "frame": bonds.first_frame,
                "time_ps": first_ps,
                "length_angstrom": bonds.broken_length,
                "reference_angstrom": bonds.broken_reference,
            },
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "curves": self._curves(),
        }

    def _curves(self) -> dict[str, dict[str, list[float]]]:
        """What there is of g(r), mean square displacements and density of states, to four digits."""
        curves: dict[str, dict[str, np.ndarray]] = {}
        if self.radial is not None:
            curves["radial distribution functions"] = {"r (angstrom)": self.radial.distances, **self.radial.functions}
        if self.diffusion:
            times = self.diffusion[0].times_fs
            some = np.unique(np.linspace(0, len(times) - 1, _MOST_POINTS).astype(np.int64))
            squares = {f"{one.element} (angstrom^2)": one.mean_square_displacement[some] for one in self.diffusion}
            curves["mean square displacement"] = {"time (ps)": times[some] / 1000.0, **squares}
        if self.spectrum is not None:
            wavenumbers, density = self.spectrum
            some = np.flatnonzero(wavenumbers <= LAST_WAVENUMBER)
            curves["density of states"] = {"wavenumber (1/cm)": wavenumbers[some], "density (cm)": density[some]}
        return {
            title: {name: [float(f"{value:.4g}") for value in values] for name, values in columns.items()}
            for title, columns in curves.items()
        }


def check_trajectory(
    path: str | Path,
    *,
    reference: str | Path | None = None,
    topology: str | Path | None = None,
    frame_interval_fs: float | None = None,
    ensemble: str | None = None,
    temperature: float | None = None,
    degrees_of_freedom: int | None = None,
    drift_threshold: float = DRIFT_THRESHOLD,
) -> Report:
    """Checks a trajectory file or a run folder; see `check`.

    Args:
        path: as for `read_trajectory`.
        reference: trajectory of the same atoms from a reference method, or None.
        topology: as for `read_trajectory`; used for the reference too.
        frame_interval_fs: time between frames of `path`, fs, if the file does not have it.
        ensemble: one of `ENSEMBLES`, for files that do not say.
        temperature: of the bath, K, for files that do not say.
        degrees_of_freedom: that share the kinetic energy, for files that do not say.
        drift_threshold: meV/atom/ps, largest drift that passes.

    Raises:
        InputError: if a file cannot be used or an argument is out of range.
    """
    trajectory = read_trajectory(path, topology, frame_interval_fs=frame_interval_fs)
    expected = None if reference is None else read_trajectory(reference, topology)
    return check(
        trajectory,
        reference=expected,
        ensemble=ensemble,
        temperature=temperature,
        degrees_of_freedom=degrees_of_freedom,
        drift_threshold=drift_threshold,
    )


def check(
    trajectory: Trajectory,
    *,
    reference: Trajectory | None = None,
    ensemble: str | None = None,
    temperature: float | None = None,
    degrees_of_freedom: int | None = None,
    drift_threshold: float = DRIFT_THRESHOLD,
) -> Report:
    """Every check that the data of a trajectory allow.

    Args:
        trajectory: frames, and energies and momenta where there are any.
        reference: gives the mean bond lengths and h(r) to compare with; without it the first frame gives the
            bond lengths. Its atoms may be numbered otherwise; they are told by elements and bonds.
        ensemble: one of `ENSEMBLES`, for trajectories that do not say. If neither says, the conservation
            laws are judged as for NVE.
        temperature: of the bath, K, for trajectories that do not say; needs an ensemble that has one.
        degrees_of_freedom: see `ensemble_verdicts`, for trajectories that do not say.
        drift_threshold: meV/atom/ps, largest drift that passes.

    Raises:
        InputError: if the reference has other atoms, `ensemble`, `temperature` or `degrees_of_freedom` contradicts the
            trajectory or is unknown, or a number is not positive.
    """
    if not 0 < drift_threshold < np.inf:
        raise InputError(f"`drift_threshold` must be positive, in meV/atom/ps, got {drift_threshold}")
    if reference is not None:
        reference = _renumbered(reference, trajectory)
    trajectory = replace(trajectory, ensemble=_ensemble(trajectory, ensemble))
    trajectory = replace(trajectory, temperature=_temperature(trajectory, temperature))
    trajectory = replace(trajectory, degrees_of_freedom=_degrees_of_freedom(trajectory, degrees_of_freedom))
    bonds = bond_deviations(
        trajectory.numbers,
        trajectory.positions,
        trajectory.cell,
        trajectory.pbc,
        threshold=LONGEST_DEVIATION,
        reference=None if reference is None else (reference.positions, reference.cell),
    )
    frames, thinned = _thinned(trajectory, _MOST_DISTANCES)
    distances, distribution = distance_distribution(frames.positions, frames.cell, frames.pbc)
    spectrum = vibrational_spectrum(trajectory)
    displacements = diffusion(trajectory) if trajectory.pbc.all() else []
    report = Report(
        trajectory,
        (),
        bonds,
        distances,
        distribution,
        None,
        radial=_radial(trajectory),
        diffusion=() if isinstance(displacements, str) else tuple(displacements),
        spectrum=None if isinstance(spectrum, str) else spectrum,
    )
    verdicts = [
        *completion_verdicts(trajectory),
        *energy_verdicts(trajectory, drift_threshold),
        *momentum_verdicts(trajectory),
        velocity_verdict(trajectory),
        length_verdict(trajectory),
        bond_verdict(trajectory, bonds, reference is not None),
        *topology_verdicts(trajectory),
    ]
    verdicts += ensemble_verdicts(trajectory, trajectory.temperature, trajectory.degrees_of_freedom)
    if trajectory.pbc.all():
        verdicts += diffusion_verdicts(displacements)
    if reference is None:
        if isinstance(spectrum, str):
            verdicts.append(Verdict("density of states", None, "", None, None, f"not measured: {spectrum}"))
        return replace(report, verdicts=tuple(verdicts))
    return _against_reference(replace(report, verdicts=tuple(verdicts)), reference, spectrum, thinned)


def _renumbered(reference: Trajectory, trajectory: Trajectory) -> Trajectory:
    """The reference with its atoms in the order of the trajectory."""
    first, other = (
        Atoms(one.numbers, one.positions[0], cell=one.cell[0], pbc=one.pbc) for one in (trajectory, reference)
    )
    order = same_atoms(first, other)
    if order is None:
        if np.array_equal(reference.numbers, trajectory.numbers):  # one of them has broken or formed a bond
            return reference
        raise InputError(
            f"`reference` must have the same atoms as {trajectory.source}, but {reference.source} has others; give a "
            "trajectory of the same system"
        )
    if np.array_equal(order, np.arange(len(order))):
        return reference
    return replace(
        reference,
        numbers=reference.numbers[order],
        masses=reference.masses[order],
        positions=reference.positions[:, order],
        momenta=None if reference.momenta is None else reference.momenta[:, order],
    )


def _against_reference(
    report: Report, reference: Trajectory, spectrum: tuple[np.ndarray, np.ndarray] | str, thinned: str
) -> Report:
    """The report with what needs both: angles, vibrations, distances, and of liquids the radial distributions."""
    trajectory = report.trajectory
    frames, _ = _thinned(reference, _MOST_DISTANCES)
    expected = distance_distribution(frames.positions, frames.cell, frames.pbc)[1]
    expected_spectrum = vibrational_spectrum(reference)
    verdicts = [
        dihedral_verdict(dihedral_distributions(trajectory, reference)),
        density_of_states_verdict(spectrum, expected_spectrum),
    ]
    radial = _radial(reference)
    if report.radial is not None and radial is not None:
        verdicts.append(collapse_verdict(trajectory, reference, radial))
        verdicts += radial_distribution_verdicts(report.radial, radial)
    elif report.radial is not None:
        reason = f"not applicable: {reference.source} is not periodic in three directions and has no density"
        verdicts.append(Verdict("liquid structure", None, "angstrom", COLLAPSE_THRESHOLD, None, reason))
    explanation = f"integral of |h - h_reference| over r, from 0 to 2 (arXiv 2210.07237); not judged{thinned}"
    error = distribution_error(report.distribution, expected)
    verdicts.append(Verdict("distance distribution error", error, "", None, None, explanation))
    return replace(
        report,
        verdicts=(*report.verdicts, *verdicts),
        reference_distribution=expected,
        reference_radial=radial,
        reference_spectrum=None if isinstance(expected_spectrum, str) else expected_spectrum,
    )


def _ensemble(trajectory: Trajectory, given: str | None) -> str | None:
    if given is not None and given not in ENSEMBLES:
        raise InputError(f"`ensemble` must be one of {', '.join(ENSEMBLES)}, got {given!r}")
    if given is not None and trajectory.ensemble is not None and given != trajectory.ensemble:
        raise InputError(
            f"`ensemble` must agree with {trajectory.source}, which was run as {trajectory.ensemble!r}, "
            f"got {given!r}; leave it out"
        )
    return given or trajectory.ensemble


def _temperature(trajectory: Trajectory, given: float | None) -> float | None:
    if given is not None and trajectory.ensemble in (None, "nve"):
        baths = " or ".join(name for name in ENSEMBLES if name != "nve")
        raise InputError(
            f"`temperature` must be that of a bath, but {trajectory.source} is taken as NVE; give `ensemble` too: "
            f"{baths}"
        )
    if given is not None and trajectory.temperature not in (None, given):
        raise InputError(
            f"`temperature` must agree with {trajectory.source}, which was run at {trajectory.temperature:g} K, got "
            f"{given:g} K; leave it out"
        )
    return trajectory.temperature if given is None else given


def _degrees_of_freedom(trajectory: Trajectory, given: int | None) -> int | None:
    if given is not None and trajectory.degrees_of_freedom not in (None, given):
        raise InputError(
            f"`degrees_of_freedom` must agree with {trajectory.source}, which says {trajectory.degrees_of_freedom}, "
            f"got {given}; leave it out"
        )
    return trajectory.degrees_of_freedom if given is None else given


def _radial(trajectory: Trajectory) -> RadialDistributions | None:
    """g(r) where there is a density."""
    return radial_distributions(_thinned(trajectory, _MOST_RADIAL_DISTANCES)[0]) if trajectory.pbc.all() else None


def _thinned(trajectory: Trajectory, most: int) -> tuple[Trajectory, str]:
    """Frames with at most so many distances between atoms, and what to say if those are not all frames."""
    n_atoms = len(trajectory.numbers)
    stride = max(1, -(-len(trajectory) * n_atoms * (n_atoms - 1) // 2 // most))
    frames = replace(trajectory, positions=trajectory.positions[::stride], cell=trajectory.cell[::stride])
    return frames, "" if stride == 1 else f"; one frame in {stride} was used"
