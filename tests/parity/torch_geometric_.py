# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["torch==2.9.1", "torch-geometric==2.8.1", "sympy", "ase", "numpy", "pydantic", "vesin", "safetensors"]
# ///
"""DimeNet++ against torch_geometric."""

import torch
from ase import Atoms
from common import Result, copy_weights, crystal, ethanol, evaluate, neighbours, randomize, report
from torch import Tensor, nn
from torch_geometric.nn import DimeNetPlusPlus
from torch_geometric.nn.models import dimenet as peer_file
from torch_geometric.nn.models import dimenet_utils

from ggnn_ff.angular import bessel_zeros
from ggnn_ff.models.dimenet import DimeNetHyperparameters, Residual
from ggnn_ff.potential import Potential

CUTOFF, ELEMENTS, NUMBERS = 4.0, ["H", "C", "O"], [1, 6, 8]
HYPERPARAMETERS = DimeNetHyperparameters(
    n_features=32,
    n_triplet_features=16,
    n_basis_features=8,
    n_output_features=24,
    n_layers=3,
    n_radial=6,
    n_spherical=7,
)


class CodeBasis(nn.Module):
    """Our spherical basis divided by r / r_c, as the authors' code and the peer have it."""

    def __init__(self, basis: nn.Module) -> None:
        super().__init__()
        self.basis = basis

    def forward(self, edge_lengths: Tensor) -> Tensor:
        return self.basis(edge_lengths) * (CUTOFF / edge_lengths).view(-1, 1, 1)


def peer() -> DimeNetPlusPlus:
    torch.manual_seed(0)
    h = HYPERPARAMETERS
    model = DimeNetPlusPlus(
        hidden_channels=h.n_features,
        out_channels=1,
        num_blocks=h.n_layers,
        int_emb_size=h.n_triplet_features,
        basis_emb_size=h.n_basis_features,
        out_emb_channels=h.n_output_features,
        num_spherical=h.n_spherical,
        num_radial=h.n_radial,
        cutoff=CUTOFF,
        envelope_exponent=h.envelope_exponent - 1,
    ).to(torch.float64)
    frequencies = model.rbf.freq.detach().clone()
    randomize(model)
    model.rbf.freq.data.copy_(frequencies)  # these are fixed in ours
    return model.eval()


def theirs(model: DimeNetPlusPlus, atoms: Atoms) -> Result:
    edge_index, shifts = neighbours(atoms, CUTOFF)
    assert not shifts.any(), "the peer knows no periodicity"
    centre, neighbour = edge_index
    k = [torch.nonzero(centre == j).flatten() for j in neighbour]  # edges that end at j, for each edge j -> i
    ji = torch.repeat_interleave(torch.arange(len(centre)), torch.tensor([len(edges) for edges in k]))
    kj = torch.cat(k)
    keep = neighbour[kj] != centre[ji]
    ji, kj = ji[keep], kj[keep]
    # Its own lists need compiled extensions, torch_cluster and torch_sparse.
    peer_file.radius_graph = lambda *args, **kwargs: edge_index.flip(0)
    peer_file.triplets = lambda *args, **kwargs: (centre, neighbour, centre[ji], neighbour[ji], neighbour[kj], kj, ji)
    positions = torch.tensor(atoms.positions, requires_grad=True)
    energy = model(torch.tensor(atoms.numbers), positions).squeeze()
    (gradient,) = torch.autograd.grad(energy, positions)
    return energy.detach(), -gradient


def copy_sequence(target: nn.Module, sources: list[nn.Module]) -> None:
    """The linear layers of a sequence of ours, in order, from those of the peer."""
    layers = [module for module in target.modules() if isinstance(module, nn.Linear)]
    for layer, source in zip(layers, sources, strict=True):
        copy_weights(layer, source)


def copy_residuals(target: nn.Module, sources: nn.ModuleList) -> None:
    residuals = [module for module in target.modules() if isinstance(module, Residual)]
    for residual, source in zip(residuals, sources, strict=True):
        copy_sequence(residual, [source.lin1, source.lin2])


def copied(model: DimeNetPlusPlus) -> Potential:
    """Ours with the weights of the peer."""
    h = HYPERPARAMETERS
    potential = Potential("dimenet", h, CUTOFF, ELEMENTS, torch.float64)
    representation = potential.representation
    representation.spherical_basis = CodeBasis(representation.spherical_basis)
    ours = representation.message_passing
    with torch.no_grad():
        ours.embedding.elements.weight.copy_(model.emb.emb.weight[NUMBERS])
        model.rbf.freq.copy_(representation.basis.frequencies * CUTOFF)  # rounded to float32 in ours
    copy_sequence(ours.embedding.radial, [model.emb.lin_rbf])
    copy_sequence(ours.embedding.message, [model.emb.lin])
    parity = torch.tensor([(-1.0) ** order for order in range(h.n_spherical)], dtype=torch.float64)
    for block, angle_filter, source in zip(
        ours.interactions, representation.angle_filters, model.interaction_blocks, strict=True
    ):
        copy_sequence(block.radial_filter, [source.lin_rbf1, source.lin_rbf2])
        copy_sequence(angle_filter, [source.lin_sbf1, source.lin_sbf2])
        with torch.no_grad():  # the peer takes 180 degrees minus the angle, that is minus the cosine
            angle_filter[0].weight.mul_(parity.repeat_interleave(h.n_radial))
        copy_sequence(block.kj, [source.lin_kj])
        copy_sequence(block.ji, [source.lin_ji])
        copy_sequence(block.down, [source.lin_down])
        copy_sequence(block.up, [source.lin_up])
        copy_residuals(block.before_skip, source.layers_before_skip)
        copy_weights(block.before_skip[1], source.lin)
        copy_residuals(block.after_skip, source.layers_after_skip)
    outputs = [ours.first_output, *ours.outputs]
    for output, source in zip(outputs, model.output_blocks, strict=True):
        copy_weights(output.radial_filter, source.lin_rbf)
        copy_sequence(output.layers, [source.lin_up, *source.lins])
    with torch.no_grad():
        potential.readout.weight.copy_(torch.cat([source.lin.weight for source in model.output_blocks], dim=1))
        potential.readout.bias.zero_()
    return potential


def main() -> None:
    dimenet_utils.Jn_zeros = bessel_zeros
    model = peer()
    potential = copied(model)
    cluster = crystal().repeat(2)  # in no plane and on no line; the peer knows no periodicity
    cluster.pbc = False
    structures = [ethanol(), cluster]
    report(
        "dimenet",
        "torch_geometric 2.8.1",
        [evaluate(potential, atoms) for atoms in structures],
        [theirs(model, atoms) for atoms in structures],
        "spherical basis divided by r / r_c as in the peer and the authors' code; the peer with our zeros of the "
        "Bessel functions, which it rounds to float32, with fixed frequencies, and with our neighbour list and "
        "triplets, hence without periodicity; odd orders with the other sign, since its DimeNet++ takes 180 degrees "
        "minus the angle of the paper",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
