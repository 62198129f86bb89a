# /// script
# requires-python = "==3.11.*"
# dependencies = ["nequip==0.19.1", "torch==2.9.1", "ase", "numpy", "pydantic", "safetensors", "vesin-torch"]
# ///
"""NequIP against nequip 0.19.1."""

import warnings

import torch
from ase import Atoms
from common import Result, crystal, ethanol, evaluate, neighbours, randomize, report
from nequip.data import AtomicDataDict
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from torch import Tensor, nn

from ggnn_ff.irreps import DegreeLinear
from ggnn_ff.models.nequip import Interaction, NequIPHyperparameters
from ggnn_ff.potential import Potential

ELEMENTS = ["H", "C", "O"]
CUTOFF = 4.5
HYPERPARAMETERS = NequIPHyperparameters(n_features=8, n_layers=4, l_max=3, radial_width=16, n_neighbors=11.0)


def peer() -> nn.Module:
    h = HYPERPARAMETERS
    set_global_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return NequIPGNNModel(
            seed=0,
            model_dtype="float64",
            r_max=CUTOFF,
            type_names=ELEMENTS,
            num_layers=h.n_layers,
            l_max=h.l_max,
            parity=False,
            num_features=h.n_features,
            radial_mlp_depth=2,
            radial_mlp_width=h.radial_width,
            num_bessels=h.n_radial,
            avg_num_neighbors=h.n_neighbors,
            per_type_energy_scales=1.0,
            per_type_energy_shifts=0.0,
        )


def evaluate_peer(model: nn.Module, atoms: Atoms) -> Result:
    edge_index, shifts = neighbours(atoms, CUTOFF)
    data = {
        AtomicDataDict.POSITIONS_KEY: torch.from_numpy(atoms.positions.copy()),
        AtomicDataDict.ATOM_TYPE_KEY: torch.tensor([ELEMENTS.index(symbol) for symbol in atoms.symbols]),
        AtomicDataDict.EDGE_INDEX_KEY: edge_index,
    }
    if atoms.pbc.any():
        data[AtomicDataDict.CELL_KEY] = torch.from_numpy(atoms.cell.array.copy()).unsqueeze(0)
        data[AtomicDataDict.EDGE_CELL_SHIFT_KEY] = shifts
    out = model(data)
    return out[AtomicDataDict.TOTAL_ENERGY_KEY].sum(), out[AtomicDataDict.FORCE_KEY]


def copy_degrees(ours: DegreeLinear, theirs: nn.Module) -> None:
    """One matrix for each degree; theirs is (in, out), without its normalisation."""
    for _, instruction, weight in theirs.weight_views(yield_instruction=True):
        ours.degrees[instruction.i_in].weight.copy_(weight.T * instruction.path_weight)


def copy_mlp(ours: nn.Module, theirs: nn.Module, order: Tensor) -> None:
    """`order` sorts what comes out."""
    theirs = [layer for layer in theirs.mlp if hasattr(layer, "alpha")]
    ours = [layer for layer in ours.layers if isinstance(layer, nn.Linear)]
    for one, other in zip(ours, theirs, strict=True):
        one.weight.copy_((other.weight * other.alpha).T)
    ours[-1].weight.copy_(ours[-1].weight.unflatten(0, (len(order), -1))[order].flatten(0, 1))


def path_order(tensor_product: nn.Module) -> Tensor:
    """Ours are sorted by l1, l3, l2; theirs by l1, l2, l3."""
    paths = []
    for instruction in tensor_product.instructions:
        ends = (tensor_product.irreps_in1[instruction.i_in1], tensor_product.irreps_in2[instruction.i_in2])
        l1, l2 = (end.ir.l for end in ends)
        paths.append((l1, tensor_product.irreps_out[instruction.i_out].ir.l, l2))
    return torch.tensor(sorted(range(len(paths)), key=paths.__getitem__))


def copy_self_connection(ours: nn.Module, theirs: nn.Module, embedding: Tensor) -> None:
    """Theirs multiplies with the embedding of the element, ours has a matrix for each element."""
    for _, instruction, weight in theirs.weight_views(yield_instruction=True):
        degree = theirs.irreps_in1[instruction.i_in1].ir.l
        # e3nn's path weight holds sqrt(2l+1), which is in the coupling coefficients
        by_element = torch.einsum("uvw,zv->wzu", weight, embedding) * instruction.path_weight / (2 * degree + 1) ** 0.5
        ours.mix.degrees[degree].weight.copy_(by_element.flatten(1))


def copy_layer(ours: Interaction, theirs: nn.Module, embedding: Tensor) -> None:
    convolution = theirs.conv
    copy_degrees(ours.before, convolution.linear_1)
    copy_mlp(ours.radial, convolution.edge_mlp, path_order(convolution.tp_scatter.tp))
    copy_degrees(ours.after, convolution.linear_2)
    if ours.self_connection is not None:
        copy_self_connection(ours.self_connection, convolution.sc, embedding)
    ours.gate.gain = float(theirs.equivariant_nonlin.act_scalars.acts[0].cst)


def main() -> None:
    theirs = peer()
    randomize(theirs)
    ours = Potential("nequip", HYPERPARAMETERS, CUTOFF, ELEMENTS, torch.float64)
    parts = dict(theirs.named_modules())
    network = next(part for part in parts.values() if hasattr(part, "layer0_convnet"))
    embedding = network.type_embed.embed_module.weight
    readout = network.per_atom_energy_readout.mlp_module.mlp[0]
    with torch.no_grad():
        ours.representation.embedding.weight.copy_(embedding)
        for index, layer in enumerate(ours.representation.layers):
            copy_layer(layer, network.get_submodule(f"layer{index}_convnet"), embedding)
        ours.readout.weight.copy_((readout.weight * readout.alpha).T)
        ours.readout.bias.zero_()
    structures = [ethanol(), crystal()]
    report(
        "nequip",
        "nequip 0.19.1",
        [evaluate(ours, atoms) for atoms in structures],
        [evaluate_peer(theirs, atoms) for atoms in structures],
        "`parity: false` of the peer; the peer's gain of the SiLU, which it draws at random (off by 2e-3), put in ours;"
        " what is left comes from our frequencies, which are rounded to float32",
    )


if __name__ == "__main__":
    main()
