# /// script
# requires-python = "==3.11.*"
# dependencies = ["mace-torch==0.3.16", "torch==2.9.1", "ase", "numpy", "pydantic", "safetensors", "vesin-torch"]
# ///
"""MACE against mace-torch 0.3.16."""

import itertools
import math

import torch
from ase import Atoms
from common import Result, crystal, ethanol, evaluate, neighbours, randomize, report
from mace import modules  # also lets e3nn 0.4 load its constants, before ours asks for them
from torch import Tensor, nn

from ggnn_ff.irreps import DegreeLinear
from ggnn_ff.models.mace import Layer, MACEHyperparameters, SymmetricContraction, symmetric_basis
from ggnn_ff.potential import Potential

from e3nn import o3  # isort: skip

ELEMENTS, NUMBERS = ["H", "C", "O"], [1, 6, 8]
CUTOFF = 4.5


def peer(h: MACEHyperparameters) -> nn.Module:
    """As `mace_run_train --model ScaleShiftMACE` builds it, with the residual block, its default, in all layers."""
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=h.n_radial,
        num_polynomial_cutoff=h.envelope_exponent,
        max_ell=h.l_max,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=h.n_layers,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps([(h.n_features, (degree, (-1) ** degree)) for degree in range(h.l_hidden + 1)]),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=torch.zeros(len(ELEMENTS)).numpy(),
        avg_num_neighbors=h.n_neighbors,
        atomic_numbers=NUMBERS,
        correlation=h.correlation,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
        use_reduced_cg=False,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    randomize(model)
    return model


def evaluate_peer(model: nn.Module, atoms: Atoms) -> Result:
    edge_index, shifts = neighbours(atoms, CUTOFF)
    cell = torch.from_numpy(atoms.cell.array.copy())
    rows = torch.tensor([ELEMENTS.index(symbol) for symbol in atoms.symbols])
    data = {
        "positions": torch.from_numpy(atoms.positions.copy()),
        "node_attrs": torch.nn.functional.one_hot(rows, len(ELEMENTS)).double(),
        "edge_index": edge_index.flip(0),  # theirs: sender, receiver
        "shifts": -shifts @ cell,  # theirs: from sender to receiver, and so are its edge vectors
        "unit_shifts": -shifts,
        "cell": cell,
        "batch": torch.zeros(len(atoms), dtype=torch.int64),
        "ptr": torch.tensor([0, len(atoms)]),
    }
    out = model(data)
    return out["energy"][0].detach(), out["forces"]


def copy_degrees(ours: DegreeLinear, theirs: nn.Module) -> None:
    """One matrix for each degree. Several inputs of one degree, paths by l1 and l2, are one input of ours."""
    for degree, linear in enumerate(ours.degrees):
        rows = []
        for _, instruction, weight in theirs.weight_views(yield_instruction=True):
            if theirs.irreps_out[instruction.i_out].ir.l == degree:
                rows.append(weight * instruction.path_weight)
        linear.weight.copy_(torch.cat(rows).T)


def copy_perceptron(ours: nn.Sequential, weights: list[Tensor]) -> None:
    """Weights as (in, out), normalisation included."""
    linears = [layer for layer in ours if isinstance(layer, nn.Linear)]
    for linear, weight in zip(linears, weights, strict=True):
        linear.weight.copy_(weight.T)


def copy_radial(ours: nn.Sequential, theirs: nn.Module, order: list[int]) -> None:
    """Theirs has a factor sqrt(2 / cutoff) in the Bessel functions and one behind each SiLU."""
    layers = [theirs.layer0, theirs.layer1, theirs.layer2, theirs.layer3]
    weights = [layer.weight / math.sqrt(layer.h_in) * layers[0].act.cst for layer in layers]
    weights[0] = layers[0].weight / math.sqrt(layers[0].h_in) * math.sqrt(2.0 / CUTOFF)
    weights[-1] = weights[-1].unflatten(1, (len(order), -1))[:, order].flatten(1)
    copy_perceptron(ours, weights)


def paths(tensor_product: nn.Module) -> list[tuple[int, int, int]]:
    """(l1, l3, l2) of each path, in their order; ours is sorted."""
    return [
        (
            tensor_product.irreps_in1[instruction.i_in1].ir.l,
            tensor_product.irreps_out[instruction.i_out].ir.l,
            tensor_product.irreps_in2[instruction.i_in2].ir.l,
        )
        for instruction in tensor_product.instructions
    ]


def copy_contraction(ours: SymmetricContraction, theirs: nn.Module, h: MACEHyperparameters, l_out: int) -> None:
    """Expresses their dependent polynomials in our basis, exactly."""
    monomials, basis, orders = symmetric_basis(h.l_max, l_out, h.correlation)
    one = (h.l_max + 1) ** 2
    tensors = {
        order: getattr(theirs, f"U_matrix_{order}").reshape(2 * l_out + 1, *[one] * order, -1)
        for order in range(1, h.correlation + 1)
    }
    weights = {h.correlation: theirs.weights_max}
    weights |= {h.correlation - 1 - index: weight for index, weight in enumerate(theirs.weights)}
    for order, tensor in tensors.items():
        used = [index for index, of in enumerate(orders) if of == order]
        target = torch.zeros(*basis[:, 0].shape, tensor.shape[-1])  # (2L+1, K, their paths)
        for m, column in itertools.product(range(2 * l_out + 1), range(basis.shape[2])):
            factors = [int(index) for index in monomials[:, m, column] if index != one]
            if len(factors) == order:
                for permuted in set(itertools.permutations(factors)):
                    target[m, column] += tensor[(m, *permuted)]
        matrix = basis[:, used].transpose(1, 2).flatten(0, 1)  # (2L+1 * K, our paths)
        solution = torch.linalg.lstsq(matrix, target.flatten(0, 1)).solution  # (our paths, their paths)
        assert (matrix @ solution - target.flatten(0, 1)).abs().max() < 1e-12, "not in the span of our basis"
        ours.weight[:, used] = torch.einsum("pq,eqf->epf", solution, weights[order])


def copy_layer(ours: Layer, interaction: nn.Module, product: nn.Module, h: MACEHyperparameters) -> None:
    order = paths(interaction.conv_tp)
    copy_degrees(ours.interaction.up, interaction.linear_up)
    copy_radial(ours.interaction.radial, interaction.conv_tp_weights, sorted(range(len(order)), key=order.__getitem__))
    copy_degrees(ours.interaction.mix, interaction.linear)
    for degree, contraction in enumerate(ours.contractions):
        copy_contraction(contraction, product.symmetric_contractions.contractions[degree], h, degree)
    copy_degrees(ours.update, product.linear)
    own = interaction.skip_tp.weight_views(yield_instruction=True)
    for (_, _, weight), target in zip(own, ours.own, strict=True):  # (F, elements, F)
        target.copy_(weight.transpose(0, 1) / math.sqrt(weight.shape[0] * weight.shape[1]))


def copy_readout(ours: nn.Sequential, theirs: nn.Module, n_features: int) -> None:
    if hasattr(theirs, "linear"):
        copy_perceptron(ours, [theirs.linear.weight[:n_features].unsqueeze(1) / math.sqrt(n_features)])
        return
    first = theirs.linear_1.weight.view(n_features, -1) / math.sqrt(n_features)
    gain = theirs.non_linearity.acts[0].cst
    copy_perceptron(ours, [first, gain * theirs.linear_2.weight.unsqueeze(1) / math.sqrt(first.shape[1])])


def compare(h: MACEHyperparameters, atoms: list[Atoms]) -> tuple[list[Result], list[Result]]:
    theirs = peer(h)
    ours = Potential("mace", h, CUTOFF, ELEMENTS, torch.float64)
    model = ours.representation
    model.basis.frequencies = model.basis.frequencies.new_tensor(
        [n * math.pi / CUTOFF for n in range(1, h.n_radial + 1)]
    )
    with torch.no_grad():
        embedding = theirs.node_embedding.linear.weight.view(len(ELEMENTS), -1)
        model.embedding.weight.copy_(embedding / math.sqrt(len(ELEMENTS)))
        for layer, interaction, product in zip(
            [*model.layers, model.last], theirs.interactions, theirs.products, strict=True
        ):
            copy_layer(layer, interaction, product, h)
        for readout, other in zip([*model.readouts, ours.readout.last], theirs.readouts, strict=True):
            copy_readout(readout, other, h.n_features)
    return [evaluate(ours, one) for one in atoms], [evaluate_peer(theirs, one) for one in atoms]


def main() -> None:
    torch.set_default_dtype(torch.float64)
    ours, theirs = [], []
    for h in (
        MACEHyperparameters(n_features=8, n_neighbors=11.0),
        MACEHyperparameters(n_features=6, n_neighbors=11.0, n_layers=3, l_hidden=2, correlation=2, envelope_exponent=6),
    ):
        one, other = compare(h, [ethanol(), crystal()])
        ours += one
        theirs += other
    report(
        "mace",
        "mace-torch 0.3.16",
        ours,
        theirs,
        "the peer's `ScaleShiftMACE` with its default, residual blocks in all layers; weights of its linearly dependent"
        " couplings expressed in our basis; our frequencies not rounded to float32",
    )


if __name__ == "__main__":
    main()
