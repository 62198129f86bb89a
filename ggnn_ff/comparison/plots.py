"""Pictures of a comparison: accuracy against speed, conservation against accuracy, and the learning curves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ggnn_ff.comparison.row import Row
from ggnn_ff.stability.plots import COLORS, REFERENCE_COLOR, label_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORCES = "force MAE (meV/Å)"


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Rows of points (K, 2) that no other point matches in both coordinates and beats in one, by the first one."""
    no_worse = (points[:, None] <= points[None]).all(axis=2)  # (other, point)
    better = (points[:, None] < points[None]).any(axis=2)
    front = np.flatnonzero(~(no_worse & better).any(axis=0))
    return front[np.argsort(points[front, 0])]


def plot_accuracy_speed(rows: Sequence[Row]) -> "Figure":
    """Force error against the time of a step of the smallest structure; those that none beats in both are joined."""
    points = np.array([(row.speed[0].step_ms, row.errors.forces_mae_mev_per_angstrom) for row in rows])
    figure = new_figure(6.4, 4.6)
    axes = figure.subplots()
    front = pareto_front(points)
    axes.plot(points[front, 0], points[front, 1], color="0.6", lw=1.2, zorder=1, label="Pareto front")
    _scatter(axes, points, [row.model for row in rows])
    label_axes(axes, f"ms per step, {rows[0].speed[0].n_atoms} atoms, one thread", _FORCES)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    return figure


def plot_conservation_accuracy(rows: Sequence[Row]) -> "Figure":
    """Size of the energy drift with its error against the force error; simulations that broke stand above the line."""
    figure = new_figure(6.4, 4.6)
    axes = figure.subplots()
    kept = [row for row in rows if row.nve.drift_mev_per_atom_per_ps is not None]
    broken = [row for row in rows if row.nve.drift_mev_per_atom_per_ps is None]
    drifts = np.array([abs(row.nve.drift_mev_per_atom_per_ps or 0.0) for row in kept])
    errors = np.array([row.nve.drift_error or 0.0 for row in kept])
    accuracies = np.array([row.errors.forces_mae_mev_per_angstrom for row in kept])
    if kept:
        below = np.minimum(errors, 0.9 * drifts)  # a logarithmic axis has no zero
        axes.errorbar(accuracies, drifts, yerr=[below, errors], fmt="none", ecolor="0.7", elinewidth=1, zorder=1)
        _scatter(axes, np.stack([accuracies, drifts], axis=1), [row.model for row in kept])
    if broken:
        top = 10.0 * (drifts + errors).max() if kept else 1.0
        points = np.array([(row.errors.forces_mae_mev_per_angstrom, top) for row in broken])
        _scatter(axes, points, [f"{row.model} (broke)" for row in broken], marker="x")
        axes.axhline(top / 2.0, color="0.6", lw=0.8, ls="--")
    label_axes(axes, _FORCES, "|energy drift| (meV/atom/ps)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    return figure


def plot_curves(rows: Sequence[Row]) -> "Figure":
    """Force error on the validation frames against the time of training."""
    figure = new_figure(7.4, 4.6)
    axes = figure.subplots()
    for number, row in enumerate(rows):
        style = ("-", "--", ":")[number // len(COLORS) % 3]
        minutes, errors = zip(*((point.minutes, point.forces_mae_mev_per_angstrom) for point in row.curve), strict=True)
        axes.plot(minutes, errors, color=COLORS[number % len(COLORS)], ls=style, lw=1.2, label=row.model)
    label_axes(axes, "minutes of training", f"{_FORCES}, validation frames")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _scatter(axes: "Axes", points: np.ndarray, names: Sequence[str], marker: str = "o") -> None:
    axes.scatter(points[:, 0], points[:, 1], color=COLORS[0], marker=marker, s=28, zorder=2)
    for (x, y), name in zip(points, names, strict=True):
        axes.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8, color=REFERENCE_COLOR)
