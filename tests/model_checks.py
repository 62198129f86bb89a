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
from ase.build import molecule
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from ggnn_ff.export import evaluate
from ggnn_ff.forces import EnergyForces, Prediction
from ggnn_ff.graph import Graph, Structure, edge_vectors, from_atoms
from ggnn_ff.neighbors import neighbor_list

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
    for atoms in (ethanol(), oxide()):
        forces = predict(module, atoms).forces.numpy()
        assert np.abs(forces).max() > 0.01, "forces too small to say anything"
        numerical = np.empty_like(forces)
        for i, axis in np.ndindex(forces.shape):

            def moved(x: float, atoms: Atoms = atoms, i: int = i, axis: int = axis) -> float:
                copy = atoms.copy()
                copy.positions[i, axis] += x
                return energy(module, copy)

            numerical[i, axis] = -slope(moved, 1e-3)
        assert_close(forces / np.abs(forces).max(), numerical / np.abs(forces).max(), 1e-6)


def check_stress_is_the_strain_derivative(module: nn.Module) -> None:
    atoms = oxide()
    stress = predict(module, atoms).stress[0].numpy()
    assert np.abs(stress).max() > 1e-4, "stress too small to say anything"
    numerical = np.empty((3, 3))
    for a, b in np.ndindex(3, 3):

        def strained(x: float, a: int = a, b: int = b) -> float:
            deformation = np.eye(3)
            deformation[a, b] += x / 2
            deformation[b, a] += x / 2
            copy = atoms.copy()
            copy.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
            return energy(module, copy)

        numerical[a, b] = slope(strained, 1e-3) / atoms.get_volume()
    assert_close(stress / np.abs(stress).max(), numerical / np.abs(stress).max(), 1e-6)


def check_parameter_gradient_of_a_force_loss(module: nn.Module) -> None:
    arguments = inputs(stack(ethanol(), molecule("CO2"), oxide()))
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
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
        analytical, numerical = float(torch.stack(along).sum().detach()), slope(moved, 1e-5)
        moved(0.0)
    finally:
        module.train(was_training)
    assert abs(analytical) > 1e-3, "gradient too small to say anything"
    assert_close(analytical / abs(analytical), numerical / abs(analytical), 1e-6)


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
    step = 1e-5
    forces = [_approach(module, CUTOFF + k * step)[1] for k in (-2, -1, 0, 1, 2)]
    before, after = (forces[1] - forces[0]) / step, (forces[4] - forces[3]) / step
    assert_close(before, after, 1e-3)


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
        assert_close(rounded.forces / scale, exact.forces / scale, 1e-5)


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
