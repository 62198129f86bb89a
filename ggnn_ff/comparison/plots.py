"""Pictures of a comparison: accuracy against speed, conservation against accuracy, and the learning curves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

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
    _scatter(axes, points)
    label_axes(axes, f"ms per step, {rows[0].speed[0].n_atoms} atoms, one thread", _FORCES)
    _logarithmic(axes, "x")
    _logarithmic(axes, "y")
    axes.legend(frameon=False)
    _name_points(figure, axes, points, [row.model for row in rows])
    return figure


def plot_conservation_accuracy(rows: Sequence[Row]) -> "Figure":
    """Size of the energy drift against the force error.

    A drift below twice its error is not told from none: an open triangle at twice the error says that it is lower.
    Simulations that broke stand above the dashed line.
    """
    figure = new_figure(6.4, 4.6)
    axes = figure.subplots()
    kept = [row for row in rows if row.nve.drift_mev_per_atom_per_ps is not None]
    broken = [row for row in rows if row.nve.drift_mev_per_atom_per_ps is None]
    highest, points, names = 0.1, [], []
    for row in kept:
        drift, error = abs(row.nve.drift_mev_per_atom_per_ps or 0.0), row.nve.drift_error or 0.0
        x, resolved = row.errors.forces_mae_mev_per_angstrom, drift > 2.0 * error
        height = drift if resolved else 2.0 * error
        points.append((x, height))
        names.append(row.model)
        _scatter(axes, np.array([[x, height]]), "o" if resolved else "v", filled=resolved)
        if resolved:
            axes.errorbar(x, height, yerr=error, fmt="none", ecolor="0.7", elinewidth=1, zorder=1)
        highest = max(highest, height + error)
    for row in broken:
        points.append((row.errors.forces_mae_mev_per_angstrom, 10.0 * highest))
        names.append(f"{row.model} (broke)")
        _scatter(axes, np.array([points[-1]]), "x")
    if broken:
        axes.axhline(5.0 * highest, color="0.6", lw=0.8, ls="--")
    label_axes(axes, _FORCES, "|energy drift| (meV/atom/ps); open: less than that")
    _logarithmic(axes, "x")
    _logarithmic(axes, "y")
    _name_points(figure, axes, np.array(points), names)
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
    _logarithmic(axes, "y")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _logarithmic(axes: "Axes", which: Literal["x", "y"]) -> None:
    """With plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log") if which == "x" else axes.set_yscale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
    axes.margins(0.12)


def _scatter(axes: "Axes", points: np.ndarray, marker: str = "o", filled: bool = True) -> None:
    face = COLORS[0] if filled else "none"
    color = {"color": COLORS[0]} if marker == "x" else {"facecolors": face, "edgecolors": COLORS[0]}
    axes.scatter(points[:, 0], points[:, 1], marker=marker, s=28, zorder=2, **color)  # type: ignore[arg-type]


def _name_points(figure: "Figure", axes: "Axes", points: np.ndarray, names: Sequence[str]) -> None:
    """Writes names beside points (K, 2), each at the first corner where it covers no point and no other name."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # which settles where the points are
    taken = [Bbox.from_bounds(x - 5.0, y - 5.0, 10.0, 10.0) for x, y in axes.transData.transform(points)]
    for point, name in zip(points, names, strict=True):
        for right, up in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            text = axes.annotate(
                name,
                point,
                xytext=(5 * right, 3 * up),
                textcoords="offset points",
                ha="left" if right > 0 else "right",
                va="bottom" if up > 0 else "top",
                fontsize=8,
                color=REFERENCE_COLOR,
            )
            box = text.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            if (right, up) != (-1, -1):  # the last one stays, since there is no other
                text.remove()
        taken.append(box)
