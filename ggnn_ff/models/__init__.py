"""The architectures: each turns a graph into per-atom features and knows nothing else."""

from typing import NamedTuple

from pydantic import BaseModel
from torch import nn

from ggnn_ff.errors import InputError, nearest
from ggnn_ff.models.painn import PaiNN, PaiNNHyperparameters


class Architecture(NamedTuple):
    """A representation `(hyperparameters, cutoff) -> module`, and the type of its hyper-parameters."""

    representation: type[nn.Module]
    hyperparameters: type[BaseModel]


MODELS: dict[str, Architecture] = {
    "painn": Architecture(PaiNN, PaiNNHyperparameters),
}


def architecture(name: str) -> Architecture:
    """Looks `name` up in `MODELS`.

    Raises:
        InputError: no such architecture.
    """
    if name not in MODELS:
        raise InputError(f"`model.name` must be one of {', '.join(MODELS)}, got '{name}'{nearest(name, MODELS)}")
    return MODELS[name]
