"""Pictures of a training and of a simulation. Needs matplotlib; each function returns a figure of its own.

No global state of matplotlib is read or set, so the functions work in scripts, notebooks and threads alike.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from ggnn_ff.errors import InputError
from ggnn_ff.files import write_atomically
from ggnn_ff.stability.frames import Energies
from ggnn_ff.stability.liquids import RadialDistributions
from ggnn_ff.stability.report import LAST_WAVENUMBER, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; the reference is always black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REFERENCE_COLOR = "#222222"
ELEMENT_COLORS = {1: "#8FA3B3", 6: "#333333", 7: "#0072B2", 8: "#D55E00", 9: "#009E73", 16: "#E69F00"}

DOTS_PER_INCH = 150
_MOST_POINTS = 4000  # per line; more cannot be seen and only cost time
_LONGEST_BOND = 1.8  # angstrom; g(r) is drawn to the height that it has beyond
_FS_PER_PS = 1000.0
_MEV_PER_EV = 1000.0


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Writes a figure in one step; the suffix says the format (.png, .pdf, .svg).

    Raises:
        OSError: if the file cannot be written.
    """
    write_atomically(Path(path), lambda temporary: figure.savefig(temporary, dpi=DOTS_PER_INCH))


def plot_learning_curve(epochs: np.ndarray, panels: Mapping[str, Mapping[str, np.ndarray]]) -> "Figure":
    """Errors and losses against the epoch, one panel per quantity, on a logarithmic scale.

    Args:
        epochs: (K,).
        panels: label of the axis with its unit, such as "force MAE (meV/Å)", to curves by name, such as
            "train" and "validation", each (K,) and positive; NaN where an epoch has no value.

    Raises:
        InputError: if matplotlib is not installed or a curve has another length.
    """
    for curves in panels.values():
        for name, values in curves.items():
            if len(values) != len(epochs):
                raise InputError(
                    f"curve {name!r} must have one value for each of {len(epochs)} epochs, got {len(values)}"
                )
    figure = new_figure(4.6 * len(panels), 3.6)
    for axes, (label, curves) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for color, (name, values) in zip(_colors(len(curves)), curves.items(), strict=True):
            known = np.isfinite(values)
            axes.plot(np.asarray(epochs)[known], np.asarray(values)[known], color=color, lw=1.4, label=name)
        axes.set_yscale("log")
        label_axes(axes, "epoch", label)
        axes.legend(frameon=False)
    return figure


def plot_force_parity(reference: np.ndarray, predicted: np.ndarray, numbers: np.ndarray) -> "Figure":
    """Predicted against reference force components by element, and the distribution of their differences.

    Args:
        reference: (N, 3), eV/angstrom.
        predicted: (N, 3), eV/angstrom.
        numbers: (N,) atomic numbers, for the colours.

    Raises:
        InputError: if matplotlib is not installed or the shapes differ.
    """
    reference, predicted = np.asarray(reference), np.asarray(predicted)
    if reference.shape != predicted.shape or reference.shape != (len(numbers), 3):
        raise InputError(
            "`reference` and `predicted` must have shape (N, 3) with N atoms in `numbers`, got "
            f"{reference.shape}, {predicted.shape} and {len(numbers)} atoms"
        )
    error = (predicted - reference) * _MEV_PER_EV
    figure = new_figure(9.4, 4.4)
    parity, histogram = figure.subplots(1, 2, width_ratios=(1.15, 1))
    limit = 1.05 * float(np.abs(np.concatenate([reference, predicted])).max())
    parity.plot([-limit, limit], [-limit, limit], color="0.6", lw=1, zorder=0)
    largest = max(float(np.quantile(np.abs(error), 0.995)), 1e-6)
    fewest = 3 * int(np.unique(numbers, return_counts=True)[1].min())
    edges = np.linspace(-largest, largest, int(np.clip(np.sqrt(fewest), 21, 81)))
    for number in np.unique(numbers):
        rows = numbers == number
        color = ELEMENT_COLORS.get(int(number), COLORS[int(number) % len(COLORS)])
        mae = np.abs(error[rows]).mean()
        parity.plot(
            *(reference[rows].ravel(), predicted[rows].ravel()),
            ls="none", marker=".", ms=3, mec="none", alpha=0.5, color=color, rasterized=True,
            label=f"{chemical_symbols[int(number)]}: MAE {mae:.1f}",
        )  # fmt: skip
        histogram.hist(error[rows].ravel(), edges, histtype="step", density=True, color=color, lw=1.4)
    text = f"MAE {np.abs(error).mean():.1f} meV/Å\nRMSE {np.sqrt(np.mean(error**2)):.1f} meV/Å"
    parity.text(0.04, 0.96, text, transform=parity.transAxes, va="top", fontsize=11)
    parity.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    label_axes(parity, "reference force component (eV/Å)", "predicted force component (eV/Å)")
    parity.legend(frameon=False, loc="lower right", markerscale=4, title="element, meV/Å")
    label_axes(histogram, "predicted − reference (meV/Å)", "density (Å/meV)")
    histogram.axvline(0, color="0.6", lw=1, zorder=0)
    histogram.set_xlim(-largest, largest)
    return figure


def plot_energies(series: Mapping[str, Energies], n_atoms: int) -> "Figure":
    """Total, kinetic and potential energy of several runs of the same system against time.

    Args:
        series: name (such as the host) to energies with times and kinetic energies.
        n_atoms: number of atoms, the same for all.

    Raises:
        InputError: if matplotlib is not installed, or energies lack times or kinetic energies.
    """
    figure = new_figure(8.6, 7.2)
    panels = figure.subplots(3, 1, sharex=True)
    for color, (name, energies) in zip(_colors(len(series)), series.items(), strict=True):
        if energies.times_fs is None or energies.kinetic is None or energies.total is None:
            raise InputError(f"the energies of {name!r} must have times and kinetic energies to be plotted")
        times = energies.times_fs / _FS_PER_PS
        deviation = (energies.total - energies.total[0]) * _MEV_PER_EV / n_atoms
        potential = (energies.potential - energies.potential[0]) * _MEV_PER_EV / n_atoms
        kinetic = energies.kinetic * _MEV_PER_EV / n_atoms
        for axes, values in zip(panels, (deviation, kinetic, potential), strict=True):
            # the widest line goes behind, so that it hides none of the others
            order = 2 + 1 / (1 + float(np.ptp(values)))
            axes.plot(*_thin(times, values), color=color, lw=0.9, alpha=0.85, zorder=order, label=name)
    label_axes(panels[0], "", "total − start\n(meV/atom)")
    label_axes(panels[1], "", "kinetic\n(meV/atom)")
    label_axes(panels[2], "time (ps)", "potential − start\n(meV/atom)")
    panels[0].legend(frameon=False, ncols=len(series), loc="lower left", bbox_to_anchor=(0, 1))
    figure.align_ylabels(list(panels))
    return figure


def plot_distance_distribution(
    distances: np.ndarray, distributions: Mapping[str, np.ndarray], reference: np.ndarray | None = None
) -> "Figure":
    """h(r) of several runs over that of the reference.

    Args:
        distances: (n_bins,), angstrom, centres of the bins.
        distributions: name (such as the host) to h(r), (n_bins,), 1/angstrom.
        reference: (n_bins,), 1/angstrom, or None.

    Raises:
        InputError: if matplotlib is not installed.
    """
    figure = new_figure(8.0, 3.8)
    _draw_distribution(figure.subplots(), distances, distributions, reference)
    return figure


def plot_check(report: Report) -> "Figure":
    """The picture of a check: its panels, with the verdicts in them.

    Raises:
        InputError: if matplotlib is not installed.
    """
    panels = check_panels(report)
    rows = -(-len(panels) // 2)
    figure = new_figure(11.0, 3.3 * rows)
    for number, (title, draw) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, 2, number)
        draw(axes)
        axes.set_title(title, loc="left", fontsize=10)
    figure.suptitle(f"{Path(report.trajectory.source).name}: {report.summary}", fontsize=12, parse_math=False)
    return figure


def check_panels(report: Report) -> dict[str, Callable[["Axes"], None]]:
    """The panels of a check: title to the function that draws the panel, without that title, into axes.

    Radial distribution functions, displacements and spectra are among them where the trajectory has them.
    """
    trajectory = report.trajectory
    energies, n_atoms = trajectory.energies, len(trajectory.numbers)
    h = {"trajectory": report.distribution}
    panels: dict[str, Callable[[Axes], None]] = {
        "total energy": lambda axes: _draw_total_energy(axes, report),
        "exchange of energy": lambda axes: _draw_energy_parts(axes, energies, n_atoms),
        "distances between all atoms": lambda axes: _draw_distribution(
            axes, report.distances, h, report.reference_distribution
        ),
        "largest bond deviation": lambda axes: _draw_bonds(axes, report),
    }
    radial = report.radial
    if radial is not None and radial.functions:
        panels["radial distribution functions"] = lambda axes: _draw_radial(axes, radial, report.reference_radial)
    if report.diffusion:
        panels["mean square displacement"] = lambda axes: _draw_displacements(axes, report)
    if report.spectrum is not None:
        panels["vibrational density of states"] = lambda axes: _draw_spectrum(axes, report)
    return panels


def _draw_total_energy(axes: "Axes", report: Report) -> None:
    energies, n_atoms = report.trajectory.energies, len(report.trajectory.numbers)
    drift = next(verdict for verdict in report.verdicts if verdict.name == "energy drift")
    if energies is None or energies.total is None:
        _say(axes, "no total energies in the file")
        return
    times, label = _times(energies.times_fs, len(energies.potential))
    total = (energies.total - energies.total[0]) * _MEV_PER_EV / n_atoms
    axes.plot(*_thin(times, total), color=COLORS[0], lw=0.9)
    if drift.value is not None:
        line = total.mean() + drift.value * (times - times.mean())
        axes.plot(times[[0, -1]], line[[0, -1]], color=COLORS[1], lw=1.6)
        axes.set_title(f"drift {drift.text} {drift.unit}", loc="right", fontsize=9, color=COLORS[1])
    label_axes(axes, label, "total − start (meV/atom)")


def _draw_energy_parts(axes: "Axes", energies: Energies | None, n_atoms: int) -> None:
    if energies is None:
        _say(axes, "no energies in the file")
        return
    times, label = _times(energies.times_fs, len(energies.potential))
    potential = (energies.potential - energies.potential[0]) * _MEV_PER_EV / n_atoms
    if energies.kinetic is not None:
        kinetic = energies.kinetic * _MEV_PER_EV / n_atoms
        axes.plot(*_thin(times, kinetic), color=COLORS[1], lw=0.8, alpha=0.85, label="kinetic")
    axes.plot(*_thin(times, potential), color=COLORS[2], lw=0.8, alpha=0.85, label="potential − start")
    label_axes(axes, label, "energy (meV/atom)")
    axes.legend(
        frameon=False,
        ncols=2,
        fontsize=9,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0,
        borderpad=0.1,
    )


def _draw_distribution(
    axes: "Axes", distances: np.ndarray, curves: Mapping[str, np.ndarray], reference: np.ndarray | None
) -> None:
    if reference is not None:
        axes.fill_between(distances, reference, color=REFERENCE_COLOR, alpha=0.18, lw=0)
        axes.plot(distances, reference, color=REFERENCE_COLOR, lw=0.8, label="reference")
    for color, (name, values) in zip(_colors(len(curves)), curves.items(), strict=True):
        axes.plot(distances, values, color=color, lw=1.2, alpha=0.9, label=name)
    every = np.sum([*curves.values()], axis=0) + (0 if reference is None else reference)
    occupied = np.flatnonzero(every)
    if len(occupied):  # nothing to see where there are no pairs
        width = distances[1] - distances[0]
        start, end = distances[occupied[0]] - 0.3, distances[occupied[-1]] + 0.3
        axes.set_xlim(max(0.0, start), min(end, distances[-1] + width))
    axes.set_ylim(bottom=0)
    label_axes(axes, "interatomic distance r (Å)", "h(r) (1/Å)")
    axes.legend(frameon=False)


def _draw_bonds(axes: "Axes", report: Report) -> None:
    bonds, verdict = report.bonds, next(v for v in report.verdicts if v.name == "largest bond deviation")
    if not bonds.names or verdict.threshold is None:
        _say(axes, "no bonds in the first frame")
        return
    times, label = _times(report.trajectory.times_fs, len(bonds.largest), "frame")
    axes.plot(*_thin(times, bonds.largest), color=COLORS[0], lw=0.9)
    axes.axhline(verdict.threshold, color=COLORS[1], lw=1.2, ls="--")
    if bonds.first_frame is None:
        axes.set_ylim(0, max(1.15 * verdict.threshold, 0.0))
    else:
        axes.set_ylim(0, min(float(bonds.largest.max()) * 1.05, 4.0))
        axes.axvline(times[bonds.first_frame], color=COLORS[1], lw=1.2)
        axes.set_title(f"{bonds.broken} breaks", loc="right", fontsize=9, color=COLORS[1])
    label_axes(axes, label, "|length − reference| (Å)")


def _draw_radial(axes: "Axes", found: RadialDistributions, expected: RadialDistributions | None) -> None:
    top, beyond = 1.0, found.distances > _LONGEST_BOND
    for color, (pair, values) in zip(_colors(len(found.functions)), found.functions.items(), strict=True):
        if expected is not None and pair in expected.functions:
            axes.plot(expected.distances, expected.functions[pair], color=REFERENCE_COLOR, lw=0.8, ls="--")
        axes.plot(found.distances, values, color=color, lw=1.2, alpha=0.9, label=pair)
        top = max(top, float(values[beyond].max(initial=0.0)))
    axes.set_ylim(0, 1.1 * top)
    label_axes(axes, "interatomic distance r (Å)", "g(r)")
    axes.legend(frameon=False, fontsize=9, ncols=-(-len(found.functions) // 6))


def _draw_displacements(axes: "Axes", report: Report) -> None:
    for color, one in zip(_colors(len(report.diffusion)), report.diffusion, strict=True):
        times = one.times_fs / _FS_PER_PS
        axes.plot(*_thin(times, one.mean_square_displacement), color=color, lw=1.2, label=one.element)
    axes.axvspan(times[one.fitted], times[-1], color="0.94", zorder=0)
    axes.set_ylim(bottom=0)
    label_axes(axes, "time (ps)", "mean square displacement (Å²)")
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _draw_spectrum(axes: "Axes", report: Report) -> None:
    for spectrum, color, label in (
        (report.reference_spectrum, REFERENCE_COLOR, "reference"),
        (report.spectrum, COLORS[0], "trajectory"),
    ):
        if spectrum is not None:
            shown = spectrum[0] <= LAST_WAVENUMBER
            axes.plot(spectrum[0][shown], spectrum[1][shown], color=color, lw=1.0, alpha=0.9, label=label)
    axes.set_ylim(bottom=0)
    label_axes(axes, "wavenumber (1/cm)", "density of states (cm)")
    axes.legend(frameon=False, fontsize=9)


def _times(times_fs: np.ndarray | None, count: int, counted: str = "row") -> tuple[np.ndarray, str]:
    """Values and label of the time axis; numbers of rows where the file has no times."""
    if times_fs is None:
        return np.arange(count, dtype=np.float64), counted
    return times_fs / _FS_PER_PS, "time (ps)"


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MOST_POINTS` points that keep the extremes of every stretch, so the line looks the same."""
    if len(x) <= _MOST_POINTS:
        return x, y
    stretches = np.array_split(np.arange(len(x)), _MOST_POINTS // 2)
    extremes = [(s[0] + y[s].argmin(), s[0] + y[s].argmax()) for s in stretches]
    rows = np.unique(extremes)
    return x[rows], y[rows]


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of its own, in inches.

    Raises:
        InputError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("plots need matplotlib, which is not installed: pip install 'ggnn-ff[analysis]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _colors(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def label_axes(axes: "Axes", x: str, y: str) -> None:
    """Labels, and the style that all pictures have."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", lw=0.8)
    axes.set_axisbelow(True)


def _say(axes: "Axes", text: str) -> None:
    """For a panel that has nothing to show."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color="0.4", transform=axes.transAxes)
