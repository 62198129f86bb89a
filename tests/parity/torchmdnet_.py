# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["torch==2.9.1", "torchmd-net==3.1.0", "ase", "numpy", "pydantic", "vesin", "safetensors"]
# ///
"""The Equivariant Transformer against torchmd-net."""

import torch
from ase import Atoms
from common import Result, copy_weights, crystal, ethanol, evaluate, neighbours, randomize, report
from torch import Tensor, nn
from torchmdnet.models.model import TorchMD_Net
from torchmdnet.models.output_modules import EquivariantScalar
from torchmdnet.models.torchmd_et import TorchMD_ET

from ggnn_ff.models import equivariant_transformer
from ggnn_ff.models.equivariant_transformer import EquivariantTransformerHyperparameters
from ggnn_ff.potential import Potential

CUTOFF, ELEMENTS, NUMBERS = 5.0, ["H", "C", "O"], [1, 6, 8]
N_FEATURES, N_LAYERS, N_HEADS, N_RADIAL = 32, 3, 4, 16


class Edges(nn.Module):
    """Takes the place of the peer's neighbour list, which knows no cell below two cutoffs: ours, and each atom."""

    def __init__(self, atoms: Atoms) -> None:
        super().__init__()
        self.edge_index, shifts = neighbours(atoms, CUTOFF)
        assert (self.edge_index[0] != self.edge_index[1]).all(), "the peer takes images of an atom for the atom itself"
        self.offsets = shifts @ torch.tensor(atoms.cell.array)

    def forward(self, positions: Tensor, batch: Tensor, box: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        centre, neighbour = self.edge_index[0], self.edge_index[1]
        vectors = positions[neighbour] + self.offsets - positions[centre]
        itself = torch.arange(len(positions))
        sender, receiver = torch.cat([neighbour, itself]), torch.cat([centre, itself])
        lengths = torch.cat([torch.linalg.vector_norm(vectors, dim=1), torch.zeros(len(positions))])
        return torch.stack([sender, receiver]), lengths, torch.cat([vectors, torch.zeros(len(positions), 3)])


def peer() -> TorchMD_Net:
    torch.manual_seed(0)
    representation = TorchMD_ET(
        N_FEATURES, N_LAYERS, N_RADIAL, trainable_rbf=False, num_heads=N_HEADS, cutoff_upper=CUTOFF, vector_cutoff=True
    )
    model = TorchMD_Net(representation, EquivariantScalar(N_FEATURES), derivative=True).to(torch.float64)
    randomize(model)
    return model.eval()


def theirs(model: TorchMD_Net, atoms: Atoms) -> Result:
    model.representation_model.distance = Edges(atoms)
    energy, forces = model(torch.tensor(atoms.numbers), torch.tensor(atoms.positions))
    return energy.squeeze(), forces


def in_order(source: nn.Linear, n_parts: int) -> nn.Linear:
    """The peer orders the parts of its values within each head, we the heads within each part."""
    copy = nn.Linear(source.in_features, source.out_features, dtype=source.weight.dtype)
    with torch.no_grad():
        for name in ("weight", "bias"):
            rows = source.get_parameter(name).unflatten(0, (N_HEADS, n_parts, -1))
            copy.get_parameter(name).copy_(rows.transpose(0, 1).flatten(0, 2))
    return copy


def copied(model: TorchMD_Net) -> Potential:
    """Ours with the weights of the peer."""
    hyperparameters = EquivariantTransformerHyperparameters(
        n_features=N_FEATURES, n_layers=N_LAYERS, n_heads=N_HEADS, n_radial=N_RADIAL
    )
    potential = Potential("equivariant_transformer", hyperparameters, CUTOFF, ELEMENTS, torch.float64)
    ours, source = potential.representation, model.representation_model
    ours.envelope = source.distance_expansion.cutoff_fn
    ours.basis.centres.copy_(source.distance_expansion.means)
    ours.basis.sharpness = float(source.distance_expansion.betas[0])
    with torch.no_grad():
        ours.embedding.intrinsic.weight.copy_(source.embedding.weight[NUMBERS])
        ours.embedding.neighbour.weight.copy_(source.neighbor_embedding.embedding.weight[NUMBERS])
    copy_weights(ours.embedding.filter, source.neighbor_embedding.distance_proj)
    copy_weights(ours.embedding.combine, source.neighbor_embedding.combine)
    for layer, other in zip(ours.layers, source.attention_layers, strict=True):
        copy_weights(layer.norm, other.layernorm)
        copy_weights(layer.query, other.q_proj)
        copy_weights(layer.key, other.k_proj)
        copy_weights(layer.value, in_order(other.v_proj, 3))
        copy_weights(layer.distance_key, other.dk_proj)
        copy_weights(layer.distance_value, in_order(other.dv_proj, 3))
        copy_weights(layer.output, other.o_proj)
        copy_weights(layer.mix, other.vec_proj)
    copy_weights(ours.norm, source.out_norm)
    first, second = model.output_model.output_network
    copy_weights(ours.gated.lengths, first.vec1_proj)
    copy_weights(ours.gated.mix, first.vec2_proj)
    copy_weights(ours.gated.gate[0], first.update_net.layers[0])
    copy_weights(ours.gated.gate[2], first.update_net.layers[2])
    copy_weights(ours.lengths, second.vec1_proj)
    copy_weights(potential.readout[0], second.update_net.layers[0])
    with torch.no_grad():  # the second output gates vectors that nobody uses
        potential.readout[2].weight.copy_(second.update_net.layers[2].weight[:1])
        potential.readout[2].bias.copy_(second.update_net.layers[2].bias[:1])
    return potential


def main() -> None:
    equivariant_transformer.softened_norm = lambda vectors, softening: torch.linalg.vector_norm(vectors, dim=1)
    model = peer()
    potential = copied(model)
    structures = [ethanol(), crystal().repeat(2)]
    report(
        "equivariant_transformer",
        "torchmd-net 3.1.0",
        [evaluate(potential, atoms) for atoms in structures],
        [theirs(model, atoms) for atoms in structures],
        "cosine cutoff, norm (ours is smooth at zero) and constants of the radial functions as in the peer; the peer "
        "with `vector_cutoff`, without which it follows its paper and vectors jump at the cutoff, and with our "
        "neighbour list, for a crystal in which no atom sees its own images; both let an atom attend to itself",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
