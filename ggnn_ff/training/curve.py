"""The learning curve of a run, from its CSV logs."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggnn_ff.errors import InputError

PANELS = {
    "loss": {"train": "train_loss", "validation": "valid_loss"},
    "energy MAE (meV)": {"validation": "valid_energy_mae_mev"},
    "force MAE (meV/Å)": {"validation": "valid_forces_mae_mev_per_angstrom"},
}


@dataclass(frozen=True)
class LearningCurve:
    """Losses and errors by epoch.

    Attributes:
        epochs: (K,).
        minutes: (K,) since the training began, without interruptions; NaN where an epoch has no validation.
        panels: label of the axis to curves by name, each (K,), NaN where an epoch has no value.
    """

    epochs: np.ndarray
    minutes: np.ndarray
    panels: dict[str, dict[str, np.ndarray]]


def read_learning_curve(run: Path) -> LearningCurve:
    """Reads the logs of a run; each resumption has its own, and the later one counts.

    Raises:
        InputError: there are none.
    """
    rows: dict[int, dict[str, float]] = {}
    logs = sorted(run.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    for log in logs:
        with open(log, encoding="utf8", newline="") as file:
            for row in csv.DictReader(file):
                values = {key: float(value) for key, value in row.items() if value}
                rows.setdefault(int(values.pop("epoch")), {}).update(values)
    if not rows:
        raise InputError(f"`run` must be the folder of a training with logs in csv/, got {run}")
    epochs = sorted(rows)
    panels = {
        label: {name: np.array([rows[e].get(column, np.nan) for e in epochs]) for name, column in curves.items()}
        for label, curves in PANELS.items()
    }
    minutes = np.array([rows[e].get("minutes", np.nan) for e in epochs])
    return LearningCurve(np.array(epochs), minutes, panels)
