"""A report as a table, a JSON file, a picture and a page."""

import json
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ggnn_ff.files import holding, write_atomically
from ggnn_ff.stability.html import write_html
from ggnn_ff.stability.plots import plot_check, save_figure
from ggnn_ff.stability.report import Report


def report_table(report: Report) -> Table:
    """The verdicts as a table for the terminal."""
    trajectory = report.trajectory
    title = f"{escape(trajectory.source)}: {len(trajectory)} frames of {len(trajectory.numbers)} atoms"
    table = Table(title=title, show_lines=True)
    table.add_column("check", overflow="fold", ratio=1)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("threshold", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    outcomes = {True: "[green]pass[/green]", False: "[bold red]FAIL[/bold red]", None: "-"}
    for verdict in report.verdicts:
        threshold = "-" if verdict.threshold is None else f"{verdict.threshold:g}"
        check = f"{verdict.name}\n[dim]{escape(verdict.explanation)}[/dim]"
        table.add_row(check, verdict.text, threshold, verdict.unit, outcomes[verdict.passed])
    if trajectory.notes:
        table.caption = escape("; ".join(trajectory.notes))
    return table


def write_report(report: Report, folder: str | Path) -> None:
    """Writes `check.json`, `check.png` and `check.html` into a folder, each in one step.

    Raises:
        InputError: if matplotlib is not installed; `check.json` is written before.
        OSError: if the folder cannot be written.
    """
    folder = Path(folder)
    text = json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "check.json", holding(text))
    save_figure(plot_check(report), folder / "check.png")
    write_html(report, folder / "check.html")
