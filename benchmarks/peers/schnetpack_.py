# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["torch==2.9.1", "schnetpack==2.1.1", "ase", "numpy"]
#
# [tool.uv]
# override-dependencies = ["sympy>=1.13.3"] # schnetpack asks for an older one than torch does, and needs neither
# ///
"""SchNet and PaiNN of schnetpack: name, features and layers as arguments, random weights, cutoff 5 angstrom."""

import sys

import torch
import torch.utils.data.dataloader
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from server import serve

torch.utils.data.dataloader.T_co = torch.utils.data.dataloader._T_co  # newer torch renamed what schnetpack imports
import schnetpack as spk  # noqa: E402
from schnetpack import transform  # noqa: E402
from schnetpack.interfaces import AtomsConverter  # noqa: E402

name, n_features, n_layers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
if name == "schnet":
    basis = spk.nn.GaussianRBF(20, 5.0)
    representation = spk.representation.SchNet(n_features, n_layers, basis, spk.nn.CosineCutoff(5.0))
else:
    basis = spk.nn.BesselRBF(20, 5.0)
    representation = spk.representation.PaiNN(n_features, n_layers, basis, spk.nn.CosineCutoff(5.0))
model = spk.model.NeuralNetworkPotential(
    representation,
    input_modules=[spk.atomistic.PairwiseDistances()],
    output_modules=[spk.atomistic.Atomwise(n_in=n_features, output_key="energy"), spk.atomistic.Forces()],
).eval()


class SchNetPack(Calculator):
    """The model with schnetpack's own conversion and neighbour list, as its own calculator has them."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE's own form)

    def __init__(self) -> None:
        super().__init__()
        self.converter = AtomsConverter(
            neighbor_list=transform.MatScipyNeighborList(cutoff=5.0), dtype=torch.float32, device="cpu"
        )

    def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
        """Energy and forces."""
        super().calculate(atoms, properties, system_changes)
        out = model(self.converter(atoms))
        self.results = {
            "energy": float(out["energy"].detach()),
            "forces": out["forces"].detach().numpy().astype("float64"),
        }


def make_calculator(atoms: Atoms) -> SchNetPack:
    return SchNetPack()


serve(make_calculator, {"torch": torch.__version__, "schnetpack": "2.1.1"})
