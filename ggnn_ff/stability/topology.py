"""What becomes of molecules in a simulation: bonds that break and form, fragments that leave, the time to collapse."""

from collections.abc import Sequence
from dataclasses import dataclass

import networkx
import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from ggnn_ff.bonds import (
    BOND_FACTOR,
    BOND_MARGIN,
    LONGEST_DEVIATION,
    bond_name,
    bonds,
    may_bond,
    overlaps,
    sure_lengths,
)
from ggnn_ff.errors import InputError
from ggnn_ff.stability.blocks import chunk_length, chunks
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.structure import bond_deviations, lengths_of_bonds, nearest_images, smallest_height
from ggnn_ff.stability.verdict import Verdict

EVAPORATION_DISTANCE: float = 6.0
"""angstrom. A fragment has evaporated when no atom of it is closer to the rest than this. Chosen here: twice the
distance of atoms that touch, so that nothing is between, and usual cutoffs leave no force across the gap."""

_BLOCK_PAIRS = 200_000  # distances in a block of frames, about as costly as a list of neighbours
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
    for part in chunks(len(trajectory), len(pairs)):
        long = lengths_of_bonds(trajectory.positions[part], pairs, cell[part], pbc) > start_lengths + LONGEST_DEVIATION
        first = np.where(long.any(axis=0), np.minimum(first, part.start + long.argmax(axis=0)), first)
    return [
        _event(trajectory, bond_name(numbers, pairs[bond]), int(first[bond]))
        for bond in np.argsort(first, kind="stable")
        if first[bond] < len(trajectory)
    ]


def formed_bonds(trajectory: Trajectory) -> list[Event]:
    """Pairs of atoms that are no bond in the first frame and come closer than contacts (`sure_lengths`), in that order.

    Frames are taken in blocks. Only those pairs are looked at that are so close in the first frame of a block that they
    can be bonded in a later one, with the furthest that either atom moves until its end.
    """
    numbers, pbc = trajectory.numbers, trajectory.pbc
    radii = BOND_FACTOR * covalent_radii[numbers]
    known: set[tuple[int, int]] = set(map(tuple, _bonds(trajectory, 0).tolist()))
    events, start, length = [], 0, 1
    while start < len(trajectory):
        part = slice(start, min(start + length, len(trajectory)))
        positions, cell = trajectory.positions[part], trajectory.cell[part]
        moved = nearest_images(positions - positions[0], cell, pbc)
        furthest = np.linalg.norm(moved, axis=2).max(axis=0)
        first, second, vectors = overlaps(positions[0], cell[0], pbc, radii + furthest)
        new = may_bond(numbers, first, second)
        new &= ~np.isin(first * len(numbers) + second, [i * len(numbers) + j for i, j in known])
        first, second, vectors = first[new], second[new], vectors[new]
        fixed_cell = not np.any(pbc) or bool(np.all(cell == cell[0]))  # otherwise images move too
        if length > 1 and (not fixed_cell or len(first) * len(moved) > _BLOCK_PAIRS):
            length //= 2
            continue
        vectors = vectors + moved[:, second] - moved[:, first]
        close = np.einsum("tpk,tpk->tp", vectors, vectors) < sure_lengths(numbers, first, second) ** 2
        found = [
            (start + int(close[:, pair].argmax()), int(first[pair]), int(second[pair]))
            for pair in np.flatnonzero(close.any(axis=0))
        ]
        for frame, i, j in sorted(found):
            if (i, j) not in known:  # several images
                known.add((i, j))
                events.append(_event(trajectory, bond_name(numbers, np.array([i, j])), frame))
        start, length = part.stop, min(2 * length, chunk_length(3 * len(numbers)))
    return events


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
    frame = 0
    while frame < len(trajectory):
        links = _links(trajectory, frame)
        _, groups = connected_components(links, directed=False)
        outside = groups != np.bincount(groups).argmax()
        if frame == 0 and outside.any():
            return f"the first frame is in parts already, {EVAPORATION_DISTANCE:g} angstrom or more apart"
        if np.any(outside & ~gone):
            pieces = components(n_atoms, _bonds(trajectory, frame))
            for piece in np.unique(pieces[outside & ~gone]):
                atoms = np.flatnonzero(pieces == piece)
                formula = Atoms(numbers=trajectory.numbers[atoms]).get_chemical_formula()
                name = f"{formula} (atoms {', '.join(map(str, atoms))})"
                events.append(_event(trajectory, name, frame))
            gone |= outside
        frame = _next_to_look_at(trajectory, frame, links, gone)
    return events


def _links(trajectory: Trajectory, frame: int) -> coo_array:
    """(N, N) for each pair of atoms closer than `EVAPORATION_DISTANCE` 1 angstrom more than their distance."""
    n_atoms = len(trajectory.numbers)
    radii = np.full(n_atoms, 0.5 * EVAPORATION_DISTANCE)
    first, second, vectors = overlaps(trajectory.positions[frame], trajectory.cell[frame], trajectory.pbc, radii)
    return coo_array((1.0 + np.linalg.norm(vectors, axis=1), (first, second)), shape=(n_atoms, n_atoms))


def _next_to_look_at(trajectory: Trajectory, frame: int, links: coo_array, gone: np.ndarray) -> int:
    """The next frame where a fragment may have left: as long as the shortest tree of links holds, none has."""
    n_left = int(np.sum(~gone))
    tree = minimum_spanning_tree(links).tocoo()
    inside = ~(gone[tree.row] | gone[tree.col])
    first, second = tree.row[inside], tree.col[inside]
    if len(first) < n_left - 1 or 2 * n_left <= len(gone):  # in parts, or not sure to be the largest group
        return frame + 1
    start, length = frame + 1, 1
    while start < len(trajectory):
        part = slice(start, start + length)
        vectors = trajectory.positions[part, second] - trajectory.positions[part, first]
        vectors = nearest_images(vectors, trajectory.cell[part], trajectory.pbc)
        long = (np.einsum("tpk,tpk->tp", vectors, vectors) >= EVAPORATION_DISTANCE**2).any(axis=1)
        if long.any():
            return start + int(long.argmax())
        start, length = start + length, min(2 * length, chunk_length(3 * len(first)))
    return len(trajectory)


def _bonds(trajectory: Trajectory, frame: int) -> np.ndarray:
    return bonds(trajectory.numbers, trajectory.positions[frame], trajectory.cell[frame], trajectory.pbc)


def topology_verdicts(trajectory: Trajectory) -> list[Verdict]:
    """Numbers of bonds broken and formed and of fragments that left; all should be 0 where no reaction is expected."""
    broken = broken_bonds(trajectory) if len(_bonds(trajectory, 0)) else "the first frame has no bonds"
    checks = {
        "bonds broken": (broken, f"longer than in the first frame by {LONGEST_DEVIATION} angstrom (arXiv 2210.07237)"),
        "bonds formed": (
            formed_bonds(trajectory),
            f"within {BOND_MARGIN} angstrom of the sum of the covalent radii (Cordero 2008; a margin chosen here, "
            "below contacts of heavy atoms) and not bonded in the first frame",
        ),
        "evaporated fragments": (
            evaporated_fragments(trajectory),
            f"no atom closer than {EVAPORATION_DISTANCE:g} angstrom to the rest, chosen here as twice the distance of "
            "atoms that touch",
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
        has_bonds: whether there is any bond that could deviate.
    """

    times_ps: tuple[float, ...]
    collapsed: tuple[bool, ...]
    mean_ps: float
    error_ps: float | None
    has_bonds: bool


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
    times, collapsed, has_bonds = [], [], False
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
        has_bonds |= bool(found.names)
    error = float(np.std(times, ddof=1) / np.sqrt(len(times))) if len(times) > 1 else None
    return CollapseTimes(tuple(times), tuple(collapsed), float(np.mean(times)), error, has_bonds)


def collapse_verdict(result: CollapseTimes | str) -> Verdict:
    """Mean time to collapse; passes when no run collapsed."""
    name = "time to collapse"
    if isinstance(result, str):
        return Verdict(name, None, "ps", None, None, f"not measured: {result}")
    if not result.has_bonds and not any(result.collapsed):
        text = "not applicable: no bonds in the first frame whose lengths would tell a collapse"
        return Verdict(name, None, "ps", None, None, text)
    kept = len(result.collapsed) - sum(result.collapsed)
    text = (
        f"mean of {len(result.times_ps)} runs, of which {kept} never collapsed and count with their length "
        "(arXiv 2210.07237); passes when none did"
    )
    return Verdict(name, result.mean_ps, "ps", None, not any(result.collapsed), text, result.error_ps)


def same_atoms(atoms: Atoms, other: Atoms) -> np.ndarray | None:
    """Which atom of `other` is each of `atoms`, by elements and bonds, (N,); None if they are not the same molecules.

    The same number where that fits; any of the atoms that bonds do not tell apart, such as a methyl group's hydrogens.
    """
    found = [bonds(one.numbers, one.positions, one.cell.array, one.pbc) for one in (atoms, other)]
    if np.array_equal(atoms.numbers, other.numbers) and np.array_equal(found[0], found[1]):
        return np.arange(len(atoms))
    graphs = []
    for one, pairs in zip((atoms, other), found, strict=True):
        graph = networkx.Graph()
        graph.add_nodes_from((k, {"element": int(number)}) for k, number in enumerate(one.numbers))
        graph.add_edges_from(pairs.tolist())
        graphs.append(graph)
    match = networkx.vf2pp_isomorphism(*graphs, node_label="element")
    return None if match is None else np.array([match[k] for k in range(len(atoms))])
