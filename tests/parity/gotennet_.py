# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = [
#     "torch==2.9.1", "gotennet==1.1.2", "omegaconf", "pytorch-lightning",
#     "ase", "numpy", "pydantic", "vesin", "safetensors", "scipy",
# ]
# [tool.uv]
# # these have no wheels on PyPI, and serve the peer's neighbour list and training only
# override-dependencies = [
#     "torch-cluster; sys_platform == 'none'",
#     "torch-scatter; sys_platform == 'none'",
#     "torch-sparse; sys_platform == 'none'",
# ]
# ///
"""GotenNet against its authors' package."""

import sys
from types import ModuleType

import torch
import torch_geometric  # noqa: F401 (looks for torch_cluster, before it is replaced)
from ase import Atoms
from common import Result, copy_weights, crystal, ethanol, evaluate, neighbours, randomize, report
from torch import Tensor, nn

from ggnn_ff.models import gotennet as module
from ggnn_ff.models.gotennet import EquivariantFeedForward, GotenNetHyperparameters, TensorAttention
from ggnn_ff.potential import Potential

sys.modules["torch_cluster"] = ModuleType("torch_cluster")
sys.modules["torch_cluster"].radius_graph = None  # type: ignore[attr-defined]
from gotennet.models.components.layers import CosineCutoff  # noqa: E402
from gotennet.models.representation.gotennet import EQFF, GATA, GotenNet  # noqa: E402

CUTOFF, ELEMENTS, NUMBERS = 5.0, ["H", "C", "O"], [1, 6, 8]
N_FEATURES, N_LAYERS, N_HEADS, N_RADIAL, N_REFINEMENT, L_MAX = 32, 3, 4, 16, 48, 2


def unweighted_softmax(scores: Tensor, weights: Tensor, centre: Tensor, n_atoms: int) -> Tensor:
    """As in the peer: the cutoff does not enter, and energies jump there."""
    exponentials = torch.exp(scores)
    return exponentials / torch.zeros(n_atoms, scores.shape[1]).index_add(0, centre, exponentials)[centre]


def peer() -> GotenNet:
    torch.manual_seed(0)
    model = GotenNet(
        N_FEATURES,
        N_LAYERS,
        n_rbf=N_RADIAL,
        cutoff_fn=CosineCutoff(CUTOFF),
        activation="silu",
        num_heads=N_HEADS,
        edge_updates="linw",
        scale_edge=False,
        lmax=L_MAX,
        evec_dim=N_REFINEMENT,
        sep_dir=True,
        sep_tensor=True,
    )
    randomize(model)
    return model.eval()


def theirs(model: GotenNet, readout: nn.Module, atoms: Atoms) -> Result:
    """With our neighbour list and readout."""
    edge_index, shifts = neighbours(atoms, CUTOFF)
    centre, neighbour = edge_index[0], edge_index[1]
    assert (centre != neighbour).all(), "the peer takes images of an atom for the atom itself"
    positions = torch.tensor(atoms.positions, requires_grad=True)
    vectors = positions[neighbour] + shifts @ torch.tensor(atoms.cell.array) - positions[centre]
    itself = torch.arange(len(atoms))
    lengths = torch.cat([torch.linalg.vector_norm(vectors, dim=1), torch.zeros(len(atoms))])
    vectors = torch.cat([vectors, torch.zeros(len(atoms), 3)])
    edges = torch.stack([torch.cat([neighbour, itself]), torch.cat([centre, itself])])
    scalars, _ = model(torch.tensor(atoms.numbers), edges, lengths, vectors)
    energy = readout(scalars).sum()
    return energy, -torch.autograd.grad(energy, positions)[0]


def copy_attention(ours: TensorAttention, source: GATA) -> None:
    copy_weights(ours.query, source.W_q)
    copy_weights(ours.key, source.W_k)
    copy_weights(ours.edge_key, source.W_re)
    copy_weights(ours.edge_filter, source.W_rs)
    for k in (0, 1):
        copy_weights(ours.value[2 * k], source.gamma_v[k])
        copy_weights(ours.message[2 * k], source.gamma_s[k])


def copy_feed_forward(ours: EquivariantFeedForward, source: EQFF) -> None:
    copy_weights(ours.mix, source.W_vu)
    copy_weights(ours.gate[0], source.gamma_m[0])
    copy_weights(ours.gate[2], source.gamma_m[1])


def copied(model: GotenNet) -> Potential:
    """Ours with the weights of the peer."""
    hyperparameters = GotenNetHyperparameters(
        n_features=N_FEATURES,
        n_layers=N_LAYERS,
        n_heads=N_HEADS,
        n_radial=N_RADIAL,
        n_refinement=N_REFINEMENT,
        l_max=L_MAX,
    )
    potential = Potential("gotennet", hyperparameters, CUTOFF, ELEMENTS, torch.float64)
    ours = potential.representation
    ours.envelope = model.cutoff_fn
    ours.basis.centres.copy_(model.radial_basis.means)
    ours.basis.sharpness = float(model.radial_basis.betas[0])
    with torch.no_grad():
        ours.embedding.atom.weight.copy_(model.A_na.weight[NUMBERS])
        ours.embedding.neighbour.weight.copy_(model.node_init.A_nbr.weight[NUMBERS])
    copy_weights(ours.embedding.filter, model.node_init.W_ndp.dense_layers[0])
    first, last = model.node_init.W_nrd_nru.dense_layers
    copy_weights(ours.embedding.combine[1], first.norm)
    with torch.no_grad():
        ours.embedding.combine[0].weight.copy_(first.weight)
        ours.embedding.combine[0].bias.copy_(first.bias)
    copy_weights(ours.embedding.combine[3], last)
    copy_weights(ours.embedding.edge, model.edge_init.W_erp)
    attentions = [*ours.attentions, ours.last_attention]
    feed_forwards = [*ours.feed_forwards, ours.last_feed_forward]
    for attention, gata in zip(attentions, model.gata_list, strict=True):
        copy_attention(attention, gata)
    for feed_forward, eqff in zip(feed_forwards, model.eqff_list, strict=True):
        copy_feed_forward(feed_forward, eqff)
    for refinement, gata in zip(ours.refinements, model.gata_list[:-1], strict=True):
        copy_weights(refinement.query, gata.W_vq)
        for key, other in zip(refinement.keys, gata.W_vk, strict=True):
            copy_weights(key, other)
        copy_weights(refinement.products, gata.W_edp)
        copy_weights(refinement.edges[0], gata.gamma_t.dense_layers[0])
    return potential


def main() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # the peer makes tensors of it
    module.weighted_softmax = unweighted_softmax
    model = peer()
    potential = copied(model)
    structures = [ethanol(), crystal().repeat(2)]
    report(
        "gotennet",
        "gotennet 1.1.2",
        [evaluate(potential, atoms) for atoms in structures],
        [theirs(model, potential.readout, atoms) for atoms in structures],
        "cosine cutoff, softmax without envelope and constants of the radial functions as in the peer, which jumps at "
        "the cutoff; the peer with our readout and our neighbour list, for a crystal in which no atom sees its own "
        "images; both let an atom attend to itself",
    )


if __name__ == "__main__":
    main()
