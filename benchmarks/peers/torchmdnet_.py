# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["torch==2.9.1", "torchmd-net==3.1.0", "ase", "numpy"]
# ///
"""The Equivariant Transformer of torchmd-net: features, layers and heads as arguments, random weights, 5 angstrom."""

import sys

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from server import serve
from torchmdnet.models.model import TorchMD_Net
from torchmdnet.models.output_modules import EquivariantScalar
from torchmdnet.models.torchmd_et import TorchMD_ET

n_features, n_layers, n_heads = (int(argument) for argument in sys.argv[1:4])
torch.manual_seed(0)
representation = TorchMD_ET(
    n_features, n_layers, 32, trainable_rbf=False, num_heads=n_heads, cutoff_upper=5.0, max_num_neighbors=100
)
model = TorchMD_Net(representation, EquivariantScalar(n_features), derivative=True).eval()


class TorchMDNet(Calculator):
    """The model with its own neighbour list."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE's own form)

    def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
        """Energy and forces."""
        super().calculate(atoms, properties, system_changes)
        box = torch.tensor(atoms.cell.array, dtype=torch.float32) if atoms.pbc.all() else None
        numbers, positions = torch.tensor(atoms.numbers), torch.tensor(atoms.positions, dtype=torch.float32)
        energy, forces = model(numbers, positions, box=box)
        self.results = {"energy": float(energy.detach()), "forces": forces.detach().numpy().astype("float64")}


def make_calculator(atoms: Atoms) -> TorchMDNet:
    return TorchMDNet()


serve(make_calculator, {"torch": torch.__version__, "torchmd-net": "3.1.0"})
