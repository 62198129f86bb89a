"""Whether a thermostat made the ensemble it should: temperature, kinetic energies, equipartition.

All of it is about momenta, whose distribution is known whatever the potential: Maxwell and Boltzmann's. The tests of
the distributions are those of physical_validation (Merz and Shirts, PLOS ONE 13, e0202764, 2018). Give the
equilibrated part of a run; nothing is cut off here.
"""

import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

from ggnn_ff import units
from ggnn_ff.bonds import bond_name, bonds
from ggnn_ff.errors import InputError
from ggnn_ff.stability.conservation import BLOCK_COUNTS, LEAST_ROWS, moving_atoms
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.structure import lengths_of_bonds
from ggnn_ff.stability.verdict import Verdict

TEMPERATURE_TOLERANCE: float = 0.02
"""Share of the target. Chosen here: 6 K at 300 K; physical_validation calls deviations of several kelvin usual, and a
time step that is too long for the fastest bond costs more."""

WIDTH_TOLERANCE: float = 0.1
"""Share of the target by which the temperature that belongs to the width of the kinetic energies may be off. Chosen
here: a width is known less well than a mean, and thermostats that rescale velocities are further off."""

EQUIPARTITION_TOLERANCE: float = 0.1
"""Share of the target by which the temperature of a single atom may be off. Chosen here, as for the width."""

SIGNIFICANT: float = 3.0
"""Standard errors; a deviation has to be larger than this to fail. Of sound figures about one in 200 is by chance,
since the errors are estimates themselves."""

SIGNIFICANT_MEAN: float = float(student_t.isf(norm.sf(SIGNIFICANT), BLOCK_COUNTS[0] - 1))
"""The same for the mean of a series, whose error comes from few blocks: Student's distribution has longer tails."""

LEAST_INDEPENDENT: int = 30
"""Independent frames below which neither a width nor its error is worth anything. Chosen here."""

AT_REST: float = 0.02
"""Of the energy per degree of freedom of a common motion over that of all: below it, the motion counts as removed.
Chosen here: a thermostat that drives it gives 1, one that stirs between two removals of it a few per mille."""

_MOST_FRAMES = 1000  # to see which common motions are at rest
_LINEAR = 1e-3  # moment of inertia over the largest, below which a molecule does not turn about that axis
_LARGEST_ATOM_FRAMES = 500_000  # physical_validation goes through them one by one, in Python
_FEW_FRAMES = 50  # to see which bonds keep their length
_RIGID = 1e-3  # angstrom: constraints are more exact, stiff bonds move a hundred times as much; XTC rounds to 0.01
_MOVES = 0.05  # angstrom: atoms that move by less may be held
_SEED = 0  # of the bootstrap, so that a report says the same every time


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean of a series and its standard error, where values close in time may be correlated.

    The error is that of the means of contiguous blocks (Flyvbjerg and Petersen, J. Chem. Phys. 91, 461, 1989), the
    largest over `BLOCK_COUNTS` numbers of blocks: blocks shorter than the correlation time estimate too little.

    Args:
        values: (K,).

    Raises:
        InputError: if there are fewer than `LEAST_ROWS` values.
    """
    if len(values) < LEAST_ROWS:
        raise InputError(f"`values` must have at least {LEAST_ROWS} values for an error, got {len(values)}; run longer")
    errors = []
    for count in BLOCK_COUNTS:
        if count > len(values) // 2:
            break
        means = [block.mean() for block in np.array_split(values, count)]
        errors.append(np.std(means, ddof=1) / math.sqrt(count))
    return float(np.mean(values)), float(max(errors))


def ensemble_verdicts(
    trajectory: Trajectory, temperature: float | None, degrees_of_freedom: int | None
) -> list[Verdict]:
    """Mean temperature, width of the kinetic energies and equipartition against those of the canonical ensemble.

    Of a run without a thermostat only the mean temperature is given, and not judged: its energy decides it.

    Args:
        trajectory: its momenta are used, or its kinetic energies if it has no momenta.
        temperature: target of the thermostat, K; None if nobody says.
        degrees_of_freedom: number of degrees of freedom N of T = 2 E_kin / (N k): 3N where the thermostat moves the
            centre of mass too (Langevin), 3N - 3 if its motion is removed, 3N - 6 if rotation is as well. None for
            what the momenta show, see `moving_degrees_of_freedom`.

    Raises:
        InputError: if `temperature` or `degrees_of_freedom` is out of range, or physical_validation is not installed.
    """
    n_atoms = len(trajectory.numbers)
    if temperature is not None and not 0 < temperature < np.inf:
        raise InputError(f"`temperature` must be positive, in K, got {temperature}; give the target of the thermostat")
    if degrees_of_freedom is not None and not 0 < degrees_of_freedom <= 3 * n_atoms:
        raise InputError(
            f"`degrees_of_freedom` must be from 1 to 3N = {3 * n_atoms}, got {degrees_of_freedom}; give 3N, less 3 if "
            "the motion of the centre of mass is removed, less 6 if rotation is too"
        )
    kinetic = kinetic_energies(trajectory)
    if kinetic is None or len(kinetic) < LEAST_ROWS:
        reason = "not measured: the trajectory has no momenta and no kinetic energies"
        if kinetic is not None:
            reason = f"not measured: {len(kinetic)} kinetic energies, {LEAST_ROWS} are needed"
        return [Verdict("temperature", None, "K", None, None, reason)]
    counted = ""
    if degrees_of_freedom is None:
        if (rigid := _rigid_bond(trajectory)) is not None:
            reason = (
                f"not measured: {rigid} keeps its length as constraints do, and nobody says how many degrees of "
                "freedom there are; give `degrees_of_freedom`"
            )
            return [Verdict("temperature", None, "K", None, None, reason)]
        degrees_of_freedom = moving_degrees_of_freedom(trajectory)
        counted = f"; with {degrees_of_freedom} degrees of freedom, 3N"
        if trajectory.momenta is not None:
            counted += " less the common motions and atoms that are at rest"
    mean, error = mean_and_error(2.0 * kinetic / (degrees_of_freedom * units.KELVIN_TO_EV))
    bath = trajectory.ensemble not in (None, "nve")
    if not bath or temperature is None:
        text = "mean; not judged, since no thermostat sets it" if not bath else "mean; not judged"
        if trajectory.ensemble is None:
            text += ": taken as NVE, since the file does not say"
        verdicts = [Verdict("temperature", mean, "K", None, None, text + counted, error)]
        if bath:
            reason = f"not measured: nobody says the temperature of the {trajectory.ensemble} bath; give `temperature`"
            verdicts.append(Verdict("temperature deviation", None, "K", None, None, reason))
        return verdicts
    text = (
        f"mean of {mean:.1f} K less the target of {temperature:g} K, at most {TEMPERATURE_TOLERANCE:.0%} of it, chosen "
        "here since physical_validation calls deviations of several kelvin usual"
    )
    allowed = TEMPERATURE_TOLERANCE * temperature
    return [
        _deviation("temperature deviation", mean - temperature, error, allowed, text + counted, SIGNIFICANT_MEAN),
        _width_verdict(kinetic, temperature, degrees_of_freedom, n_atoms),
        _equipartition_verdict(trajectory, kinetic, temperature, degrees_of_freedom),
    ]


def moving_degrees_of_freedom(trajectory: Trajectory) -> int:
    """3N, as ASE counts, less what the momenta show to be at rest.

    Those are the 3 of each atom that never moves; if all move, the 3 of the centre of mass, which OpenMM leaves out
    with a `CMMotionRemover`, and without periodicity the 3 of rotation (2 of a linear molecule). Without momenta, and
    for a single atom, it is 3N.
    """
    n_atoms, masses = len(trajectory.numbers), trajectory.masses
    if trajectory.momenta is None or n_atoms == 1:
        return 3 * n_atoms
    if not (moving := moving_atoms(trajectory.momenta)).all():
        return 3 * max(1, int(moving.sum()))
    chosen = np.linspace(0, len(trajectory) - 1, min(len(trajectory), _MOST_FRAMES)).astype(np.int64)
    momenta, positions = trajectory.momenta[chosen], trajectory.positions[chosen]
    still = AT_REST * float(np.einsum("tnk,tnk,n->t", momenta, momenta, 1.0 / masses).mean()) / (3 * n_atoms)
    total = momenta.sum(axis=1)
    if np.einsum("tk,tk->t", total, total).mean() / masses.sum() / 3 > still:
        return 3 * n_atoms
    if np.any(trajectory.pbc):
        return 3 * n_atoms - 3
    turns, inertia = _rotations(positions, masses)
    angular = np.einsum("tnak,tnk->ta", turns, momenta)
    rank = int(np.linalg.matrix_rank(inertia, rtol=_LINEAR, hermitian=True).max())
    rotational = np.einsum("ta,tab,tb->t", angular, np.linalg.pinv(inertia, rcond=_LINEAR, hermitian=True), angular)
    return 3 * n_atoms - 3 - (rank if rotational.mean() / rank <= still else 0)


def _rigid_bond(trajectory: Trajectory) -> str | None:
    """A bond whose length never changes, though its atoms move, or None."""
    if len(trajectory) < LEAST_ROWS:
        return None
    pairs = bonds(trajectory.numbers, trajectory.positions[0], trajectory.cell[0], trajectory.pbc)
    chosen = np.linspace(0, len(trajectory) - 1, min(len(trajectory), _FEW_FRAMES)).astype(np.int64)
    positions, cell = trajectory.positions[chosen], trajectory.cell[chosen]
    moves = np.ptp(positions, axis=0).max(axis=1) > _MOVES
    pairs = pairs[moves[pairs].all(axis=1)]
    if not len(pairs):
        return None
    spread = np.ptp(lengths_of_bonds(positions, pairs, cell, trajectory.pbc), axis=0)
    stiffest = int(spread.argmin())
    return bond_name(trajectory.numbers, pairs[stiffest]) if spread[stiffest] < _RIGID else None


def _rotations(positions: np.ndarray, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a turn about each axis does to each atom, (T, N, 3, 3), and the tensors of inertia (T, 3, 3)."""
    arms = positions - (np.einsum("n,tnk->tk", masses, positions) / masses.sum())[:, None]
    turns = np.cross(np.eye(3), arms[:, :, None])  # the rows of X^T: e_a x r
    return turns, np.einsum("n,tnak,tnbk->tab", masses, turns, turns)


def kinetic_energies(trajectory: Trajectory) -> np.ndarray | None:
    """(K,) eV: sum of p^2 / 2m in each frame, or those of the file if it has no momenta, or None."""
    if trajectory.momenta is not None:
        return 0.5 * np.einsum("tnk,tnk,n->t", trajectory.momenta, trajectory.momenta, 1.0 / trajectory.masses)
    return None if trajectory.energies is None else trajectory.energies.kinetic


def _width_verdict(kinetic: np.ndarray, temperature: float, degrees_of_freedom: int, n_atoms: int) -> Verdict:
    """The temperature at which a canonical ensemble has this standard deviation of E_kin: sqrt(N / 2) k T."""
    name, allowed = "kinetic energy width", WIDTH_TOLERANCE * temperature
    library = import_physical_validation()
    independent = kinetic[:: _stride(kinetic)]
    if len(independent) < LEAST_INDEPENDENT:
        return Verdict(name, None, "K", allowed, None, _too_few(len(independent)))
    data = _simulation_data(library, temperature, n_atoms, 3 * n_atoms - degrees_of_freedom)
    data.observables = library.data.ObservableData(kinetic_energy=independent)
    with _quietly():
        _, errors = library.kinetic_energy.distribution(
            data, verbosity=0, bootstrap_seed=_SEED, data_is_uncorrelated=True
        )
    width = math.sqrt(2.0 / degrees_of_freedom) * float(np.std(independent)) / units.KELVIN_TO_EV
    text = (
        f"a width as at {width:.1f} K less the target of {temperature:g} K, {len(independent)} independent frames, by "
        f"physical_validation; at most {WIDTH_TOLERANCE:.0%}, chosen here, well below what thermostats that rescale "
        "velocities do: they make it too narrow"
    )
    return _deviation(name, width - temperature, _one_error(width - temperature, errors), allowed, text)


def _equipartition_verdict(
    trajectory: Trajectory, kinetic: np.ndarray, temperature: float, degrees_of_freedom: int
) -> Verdict:
    """The atom whose temperature is furthest from the target."""
    name, allowed = "equipartition", EQUIPARTITION_TOLERANCE * temperature
    if trajectory.momenta is None:
        return Verdict(name, None, "K", allowed, None, "not measured: the trajectory has no momenta")
    if not (moving := moving_atoms(trajectory.momenta)).all():
        text = f"not measured: {np.sum(~moving)} atoms never move"
        return Verdict(name, None, "K", allowed, None, text)
    n_atoms = len(trajectory.numbers)
    library = import_physical_validation()
    energies = np.einsum("tnk,tnk->nt", trajectory.momenta, trajectory.momenta)  # up to a factor each
    stride = max(_stride(series) for series in [kinetic, *energies])
    stride = max(stride, -(-energies.size // _LARGEST_ATOM_FRAMES))
    positions = trajectory.positions[::stride]
    if len(positions) < LEAST_INDEPENDENT:
        return Verdict(name, None, "K", allowed, None, _too_few(len(positions)))
    removed = 3 * n_atoms - degrees_of_freedom
    velocities = free_velocities(positions, trajectory.momenta[::stride], trajectory.masses, removed)
    if velocities is None:
        text = f"not measured: with {removed} degrees of freedom removed, not every atom moves in three directions"
        return Verdict(name, None, "K", allowed, None, text)
    data = _simulation_data(library, temperature, n_atoms, 0)
    data.system.mass = trajectory.masses
    data.system.molecule_idx = np.arange(n_atoms)  # each atom counts as a molecule
    data.system.nconstraints_per_molecule = np.zeros(n_atoms)
    data.trajectory = library.data.TrajectoryData(positions, velocities)
    with _quietly():
        results = library.kinetic_energy.equipartition(
            data,
            molec_groups=[[atom] for atom in range(n_atoms)],
            verbosity=0,
            bootstrap_seed=_SEED,
            data_is_uncorrelated=True,
        )
    temperatures = np.einsum("tnk,tnk,n->n", velocities, velocities, trajectory.masses)
    temperatures /= 3 * len(positions) * units.KELVIN_TO_EV
    atom = int(np.abs(temperatures - temperature).argmax())
    deviation = float(temperatures[atom]) - temperature
    error = _one_error(deviation, results[2 * (atom + 1)][0])  # two of all atoms come first, then two of each
    text = (
        f"atom {atom} (from 0) is furthest, at {temperatures[atom]:.1f} K, target {temperature:g} K; "
        f"{len(positions)} independent frames, by physical_validation; at most {EQUIPARTITION_TOLERANCE:.0%}, "
        "chosen here as for the width"
    )
    significant = float(norm.isf(norm.sf(SIGNIFICANT) / n_atoms))  # the largest of N deviates more by chance
    return _deviation(name, deviation, error, allowed, text, significant)


def free_velocities(positions: np.ndarray, momenta: np.ndarray, masses: np.ndarray, removed: int) -> np.ndarray | None:
    """Velocities of atoms, made up for what the removal of common motions took from each of them.

    Where translation is removed, the velocities of atom i have the covariance kT/m_i (1 - m_i/M), and where rotation is
    too, kT/m_i [(1 - m_i/M) 1 - m_i X_i I^-1 X_i^T], with X_i w = w x r_i and the tensor of inertia I; r_i from the
    centre of mass. Multiplied by the inverse root of what stands behind kT/m_i, they are Maxwell-Boltzmann again.

    Args:
        positions: (T, N, 3), angstrom.
        momenta: (T, N, 3), in ASE's unit.
        masses: (N,), dalton.
        removed: 0, 3 (translation) or 6 (translation and rotation).

    Returns:
        (T, N, 3) in ASE's unit; None for another `removed`, or if an atom cannot move in some direction at all.
    """
    velocities = momenta / masses[:, None]
    if removed == 0:
        return velocities
    if removed not in (3, 6) or len(masses) < 2:
        return None
    covariance = np.multiply.outer(1.0 - masses / masses.sum(), np.eye(3))  # (N, 3, 3)
    if removed == 6:
        turns, inertia = _rotations(positions, masses)
        if np.linalg.cond(inertia).max() > 1e6:
            return None  # linear
        rotation = np.einsum("n,tnak,tab,tnbl->tnkl", masses, turns, np.linalg.inv(inertia), turns, optimize=True)
        covariance = covariance - rotation
    values, vectors = np.linalg.eigh(covariance)
    if values.min() < 1e-6:
        return None
    return np.einsum("...ka,...a,...la,...l->...k", vectors, values**-0.5, vectors, velocities, optimize=True)


def _deviation(
    name: str, value: float, error: float, allowed: float, text: str, significant: float = SIGNIFICANT
) -> Verdict:
    """Fails when beyond what is allowed and not by chance; passes when within and known well enough to say so."""
    passed: bool | None = abs(value) <= allowed
    if not passed and abs(value) <= significant * error:
        passed, text = None, f"{text}; not judged: within {significant:.1f} standard errors, run longer"
    elif passed and 2 * error > allowed:
        passed, text = None, f"{text}; not judged: twice its error exceeds the threshold, run longer"
    return Verdict(name, value, "K", allowed, passed, text, error)


def _one_error(deviation: float, in_errors: float) -> float:
    """Standard error, from a deviation and what it is in standard errors; 0 where nothing varies."""
    return abs(deviation) / float(in_errors) if in_errors > 0 else 0.0


def _too_few(count: int) -> str:
    return f"not measured: {count} independent frames, {LEAST_INDEPENDENT} are needed; run longer"


def _stride(series: np.ndarray) -> int:
    """One frame in how many is independent: the statistical inefficiency 1 + 2 tau, rounded up."""
    with _quietly():
        from pymbar.timeseries import statistical_inefficiency  # comes with physical_validation

        constant = np.ptp(series) <= 1e-9 * np.abs(series).max()  # but for rounding, which has correlations of its own
        return 1 if constant else math.ceil(statistical_inefficiency(series))


def _simulation_data(library: ModuleType, temperature: float, n_atoms: int, removed: int) -> Any:
    """What physical_validation wants to know of a run; its energies are eV, its lengths angstrom, times ASE's."""
    return library.data.SimulationData(
        units=library.data.UnitData(
            kb=units.KELVIN_TO_EV,
            energy_conversion=1.0 / units.EV_PER_KJ_PER_MOL,
            length_conversion=1.0 / units.ANGSTROM_PER_NANOMETER,
            volume_conversion=units.ANGSTROM_PER_NANOMETER**-3,
            temperature_conversion=1.0,
            pressure_conversion=1.0,
            time_conversion=1.0 / (1000.0 * units.FEMTOSECOND),
        ),
        ensemble=library.data.EnsembleData("NVT", natoms=n_atoms, volume=-1.0, temperature=temperature),
        system=library.data.SystemData(
            natoms=n_atoms, nconstraints=0, ndof_reduction_tra=removed, ndof_reduction_rot=0
        ),
    )


def import_physical_validation() -> ModuleType:
    """The library, quietly.

    Raises:
        InputError: it is not installed.
    """
    try:
        with _quietly():
            import physical_validation
    except ImportError as error:
        raise InputError(
            "this check needs physical_validation, which is not installed: pip install 'ggnn-ff[analysis]'"
        ) from error
    return physical_validation


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps what the libraries print, log and warn of off the terminal, and their seeds from numpy's global state."""
    logger = logging.getLogger("pymbar")
    level, state = logger.level, np.random.get_state()  # noqa: NPY002  physical_validation draws from it
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            yield
    finally:
        logger.setLevel(level)
        np.random.set_state(state)  # noqa: NPY002
