"""What a comparison is told."""

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ggnn_ff.errors import InputError, nearest
from ggnn_ff.models import MODELS
from ggnn_ff.training.config import TrainingConfig, make_config

CANDIDATES: dict[str, tuple[str, dict[str, int | float | str | bool]]] = {
    **{name: (name, {}) for name in MODELS},
    "spherenet-published": ("spherenet", {"torsion": "published"}),  # not smooth; here to show what that does
}
"""What can be compared: name of a row -> architecture, and hyper-parameters that are not those of the preset."""

_MINUTES = {"s": 1.0 / 60.0, "min": 1.0, "h": 60.0}


class Settings(BaseModel):
    """The same for every architecture."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    data: Path
    test: Path
    budget_minutes: float = Field(default=15.0, gt=0.0)
    n_valid: int = Field(default=50, ge=1, alias="valid", description="frames of `data` that validate; others train")
    preset: Literal["small", "default", "large"] = "small"
    cutoff: float = Field(default=5.0, gt=0.0, description="angstrom")
    batch_size: int = Field(default=5, ge=1)
    learning_rate: float | None = Field(
        default=None, gt=0.0, description="the first; a cosine takes it down over the budget; none: the architecture's"
    )
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1, description="CPU threads of training; none: what torch chooses")
    compile: bool = False

    def training(self, candidate: str, output: Path) -> TrainingConfig:
        """The configuration with which one of `CANDIDATES` is trained."""
        model, hyperparameters = CANDIDATES[candidate]
        learning_rate = MODELS[model].learning_rate if self.learning_rate is None else self.learning_rate
        return make_config(
            {
                "output": output,
                "data": {"train": self.data, "test": self.test, "n_valid": self.n_valid, "seed": self.seed},
                "model": {
                    "name": model,
                    "preset": self.preset,
                    "cutoff": self.cutoff,
                    "hyperparameters": hyperparameters,
                },
                "optimizer": {
                    "batch_size": self.batch_size,
                    "learning_rate": learning_rate,
                    "amsgrad": MODELS[model].amsgrad,
                    "schedule": "cosine",
                },
                "run": {
                    "seed": self.seed,
                    "threads": self.threads,
                    "compile": self.compile,
                    "budget_minutes": self.budget_minutes,
                },
            }
        )


class Sizes(BaseModel):
    """How much is measured of each architecture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lines: int = 200  # of each kind that is searched for jumps
    line_step: float = 5e-3  # angstrom
    timestep: float = 0.5  # fs
    equilibration_ps: float = 2.5
    nve_ps: float = 20.0
    nve_temperature: float = 300.0  # K
    hot_ps: float = 100.0
    hot_temperature: float = 500.0  # K
    evaluations: int = 50  # at most, to time one
    seconds: float = 20.0  # at most, to time one


def parse_budget(text: str) -> float:
    """Minutes of a time such as "15min", "90s" or "1.5h".

    Raises:
        InputError: it has no unit, or is no time.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h)\s*", text)
    if match is None or float(match[1]) == 0.0:
        raise InputError(f"`budget` must be a number above zero with the unit s, min or h, such as 15min, got {text!r}")
    return float(match[1]) * _MINUTES[match[2]]


def parse_models(text: str) -> list[str]:
    """Names in `CANDIDATES`, in its order, from "all" or "painn,mace".

    Raises:
        InputError: no such name, with the nearest one.
    """
    if text.strip() == "all":
        return list(CANDIDATES)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in CANDIDATES:
            raise InputError(
                f"`models` must be all, or some of {', '.join(CANDIDATES)} with commas between, got '{name}'"
                f"{nearest(name, CANDIDATES)}"
            )
    return [name for name in CANDIDATES if name in names]
