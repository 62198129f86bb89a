"""The physical properties that every potential must have, as checks of an `EnergyForces` with cutoff `CUTOFF`.

Energies are in eV, lengths in angstrom; modules compute in float64 unless a check says otherwise.
`test_model_contract.py` runs each check over every architecture, and over a broken toy model that it must reject.
"""

import io
import warnings
from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

from ggnn_ff.errors import InputError
from ggnn_ff.export import evaluate
from ggnn_ff.forces import EnergyForces, Prediction
from ggnn_ff.graph import Graph, Structure, edge_vectors, from_atoms
from ggnn_ff.neighbors import neighbor_list
from ggnn_ff.stability.smoothness import NEGLIGIBLE, cutoff_crossings, largest_jumps, order_swaps, random_lines

CUTOFF = 5.0
ROUNDING = 1e-11  # eV, eV/angstrom, eV/angstrom^3: what sums in another order may differ by


# --- structures and evaluation ------------------------------------------------------------------------------------


def ethanol() -> Atoms:
    """Nine atoms off every symmetric place: a chiral shape with large forces."""
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=1)
    return atoms


def oxide() -> Atoms:
    """Six atoms in a triclinic cell with sides below the cutoff, so that atoms see their own images."""
    scaled = [[0, 0, 0], [0.5, 0.5, 0.5], [0.3, 0.3, 0], [0.7, 0.7, 0], [0.2, 0.8, 0.5], [0.8, 0.2, 0.5]]
    atoms = Atoms("Ti2O4", cell=[[4.6, 0.0, 0.0], [0.9, 4.4, 0.0], [-0.5, 0.7, 3.0]], pbc=True)
    atoms.set_scaled_positions(scaled)
    atoms.rattle(0.1, seed=2)
    return atoms


def predict(module: nn.Module, atoms: Atoms) -> Prediction:
    return evaluate(module, atoms, CUTOFF, torch.device("cpu"))


def energy(module: nn.Module, atoms: Atoms) -> float:
    return float(predict(module, atoms).energy[0])


def stack(*structures: Atoms) -> Structure:
    """One batch of several structures."""
    parts = [from_atoms(atoms) for atoms in structures]
    return Structure(
        positions=torch.cat([part.positions for part in parts]),
        numbers=torch.cat([part.numbers for part in parts]),
        cell=torch.cat([part.cell for part in parts]),
        pbc=torch.cat([part.pbc for part in parts]),
        batch=torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(atoms) for atoms in structures])),
        n_structures=len(parts),
    )


def inputs(structure: Structure) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """The arguments of `EnergyForces.forward`."""
    edge_index, shifts = neighbor_list(structure, CUTOFF)
    numbers, cell, batch = structure.numbers, structure.cell, structure.batch
    return structure.positions, numbers, cell, edge_index, shifts, batch, structure.n_structures


def assert_close(actual: Tensor | np.ndarray | float, expected: Tensor | np.ndarray | float, limit: float) -> None:
    """Finite, of one shape, and nowhere further apart than `limit`."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all(), f"not finite: {actual}"
    assert np.isfinite(expected).all(), f"not finite: {expected}"
    error = float(np.abs(actual - expected).max())
    assert error <= limit, f"differs by {error:.3e}, allowed {limit:.1e}"


def assert_same(actual: Prediction, expected: Prediction, limit: float = ROUNDING) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, limit)


def slope(function: Callable[[float], float], step: float) -> float:
    """df/dx at zero, fourth-order central difference."""
    return (function(-2 * step) - 8 * function(-step) + 8 * function(step) - function(2 * step)) / (12 * step)


# --- derivatives --------------------------------------------------------------------------------------------------


def check_forces_are_the_gradient(module: nn.Module) -> None:
    """Along random directions, each of which moves every atom."""
    random = np.random.default_rng(7)
    for atoms in (ethanol(), oxide()):
        forces = predict(module, atoms).forces.numpy()
        assert np.abs(forces).max() > 0.01, "forces too small to say anything"
        for direction in random.normal(size=(5, len(atoms), 3)):
            direction /= np.linalg.norm(direction)

            def moved(x: float, atoms: Atoms = atoms, direction: np.ndarray = direction) -> float:
                copy = atoms.copy()
                copy.positions += x * direction
                return energy(module, copy)

            scale = np.linalg.norm(forces)
            assert_close((forces * direction).sum() / scale, -slope(moved, 2e-4) / scale, 2e-7)


def check_stress_is_the_strain_derivative(module: nn.Module) -> None:
    """Along random strains, each of which has all six components."""
    atoms = oxide()
    stress = predict(module, atoms).stress[0].numpy()
    scale = np.linalg.norm(stress)
    assert scale > 1e-4, "stress too small to say anything"
    for strain in np.random.default_rng(8).normal(size=(4, 3, 3)):
        strain = (strain + strain.T) / np.linalg.norm(strain + strain.T)

        def strained(x: float, strain: np.ndarray = strain) -> float:
            copy = atoms.copy()
            copy.set_cell(atoms.cell.array @ (np.eye(3) + x * strain), scale_atoms=True)
            return energy(module, copy)

        assert_close((stress * strain).sum() / scale, slope(strained, 2e-4) / atoms.get_volume() / scale, 1e-6)


def check_parameter_gradient_of_a_force_loss(module: nn.Module) -> None:
    arguments = inputs(stack(ethanol(), molecule("CO2"), oxide()))
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(0)
    directions = [  # in proportion to the size of the parameters, of which a large model has many small ones
        torch.randn(p.shape, generator=generator, dtype=p.dtype) * max(float(p.detach().square().mean().sqrt()), 0.1)
        for p in parameters
    ]
    start = [parameter.detach().clone() for parameter in parameters]
    labels = module(*arguments).energy.detach() + 0.3

    def loss() -> Tensor:
        prediction = module(*arguments)
        return prediction.forces.square().mean() + (prediction.energy - labels).square().mean()

    def moved(x: float) -> float:
        with torch.no_grad():
            for parameter, origin, direction in zip(parameters, start, directions, strict=True):
                parameter.copy_(origin + x * direction)
        return float(loss().detach())

    was_training = module.training
    module.train()
    try:
        gradient = torch.autograd.grad(loss(), parameters, allow_unused=True)
        along = [(g * d).sum() for g, d in zip(gradient, directions, strict=True) if g is not None]
        analytical, numerical = float(torch.stack(along).sum().detach()), slope(moved, 3e-6)
        moved(0.0)
    finally:
        module.train(was_training)
    assert abs(analytical) > 1e-3, "gradient too small to say anything"
    assert_close(analytical / abs(analytical), numerical / abs(analytical), 1e-6)


def check_second_derivatives(module: nn.Module) -> None:
    """With respect to the edge vectors, by gradgradcheck."""
    positions, numbers, cell, edge_index, shifts, batch, n_structures = inputs(stack(ethanol(), oxide()))
    vectors = edge_vectors(positions, cell, edge_index, shifts, batch).requires_grad_(True)

    def energies(vectors: Tensor) -> Tensor:
        return module.potential(Graph(numbers, edge_index, vectors, batch, n_structures))[0]

    try:
        torch.autograd.gradgradcheck(energies, vectors, atol=1e-8, rtol=1e-5, fast_mode=True)
    except GradcheckError as error:
        raise AssertionError(f"second derivatives: {error}") from error


# --- symmetries ---------------------------------------------------------------------------------------------------


def check_translation(module: nn.Module) -> None:
    for atoms in (ethanol(), oxide()):
        moved = atoms.copy()
        moved.positions += [3.1, -7.2, 11.3]
        assert_same(predict(module, moved), predict(module, atoms))


def _check_orthogonal(module: nn.Module, matrix: np.ndarray) -> None:
    for atoms in (ethanol(), oxide()):
        before = predict(module, atoms)
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ matrix.T)
        turned.positions = atoms.positions @ matrix.T
        q = torch.from_numpy(matrix)
        expected = before._replace(forces=before.forces @ q.T, stress=q @ before.stress @ q.T)
        assert_same(predict(module, turned), expected)


def check_rotation(module: nn.Module) -> None:
    for rotation in Rotation.random(3, random_state=3):
        _check_orthogonal(module, rotation.as_matrix())


def check_reflection(module: nn.Module) -> None:
    """Makes the cell left-handed as well."""
    rotation = Rotation.random(random_state=4).as_matrix()
    for mirror in (np.diag([1.0, 1.0, -1.0]), -np.eye(3)):
        _check_orthogonal(module, rotation @ mirror)


def check_permutation(module: nn.Module) -> None:
    for atoms in (ethanol(), oxide()):
        order = np.random.default_rng(5).permutation(len(atoms))
        before = predict(module, atoms)
        expected = before._replace(forces=before.forces[order], atomic_energies=before.atomic_energies[order])
        assert_same(predict(module, atoms[order]), expected)


def check_no_net_force_or_torque(module: nn.Module) -> None:
    atoms = ethanol()
    forces = predict(module, atoms).forces.numpy()
    assert_close(forces.sum(axis=0), np.zeros(3), ROUNDING)
    assert_close(np.cross(atoms.positions, forces).sum(axis=0), np.zeros(3), ROUNDING)


# --- periodicity --------------------------------------------------------------------------------------------------


def check_lattice_translation_of_single_atoms(module: nn.Module) -> None:
    atoms = oxide()
    wrapped, unwrapped = atoms.copy(), atoms.copy()
    wrapped.wrap()
    steps = np.random.default_rng(6).integers(-3, 4, size=(len(atoms), 3))
    unwrapped.positions += steps @ atoms.cell.array
    expected = predict(module, atoms)
    assert_same(predict(module, wrapped), expected)
    assert_same(predict(module, unwrapped), expected)


def check_choice_of_cell(module: nn.Module) -> None:
    """One crystal, described by skewed and left-handed cells."""
    atoms = oxide()
    expected = predict(module, atoms)
    for basis in ([[1, 0, 0], [1, 1, 0], [0, -1, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, 1]], -np.eye(3)):
        other = atoms.copy()
        other.set_cell(np.array(basis) @ atoms.cell.array)
        assert_same(predict(module, other), expected)


def check_supercell(module: nn.Module) -> None:
    """With cell sides from below the cutoff, hence far above half the box, to twice that."""
    atoms = oxide()
    one = predict(module, atoms)
    for repeats in ((2, 1, 1), (1, 1, 2)):
        two = predict(module, atoms.repeat(repeats))
        expected = Prediction(2 * one.energy, one.atomic_energies.repeat(2), one.forces.repeat(2, 1), one.stress)
        assert_same(two, expected)


def check_partial_periodicity(module: nn.Module) -> None:
    """A direction without periodicity has no images, whatever the cell vector; the other directions have them."""
    for pbc in np.ndindex(2, 2, 2):
        atoms = oxide()
        atoms.pbc = pbc
        one = predict(module, atoms)
        for axis in range(3):
            other = atoms.copy()
            if pbc[axis]:
                other = other.repeat([2 if a == axis else 1 for a in range(3)])
                assert_close(predict(module, other).energy, 2 * one.energy, ROUNDING)
            else:
                other.cell[axis] = 0.0  # any vector will do
                assert_close(predict(module, other).energy, one.energy, ROUNDING)
                assert_close(predict(module, other).forces, one.forces, ROUNDING)


# --- size ---------------------------------------------------------------------------------------------------------


def check_one_atom(module: nn.Module) -> None:
    """An energy of its own, by element, and no force."""
    energies = set()
    for symbol in ("H", "C", "O"):
        for position in ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]):
            prediction = predict(module, Atoms(symbol, positions=[position]))
            assert_close(prediction.energy, prediction.atomic_energies, 0.0)
            assert_close(prediction.forces, np.zeros((1, 3)), 0.0)
            energies.add(float(prediction.energy[0]))
    assert len(energies) == 3


def check_no_edges(module: nn.Module) -> None:
    """Atoms beyond the cutoff are as good as alone, in a vacuum and in a large box."""
    atoms = Atoms("HCO", positions=[[0, 0, 0], [0, 0, 7.0], [0, 8.0, 0]])
    alone = torch.tensor([energy(module, atoms[[i]]) for i in range(3)], dtype=torch.float64)
    boxed = Atoms(atoms, cell=[20.0, 20.0, 20.0], pbc=True)
    for structure in (atoms, boxed):
        prediction = predict(module, structure)
        assert_close(prediction.atomic_energies, alone, ROUNDING)
        assert_close(prediction.forces, np.zeros((3, 3)), 0.0)
        assert_close(prediction.stress, np.zeros((1, 3, 3)), 0.0)


def check_batch_equals_one_by_one(module: nn.Module) -> None:
    structures = (ethanol(), Atoms("H"), oxide(), molecule("CO2"), oxide().repeat((1, 1, 2)))
    together = module(*inputs(stack(*structures)))
    alone = [predict(module, atoms) for atoms in structures]
    assert_same(together, Prediction(*(torch.cat(parts) for parts in zip(*alone, strict=True))))


def check_structures_of_a_batch_do_not_see_each_other(module: nn.Module) -> None:
    structures = (ethanol(), oxide(), molecule("CO2"))
    positions, numbers, cell, edge_index, shifts, batch, n_structures = inputs(stack(*structures))
    for chosen in range(n_structures):
        vectors = edge_vectors(positions, cell, edge_index, shifts, batch).requires_grad_(True)
        energies, _ = module.potential(Graph(numbers, edge_index, vectors, batch, n_structures))
        (gradient,) = torch.autograd.grad(energies[chosen], vectors)
        others = batch[edge_index[0]] != chosen
        assert float(gradient[~others].abs().max()) > 0.01
        assert_close(gradient[others], torch.zeros_like(gradient[others]), 0.0)


def check_far_fragments_add(module: nn.Module) -> None:
    one, other = ethanol(), molecule("C2H2")
    other.positions += [30.0, 0.0, 0.0]
    expected = [torch.cat(parts) for parts in zip(predict(module, one), predict(module, other), strict=True)]
    both = predict(module, one + other)
    assert_close(both.energy[0], expected[0].sum(), ROUNDING)
    assert_close(both.atomic_energies, expected[1], ROUNDING)
    assert_close(both.forces, expected[2], ROUNDING)


# --- smoothness ---------------------------------------------------------------------------------------------------


def _approach(module: nn.Module, distance: float) -> tuple[float, float]:
    """Energy, and force along the way, of a hydrogen that has one oxygen in sight and leaves the carbon's."""
    direction = np.array([1.0, 0.2, 0.1]) / np.linalg.norm([1.0, 0.2, 0.1])
    atoms = Atoms("COH", positions=[[0.0, 0.0, 0.0], [1.2, 0.0, 0.3], distance * direction])
    prediction = predict(module, atoms)
    return float(prediction.energy[0]), float(prediction.forces[2].numpy() @ direction)


def check_smooth_at_the_cutoff(module: nn.Module) -> None:
    """Energy, force and force constant have no jump where a distance crosses the cutoff."""
    far = _approach(module, CUTOFF + 0.5)
    near = _approach(module, CUTOFF - 1.0)
    assert abs(near[0] - far[0]) > 1e-4, "no interaction to cut off"
    step = 1e-6
    inside, outside = _approach(module, CUTOFF - step), _approach(module, CUTOFF + step)
    assert_close(inside[0] - inside[1] * step, outside[0] + outside[1] * step, 1e-10)
    assert_close(inside[1], outside[1], 1e-5)
    forces = [_approach(module, CUTOFF + k * step)[1] for k in (-2, -1, 0, 1, 2)]
    before, after = (forces[1] - forces[0]) / step, (forces[4] - forces[3]) / step
    assert_close(before, after, 1e-3)


def _assert_no_kink(module: nn.Module, atoms: Atoms, index: int, direction: list[float]) -> None:
    """Energy and forces, extrapolated from both sides to where an atom moving along a line is now, are the same.

    The steps are coarse, so that a kink which is rounded off over less than a thousandth of an angstrom counts as one.
    """

    def at(x: float) -> tuple[float, np.ndarray]:
        moved = atoms.copy()
        moved.positions[index] += x * np.array(direction)
        prediction = predict(module, moved)
        return float(prediction.energy[0]), prediction.forces.numpy()

    step, weights = 3e-4, (4.0, -6.0, 4.0, -1.0)  # a cubic through four points
    scale = np.abs(at(0.0)[1]).max()
    assert scale > 0.01, "forces too small to say anything"
    before, after = ([at(sign * k * step) for k in (1, 2, 3, 4)] for sign in (-1.0, 1.0))
    energies = [sum(w * e for w, (e, _) in zip(weights, side, strict=True)) for side in (before, after)]
    forces = [sum(w * f for w, (_, f) in zip(weights, side, strict=True)) for side in (before, after)]
    assert_close(energies[0] / scale, energies[1] / scale, 1e-6)
    assert_close(forces[0] / scale, forces[1] / scale, 1e-4)


def check_smooth_where_atoms_line_up(module: nn.Module) -> None:
    """An atom moves through a line of others (angles of 0 and 180 degrees) and through a plane of others."""
    side = [[4.4, 1.0, 0.0], [4.2, -0.9, 0.4]]  # so that nothing vanishes by symmetry
    line = Atoms("HCCCOH", positions=[[0, 0, 0], [1.06, 0, 0], [2.27, 0, 0], [3.72, 0, 0], *side])
    for direction in ([0.0, 1.0, 0.0], [0.0, 0.6, 0.8]):
        _assert_no_kink(module, line, 0, direction)
    plane = Atoms("CHOCH", positions=[[0, 0, 0], [-0.6, 0.9, 0], [1.25, 0.1, 0], [-0.7, -1.3, 0], [-1.7, -1.2, 0]])
    _assert_no_kink(module, plane, 0, [0.0, 0.0, 1.0])


def check_smooth_where_neighbours_swap_order(module: nn.Module) -> None:
    """Two neighbours of an atom, of one element or of two, come to be equally far from it."""
    direction = np.array([-0.3, 0.9, 0.2]) / np.linalg.norm([-0.3, 0.9, 0.2])
    for symbols in ("CHHOH", "COHHH"):
        positions = [[0, 0, 0], [1.1, 0, 0], 1.1 * direction, [-0.6, -1.0, 0.7], [-0.2, 0.3, -1.6]]
        _assert_no_kink(module, Atoms(symbols, positions=positions), 2, direction.tolist())


def check_smooth_where_surroundings_are_symmetric(module: nn.Module) -> None:
    """An atom leaves the centre of a tetrahedron and the site of a crystal: the force constant is no matter of 1e-4."""
    for atoms in (molecule("CH4"), bulk("Ti", "fcc", 4.1).repeat(2)):

        def force(step: float, atoms: Atoms = atoms) -> float:
            moved = atoms.copy()
            moved.positions[0] += step * np.array([0.6, 0.8, 0.0])
            return float(predict(module, moved).forces[0] @ torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64))

        near, far = ((force(step) - force(-step)) / (2 * step) for step in (1e-4, 1e-2))  # eV/angstrom^2
        assert_close(near, far, 0.1 * (1.0 + abs(far)))


def check_no_jumps(module: nn.Module) -> None:
    """Along random lines, where two molecules leave each other's sight, and where neighbours swap order."""
    one, two = molecule("CH3CH2OH"), molecule("CH3CH2OH") + molecule("CH3CH2OH")
    for atoms, lines in (
        (one, random_lines(one.positions, 1)),
        (two, cutoff_crossings(one.positions, CUTOFF, 3)),
        (one, order_swaps(one.positions, 3)),
    ):

        def surface(positions: np.ndarray, atoms: Atoms = atoms) -> tuple[np.ndarray, np.ndarray]:
            frames = [Atoms(atoms.numbers, positions=frame) for frame in positions]
            parts = [module(*inputs(stack(*frames[first : first + 16]))) for first in range(0, len(frames), 16)]
            forces = torch.cat([part.forces for part in parts])
            return torch.cat([part.energy for part in parts]).numpy(), forces.numpy().reshape(positions.shape)

        jumps = largest_jumps(surface, lines, step=5e-3, looks=1)
        assert jumps.energy <= NEGLIGIBLE, jumps
        assert jumps.forces <= NEGLIGIBLE, jumps


# --- special shapes -----------------------------------------------------------------------------------------------


def check_collinear_and_planar_molecules(module: nn.Module) -> None:
    """Forces and the gradient of a loss are finite, and no force leaves the line or the plane."""
    was_training = module.training
    for name, dimensions in (("CO2", 1), ("C2H2", 1), ("C6H6", 2)):
        atoms = molecule(name)
        atoms.positions[0] += 0.05 * (atoms.positions[1] - atoms.positions[0])  # stays on its line
        prediction = predict(module, atoms)
        span = np.linalg.svd(atoms.positions - atoms.positions.mean(axis=0))[2]
        across = prediction.forces.numpy() @ span.T  # components along the principal axes
        assert np.abs(across).max() > 0.01
        assert_close(across[:, dimensions:], np.zeros((len(atoms), 3 - dimensions)), ROUNDING)
        module.train()
        try:
            loss = module(*inputs(from_atoms(atoms))).forces.square().sum()
            gradients = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
        finally:
            module.train(was_training)
        assert all(bool(g.isfinite().all()) for g in gradients if g is not None), f"loss gradient of {name}"


def check_close_and_coincident_atoms(module: nn.Module) -> None:
    """Close atoms have finite forces; atoms on one place, as such or by periodicity, are an error."""
    close, coincident, by_periodicity = ethanol(), ethanol(), oxide()
    close.positions[3] = close.positions[0] + [0.06, 0.0, 0.0]
    coincident.positions[3] = coincident.positions[0]
    by_periodicity.positions[3] = by_periodicity.positions[2] + [1, -1, 2] @ by_periodicity.cell.array
    assert all(bool(tensor.isfinite().all()) for tensor in predict(module, close)), "not finite"
    for atoms in (coincident, by_periodicity):
        said = ""
        try:
            predict(module, atoms)
        except InputError as error:
            said = str(error)
        assert "must keep atoms apart" in said, "two atoms lie on one place, and nobody says so"


# --- numerics -----------------------------------------------------------------------------------------------------


def check_determinism(module: nn.Module) -> None:
    for atoms in (ethanol(), oxide()):
        first = predict(module, atoms)
        for _ in range(3):
            for one, other in zip(predict(module, atoms), first, strict=True):
                assert torch.equal(one, other)


def check_float32_is_close(module: nn.Module, in_float32: nn.Module) -> None:
    """`in_float32` is the same potential with features in float32; energies stay float64."""
    for atoms in (ethanol(), oxide()):
        exact, rounded = predict(module, atoms), predict(in_float32, atoms)
        assert all(tensor.dtype == torch.float64 for tensor in rounded)
        scale = float(exact.forces.abs().max())
        assert not torch.equal(exact.forces, rounded.forces)
        assert_close(rounded.energy, exact.energy, 1e-5 * len(atoms))
        assert_close(rounded.forces / scale, exact.forces / scale, 5e-5)


def check_torchscript_equals_eager(module: nn.Module) -> None:
    """After saving and loading, call after call: the executor specialises on the shapes of the first calls."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(module), buffer)
        buffer.seek(0)
        scripted = torch.jit.load(buffer)
    batches = [
        (ethanol(),),
        (oxide(),),
        (molecule("CO2"), ethanol(), oxide()),
        (Atoms("H"),),
        (oxide().repeat((2, 1, 1)),),
        (ethanol(), ethanol()),
        (ethanol(),),
    ]
    for batch in batches:
        arguments = inputs(stack(*batch))
        assert_same(Prediction(*scripted(*arguments)), module(*arguments))


CHECKS: dict[str, Callable[[EnergyForces], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_") and check is not check_float32_is_close
}
