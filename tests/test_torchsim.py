"""torch-sim: the same numbers as in ASE, for many structures at once, and dynamics that are those of each alone."""

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.md.verlet import VelocityVerlet

from ggnn_ff.errors import InputError
from ggnn_ff.export import load_potential
from ggnn_ff.hosts.ase import GGNNCalculator

torch_sim = pytest.importorskip("torch_sim")

from ggnn_ff.hosts.torchsim import GGNNModel  # noqa: E402 (needs torch-sim)


@pytest.fixture(scope="module")
def potential():
    return load_potential("ethanol-pbe-fast", dtype="float64")


def rattled(seed, periodic=False):
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, rng=np.random.default_rng(seed))
    if periodic:
        atoms.set_cell([[6.0, 0.0, 0.0], [1.0, 6.5, 0.0], [0.5, -0.7, 7.0]])
        atoms.pbc = True
    return atoms


def state_of(structures, model):
    return torch_sim.initialize_state(structures, device=model.device, dtype=model.dtype)


@pytest.mark.parametrize("periodic", [False, True])
def test_same_numbers_as_in_ase(potential, periodic):
    structures = [rattled(seed, periodic) for seed in range(3)]
    structures[1] = structures[1][[0, 3, 4, 5, 1, 2, 6, 7]]  # not all of one size
    model = GGNNModel(potential)
    answer = model(state_of(structures, model))
    start = 0
    for number, atoms in enumerate(structures):
        atoms.calc = GGNNCalculator(potential)
        forces = answer["forces"][start : start + len(atoms)].numpy()
        start += len(atoms)
        np.testing.assert_allclose(answer["energy"][number].item(), atoms.get_potential_energy(), rtol=0, atol=1e-9)
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-9)
        if periodic:
            stress = answer["stress"][number].numpy()
            np.testing.assert_allclose(stress, atoms.get_stress(voigt=False), rtol=0, atol=1e-9)


def test_cell_that_is_changed_in_place_is_seen(potential):
    model = GGNNModel(potential)
    state = state_of([rattled(0, periodic=True)], model)
    model(state)
    state.cell *= 1.1
    fresh = GGNNModel(potential)(state)
    np.testing.assert_allclose(model(state)["energy"].numpy(), fresh["energy"].numpy(), rtol=0, atol=1e-9)


def test_replicas_move_as_each_alone(potential):
    """50 steps, far enough for lists to be made anew."""
    structures = [rattled(seed) for seed in range(3)]
    for seed, atoms in enumerate(structures):
        atoms.set_momenta(np.random.default_rng(seed).normal(scale=1.0, size=(9, 3)))
    model = GGNNModel(potential)
    state = state_of(structures, model)
    state.momenta = torch.tensor(np.concatenate([atoms.get_momenta() for atoms in structures]))
    timestep = torch.tensor(0.5 * units.fs, dtype=model.dtype)
    initialize, step = torch_sim.nve(model, dt=timestep, kT=torch.tensor(0.0, dtype=model.dtype))
    moving = initialize(state)
    for _ in range(50):
        moving = step(moving)
    assert model.neighbors.n_lists > 1
    for number, atoms in enumerate(structures):
        atoms.calc = GGNNCalculator(potential)
        VelocityVerlet(atoms, 0.5 * units.fs).run(50)
        np.testing.assert_allclose(moving.positions[9 * number : 9 * number + 9].numpy(), atoms.positions, atol=1e-8)


def test_what_does_not_fit_is_refused(potential):
    model = GGNNModel(potential)
    with pytest.raises(InputError, match="trained on"):
        model(state_of([Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])], model))
    with pytest.raises(InputError, match="float64"):
        model(torch_sim.initialize_state([rattled(0)], device=model.device, dtype=torch.float32))
    broken = state_of([rattled(0)], model)
    broken.positions[0, 0] = np.nan
    with pytest.raises(InputError, match="finite"):
        model(broken)
    flat = rattled(0, periodic=True)
    state = state_of([flat], model)
    state.cell = torch.zeros_like(state.cell)
    with pytest.raises(InputError, match="volume"):
        model(state)
