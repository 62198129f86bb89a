# /// script
# requires-python = "==3.11.*"
# dependencies = ["mace-torch==0.3.16", "torch==2.9.1", "ase", "numpy"]
# ///
"""MACE of mace-torch: channels and largest degree of the features as arguments, random weights, cutoff 5 angstrom.

With a third argument, a batch size, it is trained, by the step of mace-torch's own training.
"""

import sys
from collections.abc import Callable

import torch
from ase import Atoms
from ase.data import atomic_numbers
from mace import modules
from mace.calculators import MACECalculator
from server import ELEMENTS, serve, serve_training

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


def make_step(path: str) -> Callable[[], None]:
    """A step of mace-torch's own training: AMSGrad, clipped gradients, averaged weights."""
    import ase.io
    from mace.data import AtomicData, KeySpecification, config_from_atoms
    from mace.modules import WeightedEnergyForcesLoss
    from mace.tools import AtomicNumberTable, torch_geometric
    from mace.tools.train import take_step
    from torch_ema import ExponentialMovingAverage

    keys = KeySpecification(info_keys={"energy": "energy_of_label"}, arrays_keys={"forces": "forces_of_label"})
    table = AtomicNumberTable([atomic_numbers[symbol] for symbol in ELEMENTS])
    configurations = []
    for atoms in ase.io.read(path, index=":"):
        atoms.info["energy_of_label"] = atoms.get_potential_energy()
        atoms.arrays["forces_of_label"] = atoms.get_forces()
        configurations.append(config_from_atoms(atoms, key_specification=keys))
    torch.set_default_dtype(torch.float32)
    frames = [AtomicData.from_config(one, z_table=table, cutoff=5.0) for one in configurations]
    loader = torch_geometric.dataloader.DataLoader(frames, batch_size=batch_size, shuffle=True, drop_last=True)
    trained = model.to(torch.float32)
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2, amsgrad=True)
    average = ExponentialMovingAverage(trained.parameters(), decay=0.99)
    loss = WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=100.0)
    outputs = {"forces": True, "virials": False, "stress": False}
    batches = iter(())

    def step() -> None:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        take_step(trained, loss, batch, optimizer, average, outputs, 10.0, torch.device("cpu"))

    return step


versions = {"torch": torch.__version__, "mace-torch": "0.3.16"}
if len(sys.argv) > 3:
    batch_size = int(sys.argv[3])
    serve_training(make_step, versions)
else:
    serve(make_calculator, versions)
