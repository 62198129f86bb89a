"""Ours: architecture and hyper-parameters as arguments, random weights, compiled."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.build import molecule
from server import ELEMENTS, serve

from ggnn_ff.contract import TrainingData
from ggnn_ff.export import LoadedPotential, load_potential, write_potential
from ggnn_ff.hosts.ase import GGNNCalculator
from ggnn_ff.models import MODELS
from ggnn_ff.potential import Potential
from ggnn_ff.training.contract import make_contract


def untrained(name: str, hyperparameters: dict[str, Any]) -> LoadedPotential:
    """A potential with random weights and forces too small to move much, in float32, cutoff 5 angstrom."""
    torch.manual_seed(0)
    settings = MODELS[name].hyperparameters(**hyperparameters)
    potential = Potential(name, settings, 5.0, ELEMENTS, torch.float32)
    potential.scale.fill_(1e-3)
    nothing = TrainingData(name="none", n_train=1, n_valid=0, sha256="0" * 64)
    contract = make_contract(
        potential,
        name,
        settings.model_dump(),
        molecule("CH3CH2OH"),
        elements=ELEMENTS,
        level_of_theory="none, random weights",
        training_data=nothing,
        test_errors=None,
    )
    with tempfile.TemporaryDirectory() as folder:
        write_potential(Path(folder), potential, contract)
        return load_potential(folder)


if __name__ == "__main__":
    loaded = untrained(sys.argv[1], json.loads(sys.argv[2]))

    def make_calculator(atoms: Atoms) -> GGNNCalculator:
        return GGNNCalculator(loaded, compile=True)

    serve(make_calculator, {"torch": torch.__version__})
