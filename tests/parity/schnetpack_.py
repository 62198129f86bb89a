# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["torch==2.9.1", "schnetpack==2.1.1", "ase", "numpy", "pydantic"]
#
# [tool.uv]
# override-dependencies = ["sympy>=1.13.3"] # schnetpack asks for an older one than torch does, and needs neither
# ///
"""SchNet and PaiNN against schnetpack."""

import torch
import torch.utils.data.dataloader
from ase import Atoms
from common import Result, copy_weights, crystal, ethanol, evaluate, neighbours, randomize, report
from torch import nn

from ggnn_ff.models.painn import PaiNN, PaiNNHyperparameters
from ggnn_ff.models.schnet import SchNet, SchNetHyperparameters, ShiftedSoftplus
from ggnn_ff.potential import Potential

torch.utils.data.dataloader.T_co = torch.utils.data.dataloader._T_co  # newer torch renamed what schnetpack imports
import schnetpack as spk  # noqa: E402
from schnetpack import properties  # noqa: E402
from schnetpack.nn.activations import shifted_softplus  # noqa: E402

CUTOFF, ELEMENTS, NUMBERS = 5.0, ["H", "C", "O"], [1, 6, 8]
N_FEATURES, N_LAYERS, N_RADIAL = 32, 3, 20


def peer(representation: nn.Module, activation: object) -> nn.Sequential:
    """Representation and atom-wise readout in float64, no term of them zero."""
    readout = spk.atomistic.Atomwise(n_in=N_FEATURES, n_layers=2, activation=activation, output_key="energy")
    model = nn.Sequential(representation, readout).to(torch.float64)
    randomize(model)
    return model.eval()


def theirs(model: nn.Module, atoms: Atoms) -> Result:
    edge_index, shifts = neighbours(atoms, CUTOFF)
    positions = torch.tensor(atoms.positions, requires_grad=True)
    vectors = positions[edge_index[1]] - positions[edge_index[0]] + shifts @ torch.tensor(atoms.cell.array)
    inputs = {
        properties.Z: torch.tensor(atoms.numbers),
        properties.Rij: vectors,
        properties.idx_i: edge_index[0],
        properties.idx_j: edge_index[1],
        properties.idx_m: torch.zeros(len(atoms), dtype=torch.int64),
        properties.n_atoms: torch.tensor([len(atoms)]),
    }
    energy = model(inputs)["energy"].squeeze()
    (gradient,) = torch.autograd.grad(energy, positions)
    return energy, -gradient


def copy_readout(potential: Potential, source: nn.Module) -> None:
    copy_weights(potential.readout[0], source.outnet[0])
    copy_weights(potential.readout[2], source.outnet[1])


def schnet() -> None:
    basis, cutoff = spk.nn.GaussianRBF(N_RADIAL, CUTOFF), spk.nn.CosineCutoff(CUTOFF)
    model = peer(spk.representation.SchNet(N_FEATURES, N_LAYERS, basis, cutoff), shifted_softplus)
    hyperparameters = SchNetHyperparameters(n_features=N_FEATURES, n_layers=N_LAYERS, n_radial=N_RADIAL)
    potential = Potential("schnet", hyperparameters, CUTOFF, ELEMENTS, torch.float64)
    ours, source = potential.representation, model[0]
    assert isinstance(ours, SchNet)
    assert isinstance(potential.readout[1], ShiftedSoftplus)
    ours.embedding.weight.data.copy_(source.embedding.weight[NUMBERS])
    ours.envelope = source.cutoff_fn
    assert float((ours.basis.centres - source.radial_basis.offsets).abs().max()) < 1e-6
    ours.basis.centres.copy_(source.radial_basis.offsets)  # rounded differently
    ours.basis.width = float(source.radial_basis.widths[0])
    for interaction, other in zip(ours.interactions, source.interactions, strict=True):
        copy_weights(interaction.filters[0], other.filter_network[0])
        copy_weights(interaction.filters[2], other.filter_network[1])
        copy_weights(interaction.atomwise_in, other.in2f)
        copy_weights(interaction.atomwise_out[0], other.f2out[0])
        copy_weights(interaction.atomwise_out[2], other.f2out[1])
    copy_readout(potential, model[1])
    deviations = (
        "the peer's cosine cutoff in place of our envelope, and its rounding of the Gaussians' centres and width; "
        "unlike its paper, the peer has a cutoff, and no activation at the end of its filter networks: so have we"
    )
    compare("schnet", potential, model, deviations)


def painn() -> None:
    basis, cutoff = spk.nn.BesselRBF(N_RADIAL, CUTOFF), spk.nn.CosineCutoff(CUTOFF)
    model = peer(spk.representation.PaiNN(N_FEATURES, N_LAYERS, basis, cutoff), nn.functional.silu)
    hyperparameters = PaiNNHyperparameters(n_features=N_FEATURES, n_layers=N_LAYERS, n_radial=N_RADIAL)
    potential = Potential("painn", hyperparameters, CUTOFF, ELEMENTS, torch.float64)
    ours, source = potential.representation, model[0]
    assert isinstance(ours, PaiNN)
    ours.embedding.weight.data.copy_(source.embedding.weight[NUMBERS])
    ours.envelope = source.cutoff_fn
    assert float((ours.basis.frequencies - source.radial_basis.freqs).abs().max()) < 1e-5
    ours.basis.frequencies.copy_(source.radial_basis.freqs)  # rounded differently
    copy_weights(ours.filters, source.filter_net)
    for message, other in zip(ours.messages, source.interactions, strict=True):
        copy_weights(message.phi[0], other.interatomic_context_net[0])
        copy_weights(message.phi[2], other.interatomic_context_net[1])
    for update, other in zip(ours.updates, source.mixing, strict=True):
        copy_weights(update.mix, other.mu_channel_mix)
        copy_weights(update.a[0], other.intraatomic_context_net[0])
        in_our_order(update.a[2], other.intraatomic_context_net[1])
    copy_readout(potential, model[1])
    deviations = (
        "the peer's cosine cutoff, that of the paper, in place of our envelope, and its rounding of the Bessel "
        "functions' frequencies; parts of the update in another order"
    )
    compare("painn", potential, model, deviations)


def in_our_order(target: nn.Linear, source: nn.Linear) -> None:
    """The peer orders the parts of its update a_ss, a_vv, a_sv, we a_ss, a_sv, a_vv."""
    with torch.no_grad():
        for ours, other in ((target.weight, source.weight), (target.bias, source.bias)):
            ss, vv, sv = other.split(N_FEATURES)
            ours.copy_(torch.cat([ss, sv, vv]))


def compare(name: str, potential: Potential, model: nn.Module, deviations: str) -> None:
    structures = (ethanol(), crystal())
    ours = [evaluate(potential, atoms) for atoms in structures]
    report(name, "schnetpack 2.1.1", ours, [theirs(model, atoms) for atoms in structures], deviations)


schnet()
painn()
