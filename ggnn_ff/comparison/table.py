"""The table of a comparison, for people."""

from collections.abc import Sequence

from ggnn_ff.comparison.row import Dynamics, Row
from ggnn_ff.comparison.settings import Sizes
from ggnn_ff.stability.smoothness import NEGLIGIBLE

ROUNDING = 1e-12  # over the largest force: smaller jumps are those of float64


def header(rows: Sequence[Row], sizes: Sizes) -> list[str]:
    """Names of the columns, with their units."""
    atoms = [f"ms/step, {speed.n_atoms} atoms" for speed in rows[0].speed] if rows else []
    return [
        "model",
        "parameters",
        "learning rate",
        "epochs",
        "energy MAE (meV)",
        "force MAE (meV/Å)",
        *atoms,
        "energy jump (eV)",
        "force jump (eV/Å)",
        "largest force there (eV/Å)",
        f"drift, {sizes.nve_temperature:g} K (meV/atom/ps)",
        "fluctuation (meV/atom)",
        f"stable at {sizes.hot_temperature:g} K (ps)",
    ]


def cells(row: Row, sizes: Sizes) -> list[str]:
    """One row, in the order of `header`."""
    return [
        row.model,
        f"{row.n_parameters:,}",
        f"{row.learning_rate:g}",
        str(row.epochs),
        f"{row.errors.energy_mae_mev:.2f}",
        f"{row.errors.forces_mae_mev_per_angstrom:.2f}",
        *(f"{speed.step_ms:.2f} ({speed.evaluation_ms:.2f})" for speed in row.speed),
        _jump(row.energy_jump, row.largest_force),
        _jump(row.forces_jump, row.largest_force),
        "-" if row.largest_force is None else f"{row.largest_force:.2g}",
        *_conservation(row.nve),
        f"{row.hot.picoseconds:.2f}" if row.hot.stopped else f"≥ {sizes.hot_ps:g}",
    ]


def _jump(size: float, largest_force: float | None) -> str:
    rounding = ROUNDING * (largest_force or 0.0)
    return "none" if size <= max(NEGLIGIBLE, rounding) else f"{size:.1e}"


def _conservation(nve: Dynamics) -> tuple[str, str]:
    if nve.drift_mev_per_atom_per_ps is None or nve.fluctuation_mev_per_atom is None:
        return f"broke after {nve.picoseconds:.2f} ps", "-"
    drift = f"{nve.drift_mev_per_atom_per_ps:+.4f} ± {nve.drift_error:.4f}"
    return drift, f"{nve.fluctuation_mev_per_atom:.3f}"


def markdown(rows: Sequence[Row], failures: dict[str, str], sizes: Sizes, notes: Sequence[str]) -> str:
    """The table in Markdown, with notes above and, for architectures without a row, the reasons below."""
    lines = [*notes, ""]
    if rows:
        names = header(rows, sizes)
        lines += [_line(names), _line(["---"] + ["---:"] * (len(names) - 1))]
        lines += [_line(cells(row, sizes)) for row in rows]
    lines += [f"\n{name}: no row, for {reason}" for name, reason in failures.items()]
    return "\n".join(lines) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"
