"""Whether the numbers of a trajectory fit each other: lengths to the elements, momenta to positions and times."""

import numpy as np
from ase.data import covalent_radii

from ggnn_ff import units
from ggnn_ff.bonds import BOND_FACTOR, IS_METAL, overlaps
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.structure import nearest_images
from ggnn_ff.stability.verdict import Verdict

SHORTEST_DISTANCE: float = 0.5
"""Distance of an atom to its nearest neighbour over the sum of their covalent radii. Chosen here: the shortest bonds
are at 0.77 (N2) and 0.79 (CO), whereas angstroms written as nanometres are near 0.1."""

VELOCITY_DEVIATION: float = 0.25
"""Share by which an atom may move further, or less far, than its momenta say. Chosen here: an integrator with a time
step that is small enough does 7%, hydrogen taken for deuterium 50%, and any unit taken for another more."""

LEAST_CORRELATION: float = 0.5
"""Of the velocities of an atom in neighbouring frames. For a vibration it is cos(w h); down to 0.5, Simpson's rule over
two intervals h between frames is right within 1%."""

FASTEST_FS: dict[bool, float] = {True: 7.6, False: 14.1}
"""Periods of the fastest vibrations with and without hydrogen: H2 (4401/cm) and N2 (2359/cm; Huber and Herzberg,
Constants of Diatomic Molecules, 1979)."""

LARGEST_INTERVAL: float = 5.0 / 6.0
"""Between frames, over the fastest period. With more, an atom may be back where it was, and its velocity looks as if it
had hardly changed."""

_NOBLE_GASES = [2, 10, 18, 36, 54, 86]
_MOST_FRAMES = 1000
_REACHES = (SHORTEST_DISTANCE, BOND_FACTOR, 3.0)  # the last is beyond bohr taken for angstrom


def length_verdict(trajectory: Trajectory) -> Verdict:
    """Fails when atoms of the first frame are too close for any matter, or those that always bond have no bonds.

    The figure is the median, over the atoms, of the distance to the nearest neighbour over the sum of the covalent
    radii (Cordero et al., Dalton Trans. 2008, 2832): near 1 in molecules and crystals. Atoms of nonmetals but noble
    gases have a neighbour within `BOND_FACTOR`; where there are none of them, larger figures are not judged.
    """
    name, numbers = "length unit", trajectory.numbers
    if len(numbers) < 2:
        return Verdict(name, None, "", BOND_FACTOR, None, "not applicable: a single atom has no neighbours")
    always = ~IS_METAL[numbers] & ~np.isin(numbers, _NOBLE_GASES)
    value = _median_distance(trajectory, always if always.any() else np.ones(len(numbers), dtype=bool))
    text = (
        "median distance to the nearest neighbour over the sum of the covalent radii; from "
        f"{SHORTEST_DISTANCE:g} on in all matter, below the threshold where atoms are bonded, both chosen here by "
        "the lengths of known bonds (radii of Cordero 2008)"
    )
    if value is not None and SHORTEST_DISTANCE <= value <= BOND_FACTOR:
        return Verdict(name, value, "", BOND_FACTOR, True, text)
    if not always.any() and (value is None or value > BOND_FACTOR):
        return Verdict(name, value, "", BOND_FACTOR, None, f"{text}; not judged: no atoms that always bond")
    for unit, factor in units.LENGTH_UNITS.items():
        for scale, direction in (
            (factor, f"in {unit}, not angstrom"),
            (1.0 / factor, f"multiplied by 1 / {factor:.3g}"),
        ):
            if value is not None and factor != 1.0 and 0.75 < value * scale < BOND_FACTOR:
                return Verdict(name, value, "", BOND_FACTOR, False, f"{text}; are the positions {direction}?")
    return Verdict(name, value, "", BOND_FACTOR, False, f"{text}; positions must be in angstrom")


def _median_distance(trajectory: Trajectory, atoms: np.ndarray) -> float | None:
    """Of the chosen atoms (N,) bool, to the nearest of all others; None if it is beyond all reach."""
    radii = covalent_radii[trajectory.numbers]
    for reach in _REACHES:
        first, second, vectors = overlaps(trajectory.positions[0], trajectory.cell[0], trajectory.pbc, reach * radii)
        ratios = np.linalg.norm(vectors, axis=1) / (radii[first] + radii[second])
        nearest = np.full(len(radii), np.inf)
        np.minimum.at(nearest, first, ratios)
        np.minimum.at(nearest, second, ratios)
        median = float(np.sort(nearest[atoms])[(atoms.sum() - 1) // 2])
        if np.isfinite(median):
            return median
    return None


def velocity_verdict(trajectory: Trajectory) -> Verdict:
    """Compares how far each atom moves with its momenta, and names the atom where they differ most.

    (r(t + h) - r(t - h)) / 2h is the mean velocity between three frames, which Simpson's rule takes from the momenta:
    (v(t - h) + 4 v(t) + v(t + h)) / 6. The slope of the one against the other, by least squares over at most 1000
    frames t, is 1, unless lengths, times, momenta or masses are not what they are taken for. Atoms whose velocity
    changes too much from frame to frame (`LEAST_CORRELATION`), or may have gone through a whole vibration in between
    (`LARGEST_INTERVAL`), are left out.
    """
    name, times = "velocities", trajectory.times_fs
    reason = None
    middle = np.empty(0, dtype=np.int64)
    if trajectory.momenta is None:
        reason = "the trajectory has no momenta"
    elif times is None:
        reason = "the file has no times; give the time between frames in fs"
    else:
        steps = np.diff(times)
        middle = 1 + np.flatnonzero(np.isclose(steps[1:], steps[:-1], rtol=1e-3, atol=0.0))
        if len(middle) == 0:
            reason = "no three frames follow each other at equal times"
    if reason is not None or trajectory.momenta is None or times is None:
        return Verdict(name, None, "", VELOCITY_DEVIATION, None, f"not measured: {reason}")
    middle = middle[np.linspace(0, len(middle) - 1, min(len(middle), _MOST_FRAMES)).astype(np.int64)]
    masses = trajectory.masses[:, None]
    before, here, after = (trajectory.momenta[middle + shift] / masses for shift in (-1, 0, 1))
    moved = trajectory.positions[middle + 1] - trajectory.positions[middle - 1]
    moved = nearest_images(moved, trajectory.cell[middle], trajectory.pbc)
    found = moved / ((times[middle + 1] - times[middle - 1]) * units.FEMTOSECOND)[:, None, None]
    expected = (before + 4.0 * here + after) / 6.0
    squares = np.einsum("tnk,tnk->n", here, here)
    slow = np.einsum("tnk,tnk->n", here, 0.5 * (before + after)) > LEAST_CORRELATION * squares
    fastest = np.where(trajectory.numbers == 1, FASTEST_FS[True], FASTEST_FS[False])
    slow &= (times[middle + 1] - times[middle]).max() <= LARGEST_INTERVAL * fastest
    if not slow.any():
        text = "not measured: the velocities change too much between frames, or nothing moves; write them more often"
        return Verdict(name, None, "", VELOCITY_DEVIATION, None, text)
    slopes = np.einsum("tnk,tnk->n", found, expected)[slow] / np.einsum("tnk,tnk->n", expected, expected)[slow]
    worst = int(np.abs(slopes - 1.0).argmax())
    value = float(abs(slopes[worst] - 1.0))
    text = (
        f"atom {np.flatnonzero(slow)[worst]} (from 0) moves {slopes[worst]:.3g} times as far as its momenta and mass "
        f"say, furthest off of {slow.sum()} of {len(slow)} atoms, in {len(middle)} frames; threshold chosen here, "
        "above what an integrator does, below deuterium for hydrogen"
    )
    passed = value <= VELOCITY_DEVIATION
    if not passed:
        text += "; check the units of positions, times and momenta, the masses, and the time step"
    return Verdict(name, value, "", VELOCITY_DEVIATION, passed, text)
