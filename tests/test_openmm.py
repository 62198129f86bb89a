"""The potential in OpenMM: the same numbers as everywhere else."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch  # before openmmtorch, which needs its libraries
from ase import Atoms
from ase.build import molecule
from untrained import write_untrained

from ggnn_ff import GGNNCalculator, InputError, load_potential, openmm_force
from ggnn_ff.export import LoadedPotential, export_torchscript
from ggnn_ff.hosts.openmm import make_topology
from ggnn_ff.models import MODELS

openmm = pytest.importorskip("openmm", reason="needs the extra `openmm`")
pytest.importorskip("openmmtorch", reason="needs the extra `openmm`", exc_type=ImportError)

EV_PER_KJ_PER_MOL = 1000 / (1.6021766208e-19 * 6.022140857e23)  # CODATA 2014; others differ by 1e-8
HOSTS = [("Reference", "torch"), ("CPU", "torch"), ("Reference", "python"), ("CPU", "python")]


@pytest.fixture(scope="module")
def potential(potential_file) -> LoadedPotential:
    return load_potential(potential_file, dtype="float64")


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=3)
    return atoms


def water() -> Atoms:
    """Eight turned molecules in a triclinic box below twice the cutoff, some of them whole boxes away."""
    random = np.random.default_rng(4)
    atoms = Atoms(cell=[[6.3, 0.0, 0.0], [0.6, 6.2, 0.0], [-0.5, 0.4, 6.4]], pbc=True)
    for corner in np.ndindex(2, 2, 2):
        one = molecule("H2O")
        one.rotate(random.uniform(0, 360), random.normal(size=3))
        one.positions += np.array(corner) / 2 @ atoms.cell.array
        one.positions += random.integers(-3, 4, size=(3, 3)) @ atoms.cell.array  # each atom on its own
        atoms += one
    return atoms


def make_context(force, atoms: Atoms, platform: str):
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / 10.0))
    system.addForce(force)
    properties = {"Threads": "1"} if platform == "CPU" else {}
    integrator = openmm.VerletIntegrator(0.0005)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), properties)
    context.setPositions(atoms.positions / 10.0)
    return context


def answer(context) -> tuple[float, np.ndarray]:
    """Energy in eV and forces in eV/angstrom."""
    state = context.getState(energy=True, forces=True)
    energy = state.getPotentialEnergy().value_in_unit(openmm.unit.kilojoule_per_mole)
    forces = state.getForces(asNumpy=True).value_in_unit(openmm.unit.kilojoule_per_mole / openmm.unit.angstrom)
    return energy * EV_PER_KJ_PER_MOL, np.array(forces) * EV_PER_KJ_PER_MOL


def assert_answer(context, energy: float, forces: np.ndarray) -> None:
    got_energy, got_forces = answer(context)
    assert abs(got_energy - energy) < 1e-9
    np.testing.assert_allclose(got_forces, forces, rtol=0, atol=1e-9)


def assert_answers_follow_the_box(context, atoms: Atoms, reference: LoadedPotential) -> None:
    """Those of `reference`, while the cell of `atoms` and all positions in it are stretched and pressed together."""
    energies = set()
    for scale in (1.0, 1.001, 1.02, 0.97, 1.3, 1.0):
        frame = atoms.copy()
        frame.set_cell(scale * atoms.cell, scale_atoms=True)
        context.setPeriodicBoxVectors(*(frame.cell.array / 10.0))
        context.setPositions(frame.positions / 10.0)
        expected = reference.evaluate(frame)
        assert_answer(context, float(expected.energy[0]), expected.forces.numpy())
        energies.add(round(float(expected.energy[0]), 4))
    assert len(energies) == 5


@pytest.mark.parametrize("structure", [ethanol, water])
def test_eager_torchscript_and_ase_agree(potential_folder, potential_file, structure):
    atoms = structure()
    atoms.calc = GGNNCalculator(potential_file, dtype="float64")
    for source in (potential_folder, potential_file):
        expected = load_potential(source, dtype="float64").evaluate(structure())
        assert abs(atoms.get_potential_energy() - float(expected.energy[0])) < 1e-10
        np.testing.assert_allclose(atoms.get_forces(), expected.forces.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("structure", [ethanol, water])
@pytest.mark.parametrize(("platform", "backend"), HOSTS)
def test_openmm_agrees_with_eager(potential_folder, potential, structure, platform, backend):
    atoms = structure()
    expected = load_potential(potential_folder, dtype="float64").evaluate(atoms)
    assert float(expected.forces.abs().max()) > 0.1
    force = openmm_force(potential, make_topology(atoms), backend=backend)
    assert force.usesPeriodicBoundaryConditions() == atoms.pbc.all()
    assert_answer(make_context(force, atoms, platform), float(expected.energy[0]), expected.forces.numpy())


@pytest.mark.parametrize("backend", ["torch", "python"])
def test_the_eager_potential_serves_openmm_as_well(potential_folder, potential, backend):
    atoms = ethanol()
    expected = potential.evaluate(atoms)
    force = openmm_force(potential_folder, make_topology(atoms), backend=backend, dtype="float64")
    assert_answer(make_context(force, atoms, "Reference"), float(expected.energy[0]), expected.forces.numpy())


@pytest.mark.parametrize("backend", ["torch", "python"])
def test_positions_and_box_may_change(potential, backend):
    """Frame after frame with other edges: the TorchScript executor specialises on the first ones."""
    atoms = water()
    context = make_context(openmm_force(potential, make_topology(atoms), backend=backend), atoms, "Reference")
    assert_answers_follow_the_box(context, atoms, potential)


@pytest.mark.parametrize("backend", ["torch", "python"])
def test_a_subset_feels_its_own_forces_and_no_others(potential, backend):
    """The atoms of the potential may be any particles, in any order."""
    chosen = [11, 10, 9, 3, 4, 5]
    whole = Atoms("OHH" * 4)
    whole.positions = np.concatenate([molecule("H2O").positions + k * np.array([0, 3, 0]) for k in range(4)])
    expected = potential.evaluate(whole[chosen])
    forces = np.zeros((len(whole), 3))
    forces[chosen] = expected.forces.numpy()
    force = openmm_force(potential, make_topology(whole), backend=backend, atoms=chosen)
    assert_answer(make_context(force, whole, "Reference"), float(expected.energy[0]), forces)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_python_force_works_in_any_gradient_mode(potential, mode):
    """A TorchForce cannot: TorchScript has no way to switch gradients on; it raises."""
    atoms = ethanol()
    expected = potential.evaluate(atoms)
    context = make_context(openmm_force(potential, make_topology(atoms), backend="python"), atoms, "Reference")
    with mode():
        assert_answer(context, float(expected.energy[0]), expected.forces.numpy())


@pytest.mark.parametrize("backend", ["torch", "python"])
def test_float32_is_close(potential_file, potential, backend):
    atoms = ethanol()
    expected = potential.evaluate(atoms)
    force = openmm_force(potential_file, make_topology(atoms), backend=backend, dtype="float32")
    energy, forces = answer(make_context(force, atoms, "Reference"))
    assert 1e-12 < abs(energy - float(expected.energy[0])) < 1e-4
    np.testing.assert_allclose(forces, expected.forces.numpy(), rtol=0, atol=1e-4)


# --- choice of the backend ----------------------------------------------------------------------------------------


def test_auto_prefers_a_torch_force(potential):
    from openmmtorch import TorchForce

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(openmm_force(potential, make_topology(ethanol())), TorchForce)


def test_auto_falls_back_to_a_python_force_and_says_so(potential, monkeypatch):
    monkeypatch.setitem(sys.modules, "openmmtorch", None)
    atoms = ethanol()
    with pytest.warns(
        UserWarning, match=r"using an openmm.PythonForce, since openmmtorch cannot be imported.*torch 2\.9"
    ):
        force = openmm_force(potential, make_topology(atoms))
    assert isinstance(force, openmm.PythonForce)
    expected = potential.evaluate(atoms)
    assert_answer(make_context(force, atoms, "Reference"), float(expected.energy[0]), expected.forces.numpy())


def test_torch_without_openmmtorch_says_what_to_do(potential, monkeypatch):
    monkeypatch.setitem(sys.modules, "openmmtorch", None)
    with pytest.raises(
        ImportError, match=rf"needs torch 2\.9.*here torch is {torch.__version__[:3]}.*backend='python' works"
    ):
        openmm_force(potential, make_topology(ethanol()), backend="torch")


def test_unknown_backend_is_refused(potential):
    with pytest.raises(InputError, match="`backend` must be 'auto', 'torch' or 'python', got 'cuda'"):
        openmm_force(potential, make_topology(ethanol()), backend="cuda")


# --- what is refused ----------------------------------------------------------------------------------------------


def test_unknown_element_is_named(potential):
    with pytest.raises(InputError, match="`atoms` holds Cl, S, but this potential was trained on H, C, O only"):
        openmm_force(potential, make_topology(Atoms("SClH")))


def test_particle_without_element_is_named(potential):
    topology = make_topology(molecule("H2O"))
    topology.addAtom("M", None, next(topology.residues()))
    with pytest.raises(InputError, match=r"none for atom 3 \('M'\); leave virtual sites out with `atoms`"):
        openmm_force(potential, topology)
    openmm_force(potential, topology, atoms=[0, 1, 2])


@pytest.mark.parametrize("atoms", [[0, 9], [-1], [0, 0], [100]])
def test_wrong_indices_are_refused(potential, atoms):
    with pytest.raises(InputError, match=r"`atoms` must be different indices from 0 to 8, got \["):
        openmm_force(potential, make_topology(ethanol()), atoms=atoms)


@pytest.mark.parametrize("atoms", [[0.9, 1.2], [True] * 9, [np.True_] * 9, ["0"]])
def test_what_is_no_index_is_refused(potential, atoms):
    with pytest.raises(InputError, match="`atoms` must be indices"):
        openmm_force(potential, make_topology(ethanol()), atoms=atoms)


def test_no_atoms_are_refused(potential):
    with pytest.raises(InputError, match="must name at least one atom, got none"):
        openmm_force(potential, make_topology(ethanol()), atoms=[])
    with pytest.raises(InputError, match="`topology` has no atoms"):
        openmm_force(potential, make_topology(Atoms()))


def test_dtype_of_a_loaded_potential_is_not_changed_in_silence(potential):
    with pytest.raises(InputError, match="was loaded as float64 on cpu already, got dtype='float32'"):
        openmm_force(potential, make_topology(ethanol()), dtype="float32")


def test_torch_force_works_where_openmm_is_imported_before_torch(potential_file: Path) -> None:
    code = f"""
import openmm
from ase.build import molecule
from ggnn_ff import openmm_force
from ggnn_ff.hosts.openmm import make_topology
atoms = molecule("CH3CH2OH")
for _ in range(2):
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.addForce(openmm_force({str(potential_file)!r}, make_topology(atoms), backend="torch"))
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(atoms.positions / 10)
    context.getIntegrator().step(2)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_gives_one_answer_in_all_hosts(name, tmp_path):
    folder = write_untrained(tmp_path, name, MODELS[name].presets["small"].model_dump(), cutoff=5.0, scale=0.3)
    export_torchscript(folder, tmp_path / "potential.pt")
    from ggnn_ff.hosts.parity import answers_of_all_hosts

    answers = answers_of_all_hosts(folder, tmp_path / "potential.pt", ethanol(), "float64")
    assert answers.keys() == {"eager", "TorchScript", "ASE", "TorchForce", "PythonForce"}
    assert np.abs(answers["eager"].forces).max() > 1e-3
    for answer in answers.values():
        assert abs(answer.energy - answers["eager"].energy) < 1e-8
        np.testing.assert_allclose(answer.forces, answers["eager"].forces, rtol=0, atol=1e-8)
