"""Structure and motion of liquids: radial distribution functions and diffusion coefficients."""

from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import numpy as np
from ase.data import chemical_symbols
from scipy.fft import irfft, next_fast_len, rfft

from ggnn_ff.errors import InputError
from ggnn_ff.stability.blocks import Rows, chunks
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.structure import distribution_error, nearest_images, pair_blocks, smallest_height
from ggnn_ff.stability.verdict import Verdict

BIN_WIDTH: float = 0.05
"""angstrom, of radial distribution functions."""

N_BLOCKS: int = 5
"""Parts of a trajectory whose diffusion coefficients give the mean and its error. Chosen here: enough for an error, and
few enough that each is long."""

LEAST_BLOCK: int = 20
"""Frames of such a part below which there is no line to fit. Chosen here."""

COLLAPSE_THRESHOLD: float = 3.0
"""angstrom: integral of |g - g_reference| over r from which on water counts as collapsed in arXiv 2210.07237, for any
pair of elements. For the solid electrolyte there it is 1, on one g(r) of all atoms."""

COLLAPSE_DISTANCE: float = 6.0
"""angstrom, where that integral ends, as in arXiv 2210.07237, or at half of the smallest height of the cell."""

COLLAPSE_FRAMES: int = 10
"""Frames in a window, 0.1 ps from one to the next, as in arXiv 2210.07237, or as far apart as those of the file are."""

LARGEST_STEP: float = 0.15
"""Of the cell, root mean square along one of its vectors: atoms that move further from one frame to the next cannot be
followed. Chosen here: of normally distributed steps one in a thousand then exceeds half of the cell."""

_WINDOW_STEP_FS = 100.0
_MOST_STEPS = 1000  # whose length is looked at
_CM2_PER_S = 0.1  # 1 angstrom^2/fs = 1e-16 cm^2 / 1e-15 s


@dataclass(frozen=True)
class RadialDistributions:
    """g(r) of every pair of elements.

    Attributes:
        distances: (K,) angstrom, centres of the bins.
        functions: from pairs such as "H-O", elements by atomic number, to g, (K,).
    """

    distances: np.ndarray
    functions: dict[str, np.ndarray]


@dataclass(frozen=True)
class Diffusion:
    """How the atoms of one element move away from where they were.

    Attributes:
        element: chemical symbol.
        coefficient: cm^2/s.
        error: its standard error, cm^2/s.
        exponent: power of time with which the mean square displacement grows where the line was fitted; 1 for
            diffusion, 2 for free flight, 0 in a solid.
        times_fs: (L,) fs, from 0.
        mean_square_displacement: (L,) angstrom^2.
        fitted: first index of `times_fs` in the fit, which goes to the end.
    """

    element: str
    coefficient: float
    error: float
    exponent: float
    times_fs: np.ndarray
    mean_square_displacement: np.ndarray
    fitted: int


def radial_distributions(trajectory: Trajectory) -> RadialDistributions:
    """Radial distribution functions up to half of the smallest distance between opposite faces of the cell.

    g_ab(r) = V <n_ab(r)> / (n_pairs 4 pi r^2 dr), with n_ab(r) the number of pairs of atoms between r and r + dr. Since
    the pairs of an atom with itself are not among the n_pairs, independent particles have g = 1 exactly. Pairs within
    a molecule count like others.

    Raises:
        InputError: if the trajectory is not periodic in all three directions: it has no density then.
    """
    if not np.all(trajectory.pbc):
        raise InputError(
            f"{trajectory.source} must be periodic in three directions for radial distribution functions, got pbc = "
            f"{trajectory.pbc.tolist()}; compare distance distributions instead"
        )
    n_bins = int(0.5 * smallest_height(trajectory.cell) / BIN_WIDTH)
    edges = np.arange(n_bins + 1) * BIN_WIDTH
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    functions = {}
    for first, second in combinations_with_replacement(np.unique(trajectory.numbers), 2):
        of_first, of_second = (np.flatnonzero(trajectory.numbers == number) for number in (first, second))
        counts, n_pairs = np.zeros(n_bins), 0
        for pairs in pair_blocks(of_first, of_second):
            counts += _counts(trajectory, pairs, n_bins)
            n_pairs += len(pairs)
        if n_pairs:
            name = f"{chemical_symbols[first]}-{chemical_symbols[second]}"
            functions[name] = counts / (len(trajectory) * n_pairs * shells)
    return RadialDistributions(edges[:-1] + 0.5 * BIN_WIDTH, functions)


def _counts(trajectory: Trajectory, pairs: np.ndarray, n_bins: int) -> np.ndarray:
    """Sum over frames of the volume times the number of pairs in each bin, (n_bins,), angstrom^3."""
    counts = np.zeros(n_bins + 1)
    for part in chunks(len(trajectory), len(pairs)):
        positions, cell = trajectory.positions[part], trajectory.cell[part]
        vectors = nearest_images(positions[:, pairs[:, 1]] - positions[:, pairs[:, 0]], cell, trajectory.pbc)
        lengths = np.sqrt(np.einsum("tpk,tpk->tp", vectors, vectors))
        bins = np.minimum(lengths / BIN_WIDTH, n_bins).astype(np.int64)  # the extra bin takes what is further
        volumes = np.broadcast_to(np.abs(np.linalg.det(cell))[:, None], bins.shape)
        counts += np.bincount(bins.ravel(), volumes.ravel(), minlength=n_bins + 1)
    return counts[:n_bins]


def radial_distribution_verdicts(found: RadialDistributions, expected: RadialDistributions) -> list[Verdict]:
    """Mean absolute error of each g(r) against that of a reference with the same elements, as in arXiv 2210.07237.

    It is the integral of |g - g_reference| over r, up to half of the smaller box.
    """
    name = "radial distribution error"
    n_bins = min(len(found.distances), len(expected.distances))
    largest = n_bins * BIN_WIDTH
    text = f"integral of |g - g_reference| up to {largest:.2f} angstrom (arXiv 2210.07237); not judged"
    verdicts = []
    for pair in sorted(found.functions.keys() | expected.functions.keys()):
        if pair in found.functions and pair in expected.functions:
            error = distribution_error(found.functions[pair][:n_bins], expected.functions[pair][:n_bins], largest)
            verdicts.append(Verdict(f"{pair} {name}", error, "angstrom", None, None, text))
        else:
            reason = "not measured: only one of the two trajectories has this pair of elements"
            verdicts.append(Verdict(f"{pair} {name}", None, "angstrom", None, None, reason))
    return verdicts


def collapse_verdict(trajectory: Trajectory, reference: Trajectory, expected: RadialDistributions) -> Verdict:
    """Whether a liquid keeps its radial distribution functions, the criterion of arXiv 2210.07237 for water.

    The trajectory is cut into windows of `COLLAPSE_FRAMES` frames, of which the last ends with it. The error of a
    window is the integral of |g - g_reference| over r, the largest over pairs of elements. The time to collapse is the
    start of the first window whose error exceeds `COLLAPSE_THRESHOLD`. Where windows of the reference itself do, as
    those of few atoms in a large box, there is no verdict.

    Args:
        trajectory: periodic in three directions.
        reference: with the same atoms.
        expected: `radial_distributions` of the reference.
    """
    name, unit = "liquid structure", "angstrom"
    reason = None
    if len(trajectory.numbers) < 2:
        reason = "not applicable: a single atom"
    elif trajectory.times_fs is None:
        reason = "not measured: the file has no times; give the time between frames in fs"
    else:
        starts, windows = _windows(trajectory, to_the_end=True)
        _, own = _windows(reference)
        if not windows or len(own) < 2:
            reason = f"not measured: {COLLAPSE_FRAMES} frames 0.1 ps apart are needed, and twice as many of a reference"
    if reason is not None or trajectory.times_fs is None:
        return Verdict(name, None, unit, COLLAPSE_THRESHOLD, None, reason or "not measured")
    noise = max(max(_window_errors(window, expected).values()) for window in own)
    errors = [_window_errors(window, expected) for window in windows]
    largest = np.array([max(one.values()) for one in errors])
    collapsed = largest > COLLAPSE_THRESHOLD
    window = int(collapsed.argmax()) if collapsed.any() else int(largest.argmax())
    pair, times = max(errors[window], key=lambda one: errors[window][one]), trajectory.times_fs - trajectory.times_fs[0]
    when = f"{times[starts[window]] / 1000.0:.4g} ps"
    text = f"largest at {when}, of {pair}" if not collapsed.any() else f"time to collapse {when}, {pair} is the first"
    text += (
        f"; integral of |g - g_reference| in windows of {COLLAPSE_FRAMES} frames; the threshold is that of water in "
        f"arXiv 2210.07237; windows of the reference reach {noise:.2g}"
    )
    passed: bool | None = not collapsed.any()
    if noise > COLLAPSE_THRESHOLD:
        passed, text = None, f"{text}; not judged, since that is above the threshold: more atoms are needed"
    return Verdict(name, float(largest.max()), unit, COLLAPSE_THRESHOLD, passed, text)


def _windows(trajectory: Trajectory, to_the_end: bool = False) -> tuple[np.ndarray, list[Trajectory]]:
    """First frames (W,) of windows that follow each other, and their frames; one more at the end if asked for."""
    step = 1
    if trajectory.times_fs is not None and len(trajectory) > 1:
        interval = float(np.diff(trajectory.times_fs).mean())
        step = max(1, int(_WINDOW_STEP_FS / interval * (1 + 1e-6)))
    length = COLLAPSE_FRAMES * step
    starts = np.arange(0, len(trajectory) - length + 1, length)
    last = len(trajectory) - 1 - (COLLAPSE_FRAMES - 1) * step
    if to_the_end and len(starts) and last > starts[-1]:
        starts = np.append(starts, last)
    parts = [slice(start, start + length, step) for start in starts]
    return starts, [replace(trajectory, positions=trajectory.positions[p], cell=trajectory.cell[p]) for p in parts]


def _window_errors(window: Trajectory, expected: RadialDistributions) -> dict[str, float]:
    """Integral of |g - g_expected| of each pair of elements, angstrom."""
    found = radial_distributions(window)
    n_bins = min(len(found.distances), len(expected.distances), round(COLLAPSE_DISTANCE / BIN_WIDTH))
    return {
        pair: distribution_error(g[:n_bins], expected.functions[pair][:n_bins], n_bins * BIN_WIDTH)
        for pair, g in found.functions.items()
    }


def unwrap(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Positions without the jumps of atoms that were put back into the cell.

    Displacements from frame to frame are replaced by their nearest image and summed, which keeps diffusion right in
    cells that change, too (von Buelow, Bullerjahn and Hummer, J. Chem. Phys. 153, 021101, 2020). No atom may move by
    half a cell from one frame to the next.

    Args:
        positions: (T, N, 3), angstrom; wrapped or not.
        cell: (T, 3, 3), angstrom.
        pbc: (3,) bool.

    Returns:
        (T, N, 3), angstrom, the first frame as given.
    """
    paths = Rows(*positions.shape[1:])
    paths.extend(positions[:1])
    last = positions[0]
    for part in chunks(len(positions) - 1, 3 * positions.shape[1]):
        after = slice(part.start + 1, part.stop + 1)
        steps = nearest_images(positions[after] - positions[part], cell[after], pbc)
        path = last + np.cumsum(steps, axis=0)
        paths.extend(path)
        last = path[-1]
    return paths.array()


def mean_square_displacement(positions: np.ndarray) -> np.ndarray:
    """Mean over atoms and all time origins of |r(t0 + t) - r(t0)|^2, for t up to half of the trajectory.

    The sum of r(t0 + t) . r(t0) over t0 is a convolution and made by Fourier transforms, as in Calandrini et al.,
    Collection SFN 12, 201 (2011), section 4.2.

    Args:
        positions: (T, N, 3), angstrom, unwrapped.

    Returns:
        (T // 2 + 1,), angstrom^2.
    """
    n_frames, n_atoms = positions.shape[:2]
    lags = np.arange(n_frames // 2 + 1)
    n_fft = next_fast_len(2 * n_frames, real=True)
    total = np.zeros(len(lags))
    for atom in range(n_atoms):  # not all at once, for memory
        path = positions[:, atom] - positions[:, atom].mean(axis=0)  # near zero, to lose no digits
        transform = rfft(path, n=n_fft, axis=0)
        products = irfft(np.sum(np.abs(transform) ** 2, axis=1), n=n_fft)[: len(lags)]
        sums = np.concatenate([[0.0], np.cumsum(np.sum(path**2, axis=1))])  # of the first 0, 1, ..., T frames
        total += sums[n_frames - lags] + sums[-1] - sums[lags] - 2.0 * products
    return total / (n_atoms * (n_frames - lags))


def diffusion(trajectory: Trajectory) -> list[Diffusion] | str:
    """Diffusion coefficients from the Einstein relation, D = (slope of the mean square displacement) / 6.

    The trajectory is cut into `N_BLOCKS` parts. In each, a line is fitted to the second half of the mean square
    displacement, from a quarter to half of the length of the part; the coefficient is the mean over the parts, and
    its error comes from their scatter. Displacements are relative to the centre of mass, so that a drift of the whole
    does not count. Nothing is corrected for the size of the box (Yeh and Hummer, J. Phys. Chem. B 108, 15873, 2004).

    Returns:
        One result per element, by atomic number, or why there is none.
    """
    if trajectory.times_fs is None:
        return "the file has no times; give the time between frames in fs"
    if len(trajectory.numbers) < 2:
        return "a single atom does not move against the centre of mass"
    if len(trajectory) < N_BLOCKS * LEAST_BLOCK:
        return f"{len(trajectory)} frames, {N_BLOCKS * LEAST_BLOCK} are needed"
    steps = np.diff(trajectory.times_fs)
    if not np.allclose(steps, steps[0], rtol=1e-3):
        return "the frames are at uneven times"
    positions = unwrap(trajectory.positions, trajectory.cell, trajectory.pbc)
    if (step := _largest_step(positions, trajectory)) > LARGEST_STEP:
        return (
            f"from one frame to the next the atoms of an element move by {step:.2g} of the cell, and cannot be "
            f"followed beyond {LARGEST_STEP:g}; write frames more often"
        )
    centre = np.einsum("n,tnk->tk", trajectory.masses, positions) / trajectory.masses.sum()
    length = len(trajectory) // N_BLOCKS
    times = np.arange(length // 2 + 1) * float(steps.mean())
    first = len(times) // 2
    results = []
    for number in np.unique(trajectory.numbers):
        atoms = np.flatnonzero(trajectory.numbers == number)
        parts = [slice(k * length, (k + 1) * length) for k in range(N_BLOCKS)]
        blocks = [mean_square_displacement(positions[part, atoms] - centre[part, None]) for part in parts]
        slopes = np.polyfit(times[first:], np.array(blocks)[:, first:].T, 1)[0]  # (N_BLOCKS,)
        coefficients = slopes / 6.0 * _CM2_PER_S
        curve = np.mean(blocks, axis=0)
        exponent = 0.0
        if curve[first:].min() > 0:
            exponent = float(np.polyfit(np.log(times[first:]), np.log(curve[first:]), 1)[0])
        error = float(coefficients.std(ddof=1) / np.sqrt(N_BLOCKS))
        symbol = chemical_symbols[number]
        results.append(Diffusion(symbol, float(coefficients.mean()), error, exponent, times, curve, first))
    return results


def _largest_step(positions: np.ndarray, trajectory: Trajectory) -> float:
    """Root mean square of the steps of an element along a cell vector, over the length of that; the largest one."""
    n_steps = len(positions) - 1
    before = np.unique(np.linspace(0, n_steps - 1, min(n_steps, _MOST_STEPS)).astype(np.int64))
    steps = (positions[before + 1] - positions[before]) @ np.linalg.pinv(trajectory.cell[before])
    squares = np.square(steps).mean(axis=0)  # (N, 3)
    return max(
        float(np.sqrt(squares[trajectory.numbers == number].mean(axis=0).max()))
        for number in np.unique(trajectory.numbers)
    )


def diffusion_verdicts(results: list[Diffusion] | str) -> list[Verdict]:
    """What `diffusion` found, for each element; not judged."""
    name, unit = "diffusion coefficient", "cm^2/s"
    if isinstance(results, str):
        return [Verdict(name, None, unit, None, None, f"not measured: {results}")]
    return [
        Verdict(
            f"{result.element} {name}",
            result.coefficient,
            unit,
            None,
            None,
            f"{N_BLOCKS} parts, fitted from {result.times_fs[result.fitted] / 1000.0:.3g} to "
            f"{result.times_fs[-1] / 1000.0:.3g} ps, where the mean square displacement grows with time to the power "
            f"{result.exponent:.2f}, 1 for diffusion; not judged",
            result.error,
        )
        for result in results
    ]
