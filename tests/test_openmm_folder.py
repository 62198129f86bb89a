"""What OpenMM's own reporters leave in a folder is read and judged."""

from importlib.util import find_spec

import numpy as np
import pytest
from ase import units

from ggnn_ff.errors import InputError
from ggnn_ff.stability.report import check_trajectory
from ggnn_ff.stability.trajectory import read_trajectory

openmm = pytest.importorskip("openmm")
mdtraj = pytest.importorskip("mdtraj")
app = pytest.importorskip("openmm.app")

STEPS = 400
PLACES = np.array([[0.0, 0.0, 0.0], [0.0957, 0.0, 0.0], [-0.024, 0.0927, 0.0]])  # nm


def simulate(folder, integrator, suffix=".dcd", separator=",", remove_motion=False, **columns):
    """Water of springs, 400 steps: a frame every 4, a row of energies every step."""
    folder.mkdir()
    topology = app.Topology()
    residue = topology.addResidue("HOH", topology.addChain())
    oxygen, first, second = (topology.addAtom(n, app.Element.getBySymbol(n[0]), residue) for n in ("O", "H1", "H2"))
    topology.addBond(oxygen, first)
    topology.addBond(oxygen, second)
    system, bonds = openmm.System(), openmm.HarmonicBondForce()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    for pair, length in {(0, 1): 0.0957, (0, 2): 0.0957, (1, 2): 0.151}.items():
        bonds.addBond(*pair, length, 3e5)
    system.addForce(bonds)
    if remove_motion:
        system.addForce(openmm.CMMotionRemover())
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(PLACES)
    simulation.context.setVelocitiesToTemperature(300.0, 1)
    with open(folder / "water.pdb", "w") as file:
        app.PDBFile.writeFile(topology, PLACES * openmm.unit.nanometer, file)
    reporters = {".dcd": app.DCDReporter, ".xtc": app.XTCReporter, ".h5": mdtraj.reporters.HDF5Reporter}
    simulation.reporters.append(reporters[suffix](str(folder / f"frames{suffix}"), 4))
    asked = {"time": True, "potentialEnergy": True, "kineticEnergy": True, "temperature": True, **columns}
    others = {"step": True, "progress": True, "speed": True, "remainingTime": True, "totalSteps": STEPS}
    table = app.StateDataReporter(str(folder / "state.csv"), 1, separator=separator, **others, **asked)
    simulation.reporters.append(table)
    simulation.step(STEPS)
    state = simulation.context.getState(energy=True)
    simulation.reporters.clear()  # which closes their files
    energies = (state.getPotentialEnergy(), state.getKineticEnergy())
    return [energy.value_in_unit(openmm.unit.kilojoule_per_mole) for energy in energies]


def verdict(report, name):
    return next(verdict for verdict in report.verdicts if verdict.name == name)


needs_hdf5 = pytest.mark.skipif(find_spec("tables") is None, reason="mdtraj reads HDF5 with PyTables")


@pytest.mark.parametrize("suffix", [".dcd", ".xtc", pytest.param(".h5", marks=needs_hdf5)])
@pytest.mark.parametrize("separator", [",", "\t"])
def test_constant_energy_is_read_and_passes(tmp_path, suffix, separator):
    last = simulate(tmp_path / "run", openmm.VerletIntegrator(0.00025), suffix, separator)
    read = read_trajectory(tmp_path / "run")
    assert read.positions.shape == (STEPS // 4, 3, 3)
    np.testing.assert_array_equal(read.numbers, [8, 1, 1])
    np.testing.assert_allclose(read.energies.times_fs, 0.25 * np.arange(1, STEPS + 1))
    found = [read.energies.potential[-1], read.energies.kinetic[-1]]
    np.testing.assert_allclose(found, np.array(last) * units.kJ / units.mol)
    report = check_trajectory(tmp_path / "run")
    assert verdict(report, "energy drift").passed is True
    assert verdict(report, "energy fluctuation / kinetic").passed is True
    assert report.passed


def test_bath_that_is_not_named_fails_as_constant_energy(tmp_path):
    simulate(tmp_path / "run", openmm.LangevinMiddleIntegrator(3000.0, 20.0, 0.00025))
    assert verdict(check_trajectory(tmp_path / "run"), "energy fluctuation / kinetic").passed is False
    assert verdict(check_trajectory(tmp_path / "run", ensemble="langevin"), "energy drift").value is None


@pytest.mark.parametrize(("remove_motion", "count"), [(False, 9), (True, 6)])
def test_degrees_of_freedom_are_those_of_openmm(tmp_path, remove_motion, count):
    simulate(tmp_path / "run", openmm.VerletIntegrator(0.00025), remove_motion=remove_motion)
    assert read_trajectory(tmp_path / "run").degrees_of_freedom == count


def test_two_of_the_three_energies_are_enough(tmp_path):
    simulate(tmp_path / "all", openmm.VerletIntegrator(0.00025))
    expected = read_trajectory(tmp_path / "all").energies
    for left_out in ("potentialEnergy", "kineticEnergy"):
        simulate(tmp_path / left_out, openmm.VerletIntegrator(0.00025), totalEnergy=True, **{left_out: False})
        found = read_trajectory(tmp_path / left_out).energies
        np.testing.assert_allclose(found.potential, expected.potential, atol=1e-9)
        np.testing.assert_allclose(found.kinetic, expected.kinetic, atol=1e-9)
    simulate(tmp_path / "one", openmm.VerletIntegrator(0.00025), kineticEnergy=False)
    report = check_trajectory(tmp_path / "one")
    assert verdict(report, "energy drift").value is None
    assert "kineticEnergy and time=True" in report.trajectory.notes[0]


def test_frames_of_a_dcd_get_their_times_and_the_energies_keep_theirs(tmp_path):
    simulate(tmp_path / "run", openmm.VerletIntegrator(0.00025))
    assert read_trajectory(tmp_path / "run").times_fs is None
    read = read_trajectory(tmp_path / "run", frame_interval_fs=1.0)
    assert (read.times_fs[-1], read.energies.times_fs[-1]) == (99.0, pytest.approx(100.0))


def test_half_written_row_is_left_out(tmp_path):
    simulate(tmp_path / "run", openmm.VerletIntegrator(0.00025))
    text = (tmp_path / "run" / "state.csv").read_text()
    (tmp_path / "run" / "state.csv").write_text(text[:-20])
    read = read_trajectory(tmp_path / "run")
    assert len(read.energies.potential) == STEPS - 1
    assert read.notes == ("state.csv ends in a half-written line, which was ignored",)
    (tmp_path / "run" / "state.csv").write_text(text + "a,b\n")
    with pytest.raises(InputError, match="must have 4 numbers in each row"):
        read_trajectory(tmp_path / "run")


def test_what_is_missing_or_there_twice_is_named(tmp_path):
    run = tmp_path / "run"
    simulate(run, openmm.VerletIntegrator(0.00025))
    for name, what in (("frames.dcd", "trajectory"), ("water.pdb", "topology"), ("state.csv", "StateDataReporter")):
        (run / name).rename(tmp_path / name)
        with pytest.raises(InputError, match=rf"has no run\.json .*{what}.* but has none; add it"):
            read_trajectory(run)
        (tmp_path / name).rename(run / name)
        copy = run / f"other-{name}"
        copy.write_bytes((run / name).read_bytes())
        with pytest.raises(InputError, match=rf"{what}.* but has ({name}, other-{name}|other-{name}, {name});"):
            read_trajectory(run)
        if what == "topology":
            assert len(read_trajectory(run, run / "water.pdb")) == STEPS // 4
        copy.unlink()
    (run / "notes.csv").write_text("not,energies\n1,2\n")
    assert len(read_trajectory(run)) == STEPS // 4
