# /// script
# requires-python = "==3.11.*"
# dependencies = ["mace-torch==0.3.16", "torch==2.9.1", "ase", "numpy"]
# ///
"""MACE of mace-torch: channels and largest degree of the features as arguments, random weights, cutoff 5 angstrom."""

import sys

import torch
from ase import Atoms
from ase.data import atomic_numbers
from mace import modules
from mace.calculators import MACECalculator
from server import ELEMENTS, serve

from e3nn import o3  # isort: skip

n_features, l_hidden = int(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
model = modules.ScaleShiftMACE(
    r_max=5.0,
    num_bessel=8,
    num_polynomial_cutoff=5,
    max_ell=3,
    interaction_cls=block,
    interaction_cls_first=block,
    num_interactions=2,
    num_elements=len(ELEMENTS),
    hidden_irreps=o3.Irreps([(n_features, (degree, (-1) ** degree)) for degree in range(l_hidden + 1)]),
    MLP_irreps=o3.Irreps("16x0e"),
    atomic_energies=torch.zeros(len(ELEMENTS)).numpy(),
    avg_num_neighbors=16.0,
    atomic_numbers=[atomic_numbers[symbol] for symbol in ELEMENTS],
    correlation=3,
    gate=torch.nn.functional.silu,
    radial_MLP=[64, 64, 64],
    atomic_inter_scale=1.0,
    atomic_inter_shift=0.0,
)


def make_calculator(atoms: Atoms) -> MACECalculator:
    return MACECalculator(models=[model], device="cpu", default_dtype="float32")


serve(make_calculator, {"torch": torch.__version__, "mace-torch": "0.3.16"})
