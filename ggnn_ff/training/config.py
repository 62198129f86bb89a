"""What a training run is told, as one validated object that is also a YAML file."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ggnn_ff.contract import LONGEST_CUTOFF
from ggnn_ff.errors import InputError, nearest
from ggnn_ff.models import architecture


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise PydanticCustomError("true_or_false", "must not be true or false")
        return value


class DataConfig(Section):
    """Which frames train, validate and test.

    Either one file `train` from which `n_train` + `n_valid` (+ `n_test`) frames are drawn with `seed`, or index files
    into it, or a file for each purpose. With `test` or `valid` as files, only the rest is drawn from `train`.
    The units, where given, are those of all these files; `isolated_atoms` are in `energy_unit`, without it in eV.
    """

    train: Path
    valid: Path | None = None
    test: Path | None = None
    n_train: int | None = Field(default=None, ge=1)
    n_valid: int | None = Field(default=None, ge=1)
    n_test: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    train_indices: Path | None = None
    valid_indices: Path | None = None
    test_indices: Path | None = None
    energy_unit: str | None = None
    length_unit: str | None = None
    level_of_theory: str | None = None
    isolated_atoms: Path | None = None

    def resolve(self, folder: Path) -> "DataConfig":
        """The same with paths taken relative to `folder`, where the configuration file lies."""
        paths = {k: folder / v.expanduser() for k, v in self if isinstance(v, Path)}
        return self.model_copy(update=paths)


class ModelConfig(Section):
    """Which architecture, in which size; `hyperparameters` replace single ones of the preset."""

    name: str = "painn"
    preset: Literal["small", "default", "large"] = "default"
    cutoff: float = Field(default=5.0, gt=0.0, le=LONGEST_CUTOFF, description="angstrom")
    hyperparameters: dict[str, int | float | str | bool] = {}
    start_from: Path | None = Field(
        default=None,
        description="a trained potential of the same architecture, cutoff and elements whose weights training begins "
        "with, such as one of many frames of a cheap method; a folder, a file or the name of one that ships",
    )

    @model_validator(mode="after")
    def _hyperparameters_belong_to_the_architecture(self) -> "ModelConfig":
        fields = architecture(self.name).hyperparameters.model_fields
        for name, value in self.hyperparameters.items():
            if isinstance(value, bool) and name in fields and fields[name].annotation is not bool:
                raise ValueError(f"`model.hyperparameters.{name}` must not be true or false, got {value}")
        try:
            self.chosen()
        except ValidationError as error:
            kind = architecture(self.name).hyperparameters
            raise ValueError("\n  ".join(_explain(error, kind, "model.hyperparameters."))) from error
        return self

    def chosen(self) -> BaseModel:
        """The hyper-parameters of the architecture."""
        kind, presets = architecture(self.name).hyperparameters, architecture(self.name).presets
        return kind(**{**presets[self.preset].model_dump(), **self.hyperparameters})

    def resolve(self, folder: Path) -> "ModelConfig":
        """The same with `start_from` taken relative to `folder`, if there is such a file."""
        if self.start_from is None:
            return self
        path = folder / self.start_from.expanduser()
        return self.model_copy(update={"start_from": path}) if path.exists() else self


class LossConfig(Section):
    """What is made small, in units of the forces' RMS in the training set.

    squares: energy_weight <dE^2 / N> + forces_weight <dF^2>, over structures and components of forces.
    norms: energy_weight <|dE| / sqrt(N)> + forces_weight <|dF|>, over structures and atoms; frames with large errors
    count less, which suits a mean absolute error (as in GemNet, arXiv 2106.08903). Its gradient does not become
    smaller with the errors, so it wants a schedule that ends low, and with `amsgrad` smaller learning rates.
    """

    error: Literal["squares", "norms"] = "squares"
    energy_weight: float = Field(default=0.005, ge=0.0)
    forces_weight: float = Field(default=1.0, ge=0.0)

    @model_validator(mode="after")
    def _something_is_learned(self) -> "LossConfig":
        if self.energy_weight == self.forces_weight == 0.0:
            raise ValueError("`loss.energy_weight` or `loss.forces_weight` must be above zero, got 0 for both")
        return self


class OptimizerConfig(Section):
    """How weights are changed, the schedule and its ends."""

    method: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: matrices take steps of Muon, which are fewer, all other weights of AdamW"
    )
    epochs: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=10, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0.0)
    weight_decay: float = Field(default=1e-6, ge=0.0)
    amsgrad: bool = Field(default=False, description="AMSGrad, arXiv 1904.09237: large learning rates without spikes")
    gradient_clip: float = Field(default=1.0, gt=0.0, description="largest norm of the gradient")
    ema_decay: float = Field(default=0.99, ge=0.0, lt=1.0, description="exponential average of the weights, per step")
    schedule: Literal["plateau", "cosine"] = "plateau"
    plateau_patience: int = Field(default=25, ge=1, description="validations")
    plateau_factor: float = Field(default=0.5, gt=0.0, lt=1.0)
    smallest_learning_rate: float = Field(default=1e-6, gt=0.0)
    early_stopping_patience: int | None = Field(default=None, ge=1, description="validations; none: run all epochs")
    validate_every: int = Field(default=1, ge=1, description="epochs between validations and checkpoints")

    @model_validator(mode="after")
    def _the_learning_rate_falls(self) -> "OptimizerConfig":
        if self.smallest_learning_rate > self.learning_rate:
            raise ValueError(
                "`optimizer.smallest_learning_rate` must be at most `optimizer.learning_rate`, got "
                f"{self.smallest_learning_rate:g} and {self.learning_rate:g}; lower it"
            )
        return self

    @model_validator(mode="after")
    def _the_last_epoch_is_validated(self) -> "OptimizerConfig":
        if self.epochs % self.validate_every:
            raise ValueError(
                "`optimizer.epochs` must be a multiple of `optimizer.validate_every`, for only validated weights are "
                f"kept, got {self.epochs} and {self.validate_every}"
            )
        return self


class RunConfig(Section):
    """Where and in what precision."""

    dtype: Literal["float32", "float64"] = "float32"
    seed: int = Field(default=0, ge=0, lt=2**63)
    accelerator: str = "auto"
    devices: int | str = "auto"
    strategy: str = "auto"
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPU threads; none: what torch chooses. In a compiled training they share the frames of a batch: "
        "of 10 frames 2 threads take 5 each; 5 frames they cannot share",
    )
    compile: bool = Field(default=False, description="compile loss and gradient as one graph; needs a C++ compiler")
    budget_minutes: float | None = Field(
        default=None,
        gt=0.0,
        description="wall-clock time of training, compilation and validation, over all starts; it ends the training in "
        "place of `optimizer.epochs`, and a cosine schedule anneals over it. There are some 200 validations at most. "
        "How far a training comes depends on the machine, and one that was interrupted does not end with the same bits "
        "as one that was not",
    )


class TrainingConfig(Section):
    """All of it."""

    output: Path
    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _the_last_weights_are_validated(self) -> "TrainingConfig":
        if self.run.budget_minutes is not None and self.optimizer.validate_every != 1:
            raise ValueError(
                "`optimizer.validate_every` must be 1 with `run.budget_minutes`, for time may be up in any epoch and "
                f"only validated weights are kept, got {self.optimizer.validate_every}"
            )
        return self


class _UniqueKeys(yaml.SafeLoader):
    """YAML's own loader lets the last of equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> TrainingConfig:
    """Reads a YAML file; relative paths in it are relative to its folder, `output` to the working directory.

    Raises:
        InputError: no such file, not YAML, or a key or value that does not fit, naming the nearest key that does.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`config` must be a readable YAML file, got {path}: {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: dates that there are not
        raise InputError(f"`config` must be valid YAML, got {path}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"`config` must hold keys such as output, data and model, got {path} with {content!r}")
    config = make_config(content)
    parts = {
        "output": config.output.expanduser(),
        "data": config.data.resolve(path.parent),
        "model": config.model.resolve(path.parent),
    }
    return config.model_copy(update=parts)


def make_config(content: dict[str, Any]) -> TrainingConfig:
    """Validates a nested dict.

    Raises:
        InputError: each key or value that does not fit, with the nearest key that does.
    """
    try:
        return TrainingConfig.model_validate(content)
    except ValidationError as error:
        lines = "\n  ".join(_explain(error, TrainingConfig))
        raise InputError(f"the training configuration does not fit:\n  {lines}") from error


def _explain(error: ValidationError, section: type[BaseModel], prefix: str = "") -> list[str]:
    """A line for each key or value in `section` that does not fit; `prefix` is put before its name."""
    lines = []
    for item in error.errors():
        name = prefix + ".".join(str(part) for part in item["loc"])
        if item["type"] == "missing":
            lines.append(f"`{name}` is required and missing")
        elif item["type"] == "extra_forbidden":
            known = list(_section_at(section, item["loc"][:-1]).model_fields)
            hint = nearest(str(item["loc"][-1]), known)
            lines.append(f"`{name}` is not a key{hint}; known here: {', '.join(known)}")
        elif item["type"] == "value_error":  # written here or in `models`: names what it is about
            lines.append(item["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"`{name}`: {item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r}")
    return lines


def _section_at(section: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    for part in location:
        section = section.model_fields[str(part)].annotation  # type: ignore[assignment]
    return section
