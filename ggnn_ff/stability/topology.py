"""What becomes of molecules in a simulation: bonds that break and form, fragments that leave, the time to collapse."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ggnn_ff.bonds import BOND_FACTOR, LONGEST_DEVIATION, bond_name, bonds
from ggnn_ff.errors import InputError
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.liquids import nearest_images, smallest_height
from ggnn_ff.stability.structure import bond_deviations, lengths_of_bonds
from ggnn_ff.stability.verdict import Verdict

EVAPORATION_DISTANCE: float = 6.0
"""angstrom. A fragment has evaporated when no atom of it is closer to the rest than this. Chosen here: twice the
distance of atoms that touch, so that nothing is between, and usual cutoffs leave no force across the gap."""

_CHUNK_VALUES = 2_000_000  # distances held at once
_MOST_ATOMS_IN_PAIRS = 200
_SHOWN = 5  # events that an explanation lists


@dataclass(frozen=True)
class Event:
    """Something that happened in a trajectory.

    Attributes:
        name: of a bond, such as "C1-H4", or of a fragment, such as "H2O (atoms 3, 4, 5)"; atoms count from 0.
        frame: first frame where it is so, from 0.
        time_fs: of that frame, or None if the trajectory has no times.
    """

    name: str
    frame: int
    time_fs: float | None

    def __str__(self) -> str:
        when = "" if self.time_fs is None else f", {self.time_fs / 1000.0:.4g} ps"
        return f"{self.name} at frame {self.frame}{when}"


def _event(trajectory: Trajectory, name: str, frame: int) -> Event:
    return Event(name, frame, None if trajectory.times_fs is None else float(trajectory.times_fs[frame]))


def components(n_atoms: int, pairs: np.ndarray) -> np.ndarray:
    """Numbers (N,) of the connected component of each atom, from bonds (B, 2)."""
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n_atoms, n_atoms))
    return connected_components(graph, directed=False)[1]


def broken_bonds(trajectory: Trajectory) -> list[Event]:
    """Bonds of the first frame that become longer than there by `LONGEST_DEVIATION`, in the order of breaking."""
    numbers, cell, pbc = trajectory.numbers, trajectory.cell, trajectory.pbc
    pairs = bonds(numbers, trajectory.positions[0], cell[0], pbc)
    first = np.full(len(pairs), len(trajectory))  # frame where each breaks
    start_lengths = lengths_of_bonds(trajectory.positions[:1], pairs, cell[:1], pbc)
    chunk = max(1, _CHUNK_VALUES // max(1, len(pairs)))
    for start in range(0, len(trajectory), chunk):
        part = slice(start, start + chunk)
        long = lengths_of_bonds(trajectory.positions[part], pairs, cell[part], pbc) > start_lengths + LONGEST_DEVIATION
        first = np.where(long.any(axis=0), np.minimum(first, start + long.argmax(axis=0)), first)
    return [
        _event(trajectory, bond_name(numbers, pairs[bond]), int(first[bond]))
        for bond in np.argsort(first, kind="stable")
        if first[bond] < len(trajectory)
    ]


def formed_bonds(trajectory: Trajectory) -> list[Event]:
    """Pairs of atoms that are no bond in the first frame and come as close as one (`bonds`), in that order."""
    known: set[tuple[int, int]] = {(int(i), int(j)) for i, j in _bonds(trajectory, 0)}
    events = []
    for frame in _frames_with_close_pairs(trajectory, known):
        for pair in _bonds(trajectory, frame):
            if (i_j := (int(pair[0]), int(pair[1]))) not in known:
                known.add(i_j)
                events.append(_event(trajectory, bond_name(trajectory.numbers, pair), frame))
    return events


def _frames_with_close_pairs(trajectory: Trajectory, known: set[tuple[int, int]]) -> Iterable[int]:
    """Frames after the first where a pair that is no bond in it may be one: all, where looking is not cheap."""
    n_atoms = len(trajectory.numbers)
    if n_atoms > _MOST_ATOMS_IN_PAIRS or trajectory.pbc.any():
        return range(1, len(trajectory))
    first, second = np.triu_indices(n_atoms, k=1)
    unknown = np.array([pair not in known for pair in zip(first.tolist(), second.tolist(), strict=True)], dtype=bool)
    first, second = first[unknown], second[unknown]
    radii = BOND_FACTOR * covalent_radii[trajectory.numbers]
    squares = (radii[first] + radii[second]) ** 2
    found: list[int] = []
    chunk = max(1, _CHUNK_VALUES // max(1, len(first)))
    for start in range(1, len(trajectory), chunk):
        positions = trajectory.positions[start : start + chunk]
        vectors = positions[:, first] - positions[:, second]
        close = (np.einsum("tpk,tpk->tp", vectors, vectors) < squares).any(axis=1)
        found += (start + np.flatnonzero(close)).tolist()
    return found


def evaporated_fragments(trajectory: Trajectory) -> list[Event] | str:
    """Molecules, or pieces of them, that are `EVAPORATION_DISTANCE` or more from the rest.

    Atoms closer than that are linked; the largest group of linked atoms is the rest, and what is not in it has
    evaporated, each piece that bonds hold together by itself. What has left is not named again if it breaks up.

    Returns:
        The fragments in the order of leaving, or why there is no answer.
    """
    if trajectory.pbc.any() and (
        not trajectory.pbc.all() or smallest_height(trajectory.cell) < 2 * EVAPORATION_DISTANCE
    ):
        return f"the cell must be periodic in all directions and {2 * EVAPORATION_DISTANCE:g} angstrom high for a gap"
    n_atoms = len(trajectory.numbers)
    gone = np.zeros(n_atoms, dtype=bool)
    events: list[Event] = []
    chunk = max(1, _CHUNK_VALUES // n_atoms**2)
    for start in range(0, len(trajectory), chunk):
        positions, cell = trajectory.positions[start : start + chunk], trajectory.cell[start : start + chunk]
        vectors = (positions[:, None] - positions[:, :, None]).reshape(len(positions), -1, 3)
        vectors = nearest_images(vectors, cell, trajectory.pbc)
        linked = np.einsum("tpk,tpk->tp", vectors, vectors) < EVAPORATION_DISTANCE**2
        linked = linked.reshape(-1, n_atoms, n_atoms)
        for frame in np.flatnonzero(~linked.all(axis=2).any(axis=1)).tolist():  # no atom is linked to all others
            _, groups = connected_components(linked[frame], directed=False)
            outside = groups != np.bincount(groups).argmax()
            if start + frame == 0 and outside.any():
                return f"the first frame is in parts already, {EVAPORATION_DISTANCE:g} angstrom or more apart"
            if not np.any(outside & ~gone):
                continue
            pieces = components(n_atoms, _bonds(trajectory, start + frame))
            for piece in np.unique(pieces[outside & ~gone]):
                atoms = np.flatnonzero(pieces == piece)
                formula = Atoms(numbers=trajectory.numbers[atoms]).get_chemical_formula()
                name = f"{formula} (atoms {', '.join(map(str, atoms))})"
                events.append(_event(trajectory, name, start + frame))
            gone |= outside
    return events


def _bonds(trajectory: Trajectory, frame: int) -> np.ndarray:
    return bonds(trajectory.numbers, trajectory.positions[frame], trajectory.cell[frame], trajectory.pbc)


def topology_verdicts(trajectory: Trajectory) -> list[Verdict]:
    """Numbers of bonds broken and formed and of fragments that left; all should be 0 where no reaction is expected."""
    checks = {
        "bonds broken": (broken_bonds(trajectory), f"longer than in the first frame by {LONGEST_DEVIATION} angstrom"),
        "bonds formed": (formed_bonds(trajectory), "as close as a bond and not bonded in the first frame"),
        "evaporated fragments": (
            evaporated_fragments(trajectory),
            f"no atom closer than {EVAPORATION_DISTANCE:g} angstrom to the rest",
        ),
    }
    verdicts = []
    for name, (events, text) in checks.items():
        if len(trajectory) == 1:
            events = "one frame has nothing to be compared with"
        if isinstance(events, str):
            verdicts.append(Verdict(name, None, "", 0.0, None, f"not measured: {events}"))
            continue
        if events:
            text += ": " + "; ".join(map(str, events[:_SHOWN]))
        if len(events) > _SHOWN:
            text += f"; and {len(events) - _SHOWN} more"
        verdicts.append(Verdict(name, float(len(events)), "", 0.0, not events, text))
    return verdicts


@dataclass(frozen=True)
class CollapseTimes:
    """When the runs of one system, from several seeds, lost their structure.

    Attributes:
        times_ps: one per run: when a bond first deviated, or how long the run lasted if none did.
        collapsed: one per run: whether any did.
        mean_ps: of `times_ps`.
        error_ps: its standard error, None for a single run.
    """

    times_ps: tuple[float, ...]
    collapsed: tuple[bool, ...]
    mean_ps: float
    error_ps: float | None


def collapse_times(trajectories: Sequence[Trajectory], reference: Trajectory | None = None) -> CollapseTimes | str:
    """Time until a bond is further than `LONGEST_DEVIATION` from its reference length, as in arXiv 2210.07237.

    As there, a run that keeps its bonds counts with its length, so that the mean is a lower bound. One that was stopped
    for another reason collapsed when it stopped.

    Args:
        trajectories: one per seed.
        reference: gives the mean bond lengths; without it the first frame of each run does.

    Returns:
        The times, or why there are none.

    Raises:
        InputError: if there is no trajectory, or the reference has other atoms or loses a bond itself.
    """
    if not trajectories:
        raise InputError("`trajectories` must have at least one trajectory, got none")
    times, collapsed = [], []
    for run in trajectories:
        if run.times_fs is None:
            return f"{run.source} has no times; give the time between frames in fs"
        found = bond_deviations(
            run.numbers,
            run.positions,
            run.cell,
            run.pbc,
            threshold=LONGEST_DEVIATION,
            reference=None if reference is None else (reference.positions, reference.cell),
        )
        last = -1 if found.first_frame is None else found.first_frame
        times.append(float(run.times_fs[last] - run.times_fs[0]) / 1000.0)
        collapsed.append(found.first_frame is not None or run.stopped is not None)
    error = float(np.std(times, ddof=1) / np.sqrt(len(times))) if len(times) > 1 else None
    return CollapseTimes(tuple(times), tuple(collapsed), float(np.mean(times)), error)


def collapse_verdict(result: CollapseTimes | str) -> Verdict:
    """Mean time to collapse; passes when no run collapsed."""
    name = "time to collapse"
    if isinstance(result, str):
        return Verdict(name, None, "ps", None, None, f"not measured: {result}")
    kept = len(result.collapsed) - sum(result.collapsed)
    text = (
        f"mean of {len(result.times_ps)} runs, of which {kept} never collapsed and count with their length "
        "(arXiv 2210.07237); passes when none did"
    )
    return Verdict(name, result.mean_ps, "ps", None, not any(result.collapsed), text, result.error_ps)
