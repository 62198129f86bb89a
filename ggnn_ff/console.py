"""What the command shows: messages, progress bars, and contracts as tables."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from ggnn_ff.contract import Certification

console = Console()


@contextmanager
def progress_bar(unit: str) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar and its task, which counts `unit`."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield progress, progress.add_task("", total=None)


def print_contract(potential: str | Path) -> None:
    """The contract of a potential as a table, a row for each value."""
    from ggnn_ff.export import load_potential

    contract = load_potential(potential).contract
    table = Table(title=str(potential), show_header=False)
    table.add_column("field", overflow="fold")
    table.add_column("value", overflow="fold")
    for field, value in contract.model_dump(exclude={"example": True, "domain": {"surroundings"}}).items():
        if field == "certification" and contract.certification is not None:
            _add_certification(table, contract.certification)
        else:
            for name, text in _rows(field, value):
                table.add_row(name, text)
    console.print(table)


def _add_certification(table: Table, certification: "Certification") -> None:
    outcome = "passed" if certification.passed else "not passed"
    about = f"{outcome}, {certification.date}, {certification.structure}, ggnn-ff {certification.package_version}"
    table.add_row("certification", about)
    if certification.protocol is not None:
        table.add_row("certification.protocol", ", ".join(f"{k} {v}" for k, v in certification.protocol.items()))
    for figure in certification.figures:
        verdict = {True: "pass", False: "FAIL", None: "not judged"}[figure.passed]
        value = "" if figure.value is None else f"{figure.value:.3g} {figure.unit}, "
        table.add_row(f"certification.{figure.name}", value + verdict)


def _rows(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A row for each value of a contract; lists of hyper-parameters and distances stay in one."""
    if isinstance(value, dict) and name not in ("hyperparameters", "domain.distances"):
        for key, item in value.items():
            yield from _rows(f"{name}.{key}", item)
    elif isinstance(value, float):
        yield name, f"{value:.4g}"
    else:
        yield name, "none" if value is None else json.dumps(value) if isinstance(value, dict | list) else str(value)
