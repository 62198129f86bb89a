"""What a molecular-dynamics run is told."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ggnn_ff.errors import InputError, validated


class MDSettings(BaseModel):
    """The run's settings; also what `run.json` records."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ensemble: Literal["nve", "langevin", "nose-hoover"] = "nve"
    temperature: float | None = Field(
        default=300.0,
        ge=0.0,
        description="K; of the first velocities and the bath; none: the structure's own momenta",
    )
    timestep: float = Field(default=0.5, gt=0.0, le=10.0, description="fs")
    steps: int = Field(default=10_000, ge=1)
    host: Literal["ase", "openmm", "batched"] = Field(default="ase", description="batched: for replicas")
    backend: Literal["auto", "torch", "python"] = Field(default="auto", description="of the OpenMM force")
    friction: float = Field(default=0.01, gt=0.0, description="1/fs, of the Langevin bath")
    seed: int = Field(default=0, ge=0)
    on_alarm: Literal["warn", "stop"] = Field(
        default="warn", description="of the guard; broken bonds and numbers that are not finite always stop a run"
    )
    log_every: int = Field(default=10, ge=1, description="steps between rows of energies.csv")
    frame_every: int = Field(default=100, ge=1, description="steps between frames, a multiple of log_every")


def make_settings(**values: Any) -> MDSettings:
    """Validated settings.

    Raises:
        InputError: naming each value that does not fit.
    """
    settings = validated(MDSettings, values)
    if settings.frame_every % settings.log_every:
        raise InputError(
            f"`frame_every` must be a multiple of `log_every`, got {settings.frame_every} and {settings.log_every}"
        )
    if settings.ensemble != "nve" and settings.temperature is None:
        raise InputError(f"`temperature` must be given for a {settings.ensemble} run, got none")
    if settings.ensemble == "nose-hoover" and settings.temperature == 0.0:
        raise InputError("`temperature` must be above 0 K for a nose-hoover run, got 0; langevin can be at 0 K")
    if settings.ensemble == "nose-hoover" and settings.host != "batched":
        raise InputError(
            f"`ensemble` must be nve or langevin on host {settings.host!r}, got nose-hoover; give --replicas"
        )
    return settings
