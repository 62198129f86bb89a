"""The architectures: each turns a graph into per-atom features and knows nothing else."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from torch import nn

from ggnn_ff.errors import InputError, nearest
from ggnn_ff.layers import linear_readout, mlp_readout
from ggnn_ff.models import (
    dimenet,
    egnn,
    equivariant_transformer,
    gemnet,
    gotennet,
    mace,
    nequip,
    painn,
    schnet,
    spherenet,
    tfn,
)
from ggnn_ff.models.dimenet import DimeNet, DimeNetHyperparameters
from ggnn_ff.models.egnn import EGNN, EGNNHyperparameters
from ggnn_ff.models.equivariant_transformer import EquivariantTransformer, EquivariantTransformerHyperparameters
from ggnn_ff.models.gemnet import GemNet, GemNetHyperparameters
from ggnn_ff.models.gotennet import GotenNet, GotenNetHyperparameters
from ggnn_ff.models.mace import MACE, MACEHyperparameters, MACEReadout
from ggnn_ff.models.nequip import NequIP, NequIPHyperparameters
from ggnn_ff.models.painn import PaiNN, PaiNNHyperparameters
from ggnn_ff.models.schnet import SchNet, SchNetHyperparameters
from ggnn_ff.models.spherenet import SphereNet, SphereNetHyperparameters
from ggnn_ff.models.tfn import TFN, TFNHyperparameters


class Architecture(NamedTuple):
    """What a name in `MODELS` stands for."""

    representation: Callable[[Any, float, list[str]], nn.Module]  # hyper-parameters, cutoff, elements -> module
    hyperparameters: type[BaseModel]
    presets: Mapping[str, BaseModel]  # small, default (as in the paper), large
    readout: Callable[[int], nn.Module] = mlp_readout  # of the module's `n_features` features -> (N, 1)
    learning_rate: float = 5e-3  # the first one of a short training in batches of five
    amsgrad: bool = False  # against spikes at large learning rates; as the authors of MACE and NequIP train


MODELS: dict[str, Architecture] = {
    "schnet": Architecture(SchNet, SchNetHyperparameters, schnet.PRESETS, schnet.readout),
    "dimenet": Architecture(DimeNet, DimeNetHyperparameters, dimenet.PRESETS, linear_readout),
    "egnn": Architecture(EGNN, EGNNHyperparameters, egnn.PRESETS, learning_rate=1e-3),
    "equivariant_transformer": Architecture(
        EquivariantTransformer,
        EquivariantTransformerHyperparameters,
        equivariant_transformer.PRESETS,
        learning_rate=1e-2,
    ),
    "gemnet": Architecture(GemNet, GemNetHyperparameters, gemnet.PRESETS, linear_readout),
    "gotennet": Architecture(GotenNet, GotenNetHyperparameters, gotennet.PRESETS, amsgrad=True),  # 1e-2 diverges
    "mace": Architecture(MACE, MACEHyperparameters, mace.PRESETS, MACEReadout, 1e-2, amsgrad=True),
    "nequip": Architecture(NequIP, NequIPHyperparameters, nequip.PRESETS, linear_readout, 1e-2, amsgrad=True),
    "painn": Architecture(PaiNN, PaiNNHyperparameters, painn.PRESETS, learning_rate=2e-3),  # 5e-3: dead units
    "spherenet": Architecture(SphereNet, SphereNetHyperparameters, spherenet.PRESETS, linear_readout),
    "tfn": Architecture(TFN, TFNHyperparameters, tfn.PRESETS, learning_rate=2e-3, amsgrad=True),
}


def architecture(name: str) -> Architecture:
    """Looks `name` up in `MODELS`.

    Raises:
        InputError: no such architecture.
    """
    if name not in MODELS:
        raise InputError(f"`model.name` must be one of {', '.join(MODELS)}, got '{name}'{nearest(name, MODELS)}")
    return MODELS[name]
