"""What the parity scripts share: structures, graphs, random weights, and the line that each script prints.

A script in this folder that begins with a `# /// script` header compares one peer with ggnn_ff. `benchmarks/parity.py`
runs each in an environment of its own, made from that header, with this checkout on PYTHONPATH.
"""

import json

import torch
from ase import Atoms
from ase.build import molecule
from ase.neighborlist import primitive_neighbor_list
from torch import Tensor, nn

from ggnn_ff.forces import EnergyForces
from ggnn_ff.graph import from_atoms
from ggnn_ff.potential import Potential

Result = tuple[Tensor, Tensor]  # energy (), forces (N, 3), of one structure


def ethanol() -> Atoms:
    """A molecule off every symmetric place."""
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=1)
    return atoms


def crystal() -> Atoms:
    """A triclinic cell with sides below usual cutoffs, so that atoms see their own images."""
    atoms = Atoms("C2O4", cell=[[4.6, 0.0, 0.0], [0.9, 4.4, 0.0], [-0.5, 0.7, 3.0]], pbc=True)
    atoms.set_scaled_positions(
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.3, 0.3, 0], [0.7, 0.7, 0], [0.2, 0.8, 0.5], [0.8, 0.2, 0.5]]
    )
    atoms.rattle(0.1, seed=2)
    return atoms


def neighbours(atoms: Atoms, cutoff: float) -> tuple[Tensor, Tensor]:
    """`edge_index` (2, E), sorted by centre, and `shifts` (E, 3) float64, as ggnn_ff defines them."""
    i, j, shifts = primitive_neighbor_list("ijS", atoms.pbc, atoms.cell.complete(), atoms.positions, cutoff)
    order = torch.argsort(torch.from_numpy(i), stable=True)
    return torch.stack([torch.from_numpy(i), torch.from_numpy(j)])[:, order], torch.from_numpy(shifts)[order].double()


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Adds noise to all parameters, in place: biases too, so that no term is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """Weight, and bias if there is one, of one linear layer into another; the shapes must agree."""
    names = {name for name, _ in source.named_parameters()}
    assert names == {name for name, _ in target.named_parameters()}
    with torch.no_grad():
        for name in names:
            assert target.get_parameter(name).shape == source.get_parameter(name).shape
            target.get_parameter(name).copy_(source.get_parameter(name))


def evaluate(potential: Potential, atoms: Atoms) -> Result:
    """Energy and forces of ours."""
    edge_index, shifts = neighbours(atoms, potential.cutoff)
    structure = from_atoms(atoms)
    prediction = EnergyForces(potential).eval()(
        structure.positions, structure.numbers, structure.cell, edge_index, shifts, structure.batch, 1
    )
    return prediction.energy[0], prediction.forces


def report(architecture: str, peer: str, ours: list[Result], theirs: list[Result], deviations: str) -> None:
    """Prints one line of JSON: largest difference over largest value of the peer, over all structures.

    Args:
        architecture: a key of `ggnn_ff.models.MODELS`.
        peer: name and version.
        ours: of each structure, without scale and shift.
        theirs: of the same structures.
        deviations: what was swapped or scaled to make the two comparable, and where the peer leaves its paper.
    """

    def relative_error(part: int) -> float:
        one = torch.cat([result[part].detach().reshape(-1) for result in ours])
        other = torch.cat([result[part].detach().reshape(-1) for result in theirs])
        assert one.dtype == other.dtype == torch.float64
        assert one.shape == other.shape
        assert float(other.abs().max()) > 1e-3, "too small to say anything"
        return float((one - other).abs().max() / other.abs().max())

    line = {
        "architecture": architecture,
        "peer": peer,
        "torch": torch.__version__,
        "energy_relative_error": relative_error(0),
        "forces_relative_error": relative_error(1),
        "deviations": deviations,
    }
    print(json.dumps(line), flush=True)
