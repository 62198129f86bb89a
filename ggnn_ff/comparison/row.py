"""What was found out about one architecture: a row of the table."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ggnn_ff.contract import TestErrors


class Part(BaseModel):
    """A part of a row; complete, and without NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Speed(Part):
    """Median times for one structure, one thread, float32."""

    structure: str
    n_atoms: int
    evaluation_ms: float  # energy, forces and stress, with a given neighbour list
    step_ms: float  # of constant-energy dynamics in ASE, neighbour list included


class LargestJumps(Part):
    """Along lines of one kind, in float64."""

    lines: Literal["random lines", "cutoff crossings", "neighbour swaps"]
    energy_ev: float
    forces_ev_per_angstrom: float
    largest_force_ev_per_angstrom: float | None = None  # on these lines; rows of older versions have none


class Dynamics(Part):
    """How far a simulation came, and how well it kept its energy."""

    temperature: float  # K
    picoseconds: float
    stopped: str | None  # why, if it did not come to its end
    drift_mev_per_atom_per_ps: float | None = None
    drift_error: float | None = None
    fluctuation_mev_per_atom: float | None = None


class CurvePoint(Part):
    """Errors on the validation frames some time after the training began."""

    minutes: float
    epoch: int
    energy_mae_mev: float
    forces_mae_mev_per_angstrom: float


class Row(Part):
    """One architecture."""

    model: str
    hyperparameters: dict[str, int | float | str | bool]
    n_parameters: int
    learning_rate: float  # the first one
    device: str  # that trained it
    epochs: int
    errors: TestErrors
    speed: list[Speed]
    jumps: list[LargestJumps]
    nve: Dynamics
    hot: Dynamics
    curve: list[CurvePoint]

    @property
    def largest_force(self) -> float | None:
        """eV/angstrom, on lines of any kind; enormous where the potential extrapolates to nonsense."""
        known = [jumps.largest_force_ev_per_angstrom for jumps in self.jumps]
        return None if None in known else max(size for size in known if size is not None)

    @property
    def energy_jump(self) -> float:
        """eV, the largest along lines of any kind."""
        return max(jumps.energy_ev for jumps in self.jumps)

    @property
    def forces_jump(self) -> float:
        """eV/angstrom, the largest along lines of any kind."""
        return max(jumps.forces_ev_per_angstrom for jumps in self.jumps)
