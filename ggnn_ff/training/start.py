"""Training that begins with the weights of another potential, such as one of many frames of a cheap method."""

from collections.abc import Mapping

from ggnn_ff.contract import StartedFrom
from ggnn_ff.data.splits import Split
from ggnn_ff.errors import InputError, tell
from ggnn_ff.export import LoadedPotential, load_potential
from ggnn_ff.potential import Potential
from ggnn_ff.training.config import ModelConfig


def load_start(config: ModelConfig, elements: list[str]) -> LoadedPotential | None:
    """The potential that `config.start_from` names, if it names one.

    Raises:
        InputError: it cannot be loaded, or is of another architecture, size, cutoff or other elements.
    """
    if config.start_from is None:
        return None
    try:
        loaded = load_potential(config.start_from)
    except InputError as error:
        raise InputError(f"`model.start_from`: {error}") from error
    there = loaded.contract
    asked: dict[str, tuple[object, object]] = {
        "`model.name`": (config.name, there.architecture),
        "`model.cutoff`": (config.cutoff, there.cutoff),
        "the elements of `data.train`": (elements, there.elements),
    }
    if config.name == there.architecture:
        complete = type(config.chosen())(**there.hyperparameters)  # with what an older contract does not have yet
        asked |= _differences(config.chosen().model_dump(), complete.model_dump())
    wrong = [f"{name} is {here}, there {other}" for name, (here, other) in asked.items() if here != other]
    if wrong:
        raise InputError(
            f"`model.start_from` {config.start_from} must be a potential of the same kind, but {'; '.join(wrong)}; "
            "make them equal, or leave `start_from` out"
        )
    return loaded


def _differences(here: Mapping[str, object], there: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    return {f"`model.hyperparameters.{name}`": (here.get(name), there.get(name)) for name in names}


def tell_of_shared_frames(start: LoadedPotential, split: Split) -> None:
    """Says so where frames that validate or test may be those that the weights come from."""
    before = start.contract.training_data
    for name, frames in (("validate", split.valid), ("test", split.test)):
        if len(frames) and frames.sha256 == before.sha256:
            tell(
                f"the potential that training starts from was trained on frames of {before.name}, from which those "
                f"that {name} are taken too: unless it was not trained on the same, its errors come out too small"
            )


def copy_weights(start: LoadedPotential, potential: Potential) -> None:
    """All but the shift, which belongs to the level of theory."""
    weights = start.module.potential.state_dict()  # type: ignore[union-attr]
    kept = {name: weights[name] for name in potential.state_dict()}  # a TorchScript file has constants as well
    potential.load_state_dict({**kept, "shift": potential.shift})


def started_from(start: LoadedPotential | None) -> StartedFrom | None:
    """What the contract says of it."""
    if start is None:
        return None
    contract = start.contract
    return StartedFrom(
        identity=contract.identity, level_of_theory=contract.level_of_theory, training_data=contract.training_data
    )
