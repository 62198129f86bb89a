# /// script
# requires-python = "==3.11.*"
# dependencies = ["nequip==0.19.1", "torch==2.9.1", "setuptools", "ase", "numpy"]
# ///
"""NequIP of nequip, as nequip-compile makes it: features, layers and l_max as arguments, random weights, 5 angstrom."""

import sys
import tempfile
from pathlib import Path

import torch
from ase import Atoms
from ase.build import molecule
from nequip.data import from_ase
from nequip.integrations.ase import NequIPCalculator
from nequip.model import NequIPGNNModel
from nequip.scripts import compile as nequip_compile
from nequip.utils.global_state import set_global_state
from server import ELEMENTS, serve

CUTOFF = 5.0
n_features, n_layers, l_max = (int(argument) for argument in sys.argv[1:4])
set_global_state()
model = NequIPGNNModel(
    seed=0,
    model_dtype="float32",
    r_max=CUTOFF,
    type_names=ELEMENTS,
    num_layers=n_layers,
    l_max=l_max,
    parity=False,
    num_features=n_features,
    radial_mlp_depth=2,
    radial_mlp_width=64,
    num_bessels=8,
    avg_num_neighbors=10.0,
    per_type_energy_scales=1.0,
    per_type_energy_shifts=0.0,
)


def example() -> dict[str, torch.Tensor]:
    """What the model is traced with, through nequip's own transforms."""
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

    data = from_ase(molecule("CH3CH2OH", vacuum=10.0))
    for transform in (ChemicalSpeciesToAtomTypeMapper(ELEMENTS), NeighborListTransform(CUTOFF)):
        data = transform(data)
    return data


nequip_compile.load_saved_model = lambda *_, **__: (model, example())  # it compiles files of trained models only
path = Path(tempfile.mkdtemp()) / "model.nequip.pt2"
nequip_compile.main([str(path), str(path), "--mode", "aotinductor", "--device", "cpu", "--target", "ase"])


def make_calculator(atoms: Atoms) -> NequIPCalculator:
    return NequIPCalculator.from_compiled_model(path, device="cpu", chemical_species_to_atom_type_map=True)


serve(make_calculator, {"torch": torch.__version__, "nequip": "0.19.1"})
