"""Compiled potentials: the same numbers for every size and in every host, made once, and refused when wrong."""

import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from model_checks import ethanol, oxide, stack
from untrained import write_untrained

from ggnn_ff import cache, compiled, steps
from ggnn_ff.cache import why_not_compile
from ggnn_ff.compiled import CompiledEnergyForces, compile_potential, fast_form
from ggnn_ff.dynamics.replicas import Batch, BrokenReplicasError
from ggnn_ff.dynamics.replicas import _copies as copies_of
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.dynamics.start import first_state
from ggnn_ff.errors import InputError, tell
from ggnn_ff.export import LoadedPotential, export_torchscript, load_potential
from ggnn_ff.graph import from_atoms
from ggnn_ff.hosts.ase import GGNNCalculator
from ggnn_ff.hosts.openmm import make_topology, openmm_force
from ggnn_ff.hosts.parity import answers_of_all_hosts
from ggnn_ff.models import MODELS
from ggnn_ff.neighbors import neighbor_list
from ggnn_ff.units import EV_PER_KJ_PER_MOL

pytestmark = pytest.mark.skipif(why_not_compile() is not None, reason=f"{why_not_compile()}")
ROUNDING = 1e-10  # eV, eV/angstrom, eV/angstrom^3, in float64


@pytest.fixture(scope="module", autouse=True)
def folder_of_packages(tmp_path_factory):
    """A cache of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GGNN_FF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def eager(potential_folder) -> LoadedPotential:
    return load_potential(potential_folder, dtype="float64")


@pytest.fixture(scope="module")
def fast(potential_file, eager) -> LoadedPotential:
    """Compiled from the TorchScript file."""
    return compile_potential(load_potential(potential_file, dtype="float64"))


def assert_same(ours, reference):
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=ROUNDING)


def water(n_side: int) -> Atoms:
    atoms = molecule("H2O")
    atoms.set_cell([3.1, 3.1, 3.1])
    atoms.pbc = True
    atoms = atoms.repeat(n_side)
    atoms.rattle(0.1, seed=0)
    return atoms


STRUCTURES = {
    "molecule": ethanol(),
    "smaller": molecule("H2O"),
    "pair": Atoms("CO", positions=[[0, 0, 0], [0, 0.3, 1.1]]),
    "far apart": Atoms("CO", positions=[[0, 0, 0], [0, 0, 50.0]]),
    "atom": Atoms("C"),
    "small periodic cell": Atoms("C2O4", oxide().positions, cell=oxide().cell, pbc=True),
    "liquid": water(3),
    "slab": Atoms(water(2), pbc=[True, True, False]),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_of_any_size_have_the_numbers_of_the_potential(eager, fast, name):
    assert_same(fast.evaluate(STRUCTURES[name]), eager.evaluate(STRUCTURES[name]))


def test_a_compiled_potential_can_be_sent_to_another_process(fast):
    sent = pickle.loads(pickle.dumps(fast))
    assert isinstance(sent.module, CompiledEnergyForces)
    assert_same(sent.evaluate(ethanol()), fast.evaluate(ethanol()))


@pytest.mark.parametrize("example", [Atoms("C"), molecule("CO"), Atoms("C", cell=[2, 2, 2], pbc=True)])
def test_potentials_of_few_atoms_are_traced_with_more(eager, example):
    contract = SimpleNamespace(example=SimpleNamespace(atoms=lambda: example), elements=["C", "O"], cutoff=4.0)
    made_up = compiled._with_edges(contract)
    assert set(made_up.symbols) == {"C", "O"}
    assert neighbor_list(from_atoms(made_up), 4.0)[0].shape[1] == 12
    assert compiled._with_edges(eager.contract) == eager.contract.example.atoms()


def test_several_threads_give_the_same_digits_each_time(eager, fast):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        answers = [fast.evaluate(water(4)) for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    assert_same(answers[0], eager.evaluate(water(4)))
    assert all(torch.equal(one.forces, answers[0].forces) for one in answers)
    assert all(torch.equal(one.energy, answers[0].energy) for one in answers)


def test_many_structures_at_once_have_the_numbers_of_each(eager, fast):
    structure = stack(ethanol(), molecule("H2O"), Atoms("C"), ethanol()[:5])
    edge_index, shifts = neighbor_list(structure, eager.contract.cutoff)
    tensors = (structure.positions, structure.numbers, structure.cell, edge_index, shifts, structure.batch)
    assert_same(fast.module(*tensors, 4), eager.module(*tensors, 4))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("structure", [ethanol(), Atoms(water(2), pbc=[True, True, False])], ids=["molecule", "slab"])
def test_replicas_move_as_with_the_potential_itself(eager, fast, structure, threads, monkeypatch):
    monkeypatch.setattr(steps, "ATOMS_AT_ONCE", 18)  # so that two molecules are one part, and a slab is one
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare_replicas(pickle.loads(pickle.dumps(fast)), eager, structure)
    finally:
        torch.set_num_threads(before)


def compare_replicas(fast, eager, structure):
    fast.module.packages[True] = fast.module.package(0)  # spares the time to make one for all threads
    settings = make_settings(host="batched", ensemble="nve", temperature=20000.0, timestep=1.0, steps=1)
    starts = [first_state(structure, settings.model_copy(update={"seed": seed})) for seed in range(5)]
    ours, reference = (Batch(potential, starts, settings) for potential in (fast, eager))
    for active, n_steps in (([0, 1, 2, 3, 4], 20), ([0, 2], 5), ([1], 5)):
        for batch in (ours, reference):
            batch.step(active, n_steps)
    np.testing.assert_allclose(ours.positions, reference.positions, rtol=0, atol=1e-8)
    np.testing.assert_allclose(ours.energies, reference.energies, rtol=0, atol=1e-7)
    moved = np.abs(ours.positions - np.stack([atoms.positions for atoms in starts])).max()
    assert moved > 0.5  # so edges were listed anew


@pytest.mark.parametrize("structure", [ethanol(), water(2)], ids=["molecule", "liquid"])
def test_copies_have_the_numbers_of_the_potential(eager, fast, structure):
    many = copies_of(from_atoms(structure), 5)
    moved = 0.05 * torch.randn(many.positions.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    many = many._replace(positions=many.positions + moved)
    assert_same(steps.make_steps(fast)(many), steps.make_steps(eager)(many))


def test_replicas_whose_atoms_meet_are_named(fast):
    settings = make_settings(host="batched", ensemble="nve", temperature=300.0, steps=1)
    batch = Batch(fast, [first_state(ethanol(), settings)] * 3, settings)
    batch.positions[1, 0] = batch.positions[1, 1]
    with pytest.raises(BrokenReplicasError) as broken:
        batch.evaluate([0, 1, 2], batch.positions)
    assert list(broken.value.reasons) == [1]


def test_hosts_agree_with_the_potential_itself(potential_folder, potential_file):
    answers = answers_of_all_hosts(potential_folder, potential_file, ethanol(), "float64", compile=True)
    for answer in answers.values():
        assert abs(answer.energy - answers["eager"].energy) < 1e-9
        np.testing.assert_allclose(answer.forces, answers["eager"].forces, rtol=0, atol=1e-9)


FEW_EDGES = {
    "atom": Atoms("C"),
    "pair": Atoms("CO", positions=[[0, 0, 0], [0, 0.3, 1.1]]),
    "far apart": Atoms("CO", positions=[[0, 0, 0], [0, 0, 50.0]]),
    "pair and another": Atoms("HCO", positions=[[9, 0, 0], [0, 0, 0], [0, 0.3, 1.1]]),
}


@pytest.mark.parametrize("name", FEW_EDGES)
def test_hosts_evaluate_what_has_few_edges(eager, fast, name):
    assert_hosts_agree(fast, eager, FEW_EDGES[name])


def test_float32_with_splines_and_kernels(tmp_path):
    """What users run by default, of any size."""
    sizes = {"n_features": 8, "n_layers": 2, "l_max": 2, "l_hidden": 1, "correlation": 2}
    folder = write_untrained(tmp_path, "mace", sizes, cutoff=4.0, scale=0.3)
    loaded = load_potential(folder)
    fast = compile_potential(loaded)
    for atoms in (ethanol(), water(3), *FEW_EDGES.values()):
        calculator = GGNNCalculator(fast)
        expected = loaded.evaluate(atoms)
        assert abs(calculator.get_potential_energy(atoms) - float(expected.energy[0])) < 1e-5 * len(atoms)
        np.testing.assert_allclose(calculator.get_forces(atoms), expected.forces.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "python"])
def test_compiled_openmm_forces_follow_positions_and_box(eager, fast, backend):
    pytest.importorskip("openmmtorch", exc_type=ImportError)
    from test_openmm import assert_answers_follow_the_box, make_context
    from test_openmm import water as box

    atoms = box()
    context = make_context(openmm_force(fast, make_topology(atoms), backend=backend), atoms, "Reference")
    assert_answers_follow_the_box(context, atoms, eager)


def test_ase_steps_of_a_compiled_potential(eager, fast):
    """Through lists that hold and lists that do not, with cell, periodicity and size changing on the way."""
    calculator, atoms, random = GGNNCalculator(fast), water(2), np.random.default_rng(0)
    changed = Atoms(atoms, pbc=[True, True, False]), Atoms(atoms, pbc=False), atoms[:-3], water(1)
    changed[2].set_cell(1.01 * atoms.cell, scale_atoms=True)
    for frame in (atoms, *changed, atoms):
        for size in (0.0, 0.01, 0.01, 0.5, 0.01):
            frame.positions += random.normal(scale=size, size=frame.positions.shape)
            frame.calc = calculator
            expected = eager.evaluate(frame)
            assert abs(frame.get_potential_energy() - float(expected.energy[0])) < 1e-9
            np.testing.assert_allclose(frame.get_forces(), expected.forces.numpy(), rtol=0, atol=1e-9)
            np.testing.assert_allclose(frame.get_potential_energies(), expected.atomic_energies.numpy(), atol=1e-9)
            if all(frame.pbc):
                stress = frame.get_stress(voigt=False)
                np.testing.assert_allclose(stress, expected.stress[0].numpy(), rtol=0, atol=1e-10)
    before = atoms.copy()
    for place, message in ((atoms.positions[1] + 0.01, "atoms 0 and 1 at 0.017"), (np.nan, "must be finite")):
        atoms.positions[0] = place
        with pytest.raises(InputError, match=message):
            atoms.get_forces()
    before.calc = pickle.loads(pickle.dumps(calculator))
    assert abs(before.get_potential_energy() - float(eager.evaluate(before).energy[0])) < 1e-9


def assert_hosts_agree(fast: LoadedPotential, eager: LoadedPotential, atoms: Atoms) -> None:
    openmm = pytest.importorskip("openmm")
    force = openmm_force(fast, make_topology(atoms), backend="python")
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions * 0.1)
    state = context.getState(energy=True, forces=True)
    expected = eager.evaluate(atoms)
    assert abs(state.getPotentialEnergy()._value * EV_PER_KJ_PER_MOL - float(expected.energy[0])) < 1e-8
    forces = np.array(state.getForces(asNumpy=True)._value) * EV_PER_KJ_PER_MOL / 10.0
    np.testing.assert_allclose(forces, expected.forces.numpy(), rtol=0, atol=1e-8)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        atoms.calc = GGNNCalculator(fast)
        with mode():
            assert abs(atoms.get_potential_energy() - float(expected.energy[0])) < 1e-8
            np.testing.assert_allclose(atoms.get_forces(), expected.forces.numpy(), rtol=0, atol=1e-8)


def test_package_is_made_once_and_then_found(fast, potential_folder, monkeypatch):
    monkeypatch.setattr(compiled, "_make", None)
    monkeypatch.setenv("CXX", "no-such-compiler")  # of which none is needed then
    again = compile_potential(load_potential(potential_folder, dtype="float64"))  # the other form, the same potential
    assert isinstance(again.module, CompiledEnergyForces)
    assert compile_potential(again) is again


def test_another_process_finds_the_package(tmp_path):
    """And the operators that it calls: in float32 radial functions are splines."""
    hyperparameters = {"n_features": 4, "n_layers": 1, "n_radial": 3}
    write_untrained(tmp_path / "potential", "painn", hyperparameters)
    program = f"""
import torch
from ggnn_ff.compiled import compile_potential
from ggnn_ff.export import load_potential
loaded = load_potential({str(tmp_path / "potential")!r})
atoms = loaded.contract.example.atoms()
difference = compile_potential(loaded).evaluate(atoms).forces - loaded.evaluate(atoms).forces
assert 0.0 < difference.abs().max() < 1e-4
"""
    command, environment = [sys.executable, "-c", program], {**os.environ, "GGNN_FF_CACHE": str(tmp_path / "cache")}
    said = [
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=250, env=environment).stderr
        for _ in range(2)
    ]
    assert ["compiling" in text for text in said] == [True, False]
    assert "made anew" not in said[1]


@pytest.fixture
def copies(fast, monkeypatch, tmp_path):
    """In place of a compilation: copies the package of `fast`."""
    made = min(cache.cache_folder().glob("*.pt2"), key=lambda path: path.stat().st_mtime)  # for one thread
    calls = []

    def copy(eager, loaded, threads, path):
        calls.append(path)
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(kept, path)

    kept = shutil.copyfile(made, tmp_path / "kept.pt2")
    monkeypatch.setenv("GGNN_FF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "_make", copy)
    return calls


def test_damaged_package_is_made_anew(copies, potential_folder):
    loaded = load_potential(potential_folder, dtype="float64")
    compile_potential(loaded)
    copies[0].write_bytes(copies[0].read_bytes()[:1000])
    with pytest.warns(UserWarning, match="cannot be used and is made anew"):
        compile_potential(loaded)
    assert copies[0] == copies[1]


def test_package_with_other_numbers_is_refused(copies, tmp_path):
    hyperparameters = {"n_features": 16, "n_layers": 2, "n_radial": 6}
    other = load_potential(write_untrained(tmp_path / "other", "painn", hyperparameters, scale=5.0), dtype="float64")
    with pytest.raises(InputError, match=r"does not give the numbers.*forces by.*Use compile=False"):
        compile_potential(other)


def test_without_a_compiler_hosts_say_so_and_run(eager, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("GGNN_FF_CACHE", str(tmp_path))  # with nothing in it
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.delenv("GGNN_FF_COMPILE")
    tell.cache_clear()
    assert fast_form(eager, None) is eager
    assert fast_form(eager, None) is eager
    said = capsys.readouterr().err
    assert said.count("runs without being compiled") == 1
    assert "'no-such-compiler' is not installed; install g++" in said
    with pytest.raises(InputError, match="'no-such-compiler' is not installed"):
        GGNNCalculator(eager, compile=True)


def test_what_else_ends_compilation_does_not_end_the_host(eager, monkeypatch, capsys):
    def fail(loaded):
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(compiled, "compile_potential", fail)
    monkeypatch.delenv("GGNN_FF_COMPILE")
    tell.cache_clear()
    assert fast_form(eager, None) is eager
    assert "uid not found" in capsys.readouterr().err


def test_larger_systems_use_the_package_that_there_is_where_theirs_cannot_be_made(eager, fast, monkeypatch, capsys):
    def fail(*arguments):
        raise PermissionError("the folder is read-only")

    one = pickle.loads(pickle.dumps(fast))
    one.module.package(0)
    monkeypatch.setattr(compiled, "_cached", fail)
    tell.cache_clear()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert_same(one.evaluate(water(4)), eager.evaluate(water(4)))
    finally:
        torch.set_num_threads(threads)
    assert "goes on with one thread" in capsys.readouterr().err


@pytest.mark.timeout(120)
@pytest.mark.parametrize("shared", ["potential", "openmm"])
def test_several_threads_of_python_may_share_a_compiled_potential(fast, shared):
    atoms = water(2)
    if shared == "openmm":
        openmm = pytest.importorskip("openmm")
        force = openmm_force(fast, make_topology(atoms), backend="python")
        system = openmm.System()
        for mass in atoms.get_masses():
            system.addParticle(mass)
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / 10.0))
        system.addForce(force)

    def forces(number: int) -> np.ndarray:
        moved = atoms.copy()
        moved.rattle(0.03, rng=np.random.default_rng(number))
        if shared == "potential":
            calculator = GGNNCalculator(fast)
            return np.array([calculator.get_forces(moved) for _ in range(20)])
        reference = openmm.Platform.getPlatformByName("Reference")
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), reference)
        found = []
        for _ in range(20):
            context.setPositions(moved.positions / 10.0)
            found.append(context.getState(forces=True).getForces(asNumpy=True)._value)
        return np.array(found)

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(forces, range(4)))
    for number, found in enumerate(together):
        np.testing.assert_array_equal(found, forces(number))


def test_a_compiled_python_force_can_be_written_to_xml(fast):
    openmm = pytest.importorskip("openmm")
    atoms = ethanol()
    force = openmm_force(fast, make_topology(atoms), backend="python")
    energies = []
    for one in (force, openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(force))):
        system = openmm.System()
        for mass in atoms.get_masses():
            system.addParticle(mass)
        system.addForce(one)
        reference = openmm.Platform.getPlatformByName("Reference")
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), reference)
        context.setPositions(atoms.positions / 10.0)
        energies.append(context.getState(energy=True).getPotentialEnergy()._value)
    assert energies[0] == energies[1]


def test_hosts_compile_unless_told_otherwise(eager, fast, monkeypatch):
    monkeypatch.setattr(compiled, "compile_potential", lambda loaded: fast)
    assert fast_form(eager, None) is eager  # GGNN_FF_COMPILE=0 in these tests
    assert fast_form(eager, True) is fast
    monkeypatch.delenv("GGNN_FF_COMPILE")
    assert fast_form(eager, False) is eager
    assert GGNNCalculator(eager).potential is fast


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_compiles(name, tmp_path):
    """Float64, through all hosts, and for a liquid with the package of many edges."""
    folder = write_untrained(tmp_path, name, MODELS[name].presets["small"].model_dump(), cutoff=5.0, scale=0.3)
    export_torchscript(folder, tmp_path / "potential.pt")
    answers = answers_of_all_hosts(folder, tmp_path / "potential.pt", ethanol(), "float64", compile=True)
    for answer in answers.values():
        assert abs(answer.energy - answers["eager"].energy) < 1e-8
        np.testing.assert_allclose(answer.forces, answers["eager"].forces, rtol=0, atol=1e-8)
    loaded = load_potential(folder, dtype="float64")
    for atoms in FEW_EDGES.values():
        assert_hosts_agree(compile_potential(loaded), loaded, atoms)
    assert_same(compile_potential(loaded).evaluate(water(3)), loaded.evaluate(water(3)))
