"""Potentials with random weights on disk, in a scale at which energies and forces are those of molecules."""

from pathlib import Path

import torch
from ase.build import molecule

from ggnn_ff.contract import TrainingData
from ggnn_ff.export import write_potential
from ggnn_ff.models import MODELS
from ggnn_ff.potential import Potential
from ggnn_ff.training.contract import make_contract


def write_untrained(
    folder: Path,
    name: str,
    hyperparameters: dict,
    cutoff: float = 4.0,
    scale: float = 4.0,
    level_of_theory: str = "none, random weights",
) -> Path:
    """The durable form of a potential in float32 for H, C and O."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = MODELS[name].hyperparameters(**hyperparameters)
        potential = Potential(name, settings, cutoff, ["H", "C", "O"], torch.float32)
    numbers = torch.arange(len(potential.scale), dtype=torch.float64)
    potential.scale.copy_(scale + 0.1 * numbers)
    potential.shift.copy_(-10.0 * numbers)
    example = molecule("CH3CH2OH")
    example.rattle(0.05, seed=0)
    contract = make_contract(
        potential,
        name,
        settings.model_dump(),
        example,
        elements=["H", "C", "O"],
        level_of_theory=level_of_theory,
        training_data=TrainingData(name="none", n_train=1, n_valid=0, sha256="0" * 64),
        test_errors=None,
    )
    write_potential(folder, potential, contract)
    return folder
