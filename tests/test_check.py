"""Reading trajectories of every kind, the verdicts on them, and what is written."""

import json
import shutil
import sys
from dataclasses import asdict
from importlib.util import find_spec

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.trajectory import Trajectory as AseTrajectory
from ase.md.verlet import VelocityVerlet
from rich.console import Console

from ggnn_ff.bonds import bonds
from ggnn_ff.dynamics.layout import ENERGY_COLUMNS
from ggnn_ff.errors import InputError
from ggnn_ff.stability import plots
from ggnn_ff.stability.report import check, check_trajectory
from ggnn_ff.stability.show import report_table, write_report
from ggnn_ff.stability.trajectory import Trajectory, read_trajectory
from ggnn_ff.stability.verdict import Verdict
from ggnn_ff.stability.verdicts import DRIFT_THRESHOLD

TIMESTEP_FS = 0.5
STEPS = 400
MASSES = np.array([15.999, 1.008, 1.008])


class Springs(Calculator):
    """Harmonic springs between all pairs of water's atoms; `curl` adds a force that is no gradient."""

    implemented_properties = ("energy", "forces")

    def __init__(self, curl=0.0):
        super().__init__()
        self.curl = curl
        self.rest = molecule("H2O").get_all_distances()

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        vectors = atoms.positions[None] - atoms.positions[:, None]
        lengths = np.linalg.norm(vectors, axis=2) + np.eye(3)
        stretch = (lengths - self.rest) * (1 - np.eye(3))
        forces = 30.0 * np.einsum("ij,ijk->ik", stretch / lengths, vectors)
        arms = atoms.positions - atoms.positions.mean(axis=0)  # about the centroid: no net force
        forces += self.curl * np.cross([1.0, 0.0, 0.0], arms)
        self.results = {"energy": 0.25 * 30.0 * float(np.sum(stretch**2)) - 2000.0, "forces": forces}


def simulate(curl=0.0):
    """Frames of water, one per step, with energy, momenta and time."""
    atoms = molecule("H2O")
    atoms.set_masses(MASSES)
    momenta = np.random.default_rng(0).normal(size=(3, 3)) * np.sqrt(300 * units.kB * MASSES)[:, None]
    atoms.set_momenta(momenta - MASSES[:, None] * momenta.sum(axis=0) / MASSES.sum())
    atoms.calc = Springs(curl)
    frames = []
    dynamics = VelocityVerlet(atoms, TIMESTEP_FS * units.fs)

    def keep():
        frame = atoms.copy()
        step = dynamics.nsteps
        frame.info.update(step=step, time_fs=step * TIMESTEP_FS)
        frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy())
        frames.append(frame)

    dynamics.attach(keep)
    dynamics.run(STEPS)
    return frames


def write_run(folder, frames, ensemble="nve"):
    """A run folder as `ggnn-ff md` leaves it: energies of every step, every fourth frame."""
    folder.mkdir()
    ase.io.write(folder / "trajectory.xyz", frames[::4], format="extxyz")
    rows = [",".join(ENERGY_COLUMNS)]
    for frame in frames:
        potential, kinetic = frame.get_potential_energy(), frame.get_kinetic_energy()
        values = (frame.info["time_fs"], potential, kinetic, potential + kinetic, frame.get_temperature())
        rows.append(",".join([str(frame.info["step"]), *(repr(float(value)) for value in values)]))
    (folder / "energies.csv").write_text("\n".join(rows) + "\n")
    run = {"ensemble": ensemble, "timestep_fs": TIMESTEP_FS, "temperature_K": 300, "host": "ase"}
    (folder / "run.json").write_text(json.dumps({**run, "n_atoms": 3, "potential": "springs"}))
    return folder


@pytest.fixture(scope="module")
def frames():
    return simulate()


@pytest.fixture
def run(frames, tmp_path):
    return write_run(tmp_path / "run", frames)


def verdict(report, name):
    return next(verdict for verdict in report.verdicts if verdict.name == name)


def test_conservative_run_passes_every_verdict(run):
    report = check_trajectory(run)
    assert report.passed
    judged = [v.name for v in report.verdicts if v.passed]
    conserved = ["energy drift", "energy fluctuation / kinetic", "linear momentum", "angular momentum"]
    structure = ["length unit", "largest bond deviation", "bonds broken", "bonds formed", "evaporated fragments"]
    assert judged == [*conserved, "velocities", *structure]
    assert abs(verdict(report, "energy drift").value) < DRIFT_THRESHOLD
    assert 0 < verdict(report, "energy fluctuation / kinetic").value < 0.1


def set_status(run, **values):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **values}))


def test_stopped_run_fails_although_what_it_wrote_is_in_order(run, tmp_path):
    status = "stopped: positions, forces or energy are not finite by step 401"
    set_status(run, status=status, steps=1000, steps_done=400)
    report = check_trajectory(run)
    assert not report.passed
    assert report.summary == "FAILED, 11 of 11 checks judged"
    assert [v.name for v in report.verdicts if v.passed is False] == ["run completed"]
    assert verdict(report, "run completed").explanation == status
    assert not report.trajectory.notes
    write_report(report, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "check.json").read_text())["passed"] is False


def test_unfinished_run_is_noted_and_complete_one_is_not(run):
    set_status(run, status="running", steps=1000, steps_done=380)
    report = check_trajectory(run)
    assert report.passed
    assert report.trajectory.notes == ("the run is not complete: 380 of 1000 steps at last count",)
    set_status(run, status="complete", steps=400, steps_done=400)
    assert not check_trajectory(run).trajectory.notes


def test_summary_says_on_what_it_rests(frames, run, tmp_path):
    assert check_trajectory(run).summary == "passed, 10 of 10 checks judged"
    ase.io.write(tmp_path / "one.xyz", molecule("H2O"))
    one = check_trajectory(tmp_path / "one.xyz")
    assert one.summary == "inconclusive: 1 of 9 checks judged, the energy drift not among them; the verdicts say why"
    assert "one frame has nothing to be compared with" in verdict(one, "largest bond deviation").explanation
    short = check_trajectory(write_run(tmp_path / "short", frames[:9]))
    assert short.summary.startswith("inconclusive: 8 of 9 checks judged")
    folder = write_run(tmp_path / "bath", frames, ensemble="langevin")
    set_status(folder, temperature_K=None)
    bath = check_trajectory(folder)
    assert bath.summary == "passed, 6 of 9 checks judged"


def test_bath_that_is_named_is_judged(frames, tmp_path):
    """With its temperature and degrees of freedom in the run's record, as `ggnn-ff md` writes them."""
    names = ["temperature deviation", "kinetic energy width", "equipartition"]
    folder = write_run(tmp_path / "bath", frames, ensemble="langevin")
    set_status(folder, temperature_K=300.0, degrees_of_freedom=3 * len(frames[0]))
    found = [v.name for v in check_trajectory(folder).verdicts]
    assert found[-3:] == names
    folder = write_run(tmp_path / "nve", frames)
    set_status(folder, temperature_K=300.0, degrees_of_freedom=3 * len(frames[0]))
    report = check_trajectory(folder)
    assert not set(names) & {v.name for v in report.verdicts}
    assert verdict(report, "temperature").error > 0


def test_temperature_of_a_bath_can_be_given(frames, run, tmp_path):
    ase.io.write(tmp_path / "other.xyz", frames)
    mean = check_trajectory(tmp_path / "other.xyz", ensemble="langevin")
    assert "give `temperature`" in verdict(mean, "temperature deviation").explanation
    hot = check_trajectory(tmp_path / "other.xyz", ensemble="langevin", temperature=900.0)
    assert verdict(hot, "temperature deviation").passed is False
    kelvin = verdict(mean, "temperature").value
    assert verdict(hot, "temperature deviation").value == pytest.approx(kelvin - 900.0)
    assert "kinetic energy width" in [v.name for v in hot.verdicts]
    for path in (tmp_path / "other.xyz", run):
        with pytest.raises(InputError, match="taken as NVE; give `ensemble` too: langevin or nose-hoover"):
            check_trajectory(path, temperature=300.0)
    bath = write_run(tmp_path / "bath", frames, ensemble="langevin")
    with pytest.raises(InputError, match="was run at 300 K, got 310 K"):
        check_trajectory(bath, temperature=310.0)


ORIGINS = ("chosen here", "arXiv", "LAMBench", "physical_validation", "Leach", "Scott and Radom")


def without_origin(verdicts):
    """Names of what is judged without a word on where its threshold comes from."""
    judged = [v for v in verdicts if v.passed is not None]
    return {v.name for v in judged if not any(origin in v.explanation for origin in ORIGINS)}


def test_every_verdict_names_the_origin_of_its_threshold(frames, run, tmp_path):
    bath = write_run(tmp_path / "bath", frames, ensemble="langevin")
    set_status(bath, temperature_K=300.0, degrees_of_freedom=3 * len(frames[0]))
    for folder in (run, bath):
        assert without_origin(check_trajectory(folder, reference=run).verdicts) == set()
    broken = [frame.copy() for frame in frames[::4]]
    for frame in broken[40:]:
        frame.positions[2] *= 3.0
    ase.io.write(tmp_path / "broken.xyz", broken, format="extxyz")
    found = check_trajectory(tmp_path / "broken.xyz")
    assert not found.passed
    assert without_origin(found.verdicts) == set()


def test_reference_is_compared_in_angles_vibrations_and_distances(frames, run):
    names = {v.name for v in check_trajectory(run, reference=run).verdicts}
    assert {"dihedral distribution difference", "density of states difference", "distance distribution error"} <= names
    periodic = Trajectory(
        "water", frames[0].numbers, frames[0].get_masses(), np.stack([a.positions for a in frames]),
        np.tile(10.0 * np.eye(3), (len(frames), 1, 1)), np.ones(3, dtype=bool), 500.0 * np.arange(len(frames)),
    )  # fmt: skip
    verdicts = {v.name: v for v in check(periodic, reference=periodic).verdicts}
    assert verdicts["H-O radial distribution error"].value == 0.0
    assert "O diffusion coefficient" in verdicts


def test_metals_may_diffuse_but_ligands_may_not(tmp_path):
    """Neighbours in a metal are not bonds; those of a metal to carbon or chlorine are."""
    metal = bulk("Cu", cubic=True) * (2, 2, 2)
    metal.symbols[::3] = "Ni"
    assert len(bonds(metal.numbers, metal.positions, metal.cell.array, metal.pbc)) == 0
    cluster = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.2]])
    assert len(bonds(cluster.numbers, cluster.positions, cluster.cell.array, cluster.pbc)) == 0
    mixed = Atoms("CuCuCCl", [[0, 0, 0], [0, 0, 2.2], [0, 0, -1.9], [0, 0, 4.3]])
    assert bonds(mixed.numbers, mixed.positions, mixed.cell.array, mixed.pbc).tolist() == [[0, 2], [1, 3]]
    silicon = bulk("Si", cubic=True)
    assert len(bonds(silicon.numbers, silicon.positions, silicon.cell.array, silicon.pbc)) == 16


def test_drift_threshold_decides(run, tmp_path):
    swirled = write_run(tmp_path / "swirled", simulate(curl=0.05))
    drift = verdict(check_trajectory(swirled), "energy drift")
    assert drift.passed is False
    for factor, passed in ((0.5, False), (0.99, None), (2.0, True)):
        found = verdict(check_trajectory(swirled, drift_threshold=factor * abs(drift.value)), "energy drift")
        assert found.passed is passed
        assert "the threshold was given" in found.explanation
    with pytest.raises(InputError, match="`drift_threshold` must be positive"):
        check_trajectory(run, drift_threshold=0.0)


def test_few_femtoseconds_of_right_springs_do_not_fail(frames, tmp_path):
    """Their total energy swings with the vibration, and a part of a swing has a slope beyond any threshold."""
    report = check_trajectory(write_run(tmp_path / "short", frames[:21]))
    drift = verdict(report, "energy drift")
    assert abs(drift.value) > DRIFT_THRESHOLD
    assert drift.passed is None
    assert "run longer" in drift.explanation
    assert report.summary.startswith("inconclusive")


def test_drift_is_also_given_in_kt_per_degree_of_freedom(frames, run):
    report = check_trajectory(run)
    drift, thermal = verdict(report, "energy drift"), verdict(report, "thermal energy drift")
    kinetic = np.mean([frame.get_kinetic_energy() for frame in frames])
    assert thermal.value == pytest.approx(3 * drift.value / (2 * kinetic), rel=1e-6)  # of 3 atoms; 1 meV/ps is 1 eV/ns
    assert thermal.passed is None
    assert f"{thermal.value:.1e} kT/ns/dof" in drift.explanation
    assert "OpenMM" in drift.explanation
    written = {v["name"]: v["value"] for v in report.to_dict()["verdicts"]}
    assert written["thermal energy drift"] == thermal.value


def test_drift_too_uncertain_for_the_threshold_is_not_passed(run):
    drift = verdict(check_trajectory(run), "energy drift")
    between = max(abs(drift.value), 1e-3 * drift.error) * 1.01
    if 2 * drift.error <= between:
        pytest.fail("the error of this run must exceed its drift for this test to mean anything")
    unsure = verdict(check_trajectory(run, drift_threshold=between), "energy drift")
    assert unsure.passed is None
    assert "run longer" in unsure.explanation


def test_langevin_run_gets_no_conservation_verdict(frames, tmp_path):
    report = check_trajectory(write_run(tmp_path / "run", frames, ensemble="langevin"))
    for name in ("energy drift", "linear momentum", "angular momentum"):
        assert verdict(report, name).passed is None
        assert "thermostat" in verdict(report, name).explanation
    assert verdict(report, "largest bond deviation").passed is True


def test_ensemble_can_be_given_for_a_file_that_does_not_say(frames, run, tmp_path):
    ase.io.write(tmp_path / "other.xyz", frames)
    assert "taken as NVE" in verdict(check_trajectory(tmp_path / "other.xyz"), "energy drift").explanation
    report = check_trajectory(tmp_path / "other.xyz", ensemble="langevin")
    assert verdict(report, "energy drift").value is None
    assert report.to_dict()["ensemble"] == "langevin"
    with pytest.raises(InputError, match="was run as 'nve'"):
        check_trajectory(run, ensemble="langevin")
    with pytest.raises(InputError, match="`ensemble` must be"):
        check_trajectory(tmp_path / "other.xyz", ensemble="nvt")


def test_half_written_tails_are_left_out_with_a_note(frames, run):
    whole = read_trajectory(run)
    text = (run / "energies.csv").read_text()
    (run / "energies.csv").write_text(text + "401,200.5,-1999.99999,0.0")  # as if 0.0123 had been cut
    xyz = (run / "trajectory.xyz").read_text()
    first = xyz.splitlines(keepends=True)[:5]
    for cut in ("".join(first)[:-1], "".join(first)[:-9], "".join(first[:3]), first[0], "3"):
        (run / "trajectory.xyz").write_text(xyz + cut)
        trajectory = read_trajectory(run)
        np.testing.assert_array_equal(trajectory.positions, whole.positions)
        np.testing.assert_array_equal(trajectory.energies.potential, whole.energies.potential)
        assert len(trajectory.notes) == 2
    assert not whole.notes
    assert len(whole.energies.potential) == STEPS + 1


def test_broken_bond_fails_and_is_named(frames, tmp_path):
    broken = [frame.copy() for frame in frames]
    for before, frame in zip(frames, broken, strict=True):
        if frame.info["step"] >= 200:
            frame.positions[2] += 0.8 * (frame.positions[2] - frame.positions[0])
        frame.calc = SinglePointCalculator(frame, energy=before.get_potential_energy())
    report = check_trajectory(write_run(tmp_path / "run", broken))
    bond = verdict(report, "largest bond deviation")
    assert bond.passed is False
    assert "O0-H2 is the first" in bond.explanation
    found = report.to_dict()["first_broken_bond"]
    assert (found["bond"], found["frame"], found["time_ps"]) == ("O0-H2", 50, 0.1)
    assert found["length_angstrom"] - found["reference_angstrom"] > 0.5


def test_atoms_of_a_reference_may_be_numbered_otherwise(frames, run, tmp_path):
    plain = check_trajectory(run, reference=write_run(tmp_path / "reference", frames[200:]))
    moved = [Atoms([frame[k] for k in (1, 0, 2)], info=frame.info) for frame in frames[200:]]
    for before, frame in zip(frames[200:], moved, strict=True):
        frame.calc = SinglePointCalculator(frame, energy=before.get_potential_energy())
    other = check_trajectory(run, reference=write_run(tmp_path / "moved", moved))
    assert verdict(other, "largest bond deviation").value < 0.5
    for name in ("largest bond deviation", "distance distribution error"):
        assert verdict(other, name).value == pytest.approx(verdict(plain, name).value, rel=1e-6)


def test_reference_gives_lengths_and_distribution(frames, run, tmp_path):
    reference = write_run(tmp_path / "reference", frames[200:])
    same = check_trajectory(run, reference=run)
    assert verdict(same, "distance distribution error").value == 0
    other = check_trajectory(run, reference=reference)
    assert 0 < verdict(other, "distance distribution error").value < 2
    assert "its mean in the reference" in verdict(other, "largest bond deviation").explanation
    ase.io.write(tmp_path / "ethanol.xyz", molecule("CH3CH2OH"))
    with pytest.raises(InputError, match="`reference` must have the same atoms"):
        check_trajectory(run, reference=tmp_path / "ethanol.xyz")


@pytest.mark.parametrize("name", ["run.traj", "run.xyz", "run.extxyz"])
def test_files_of_ase_carry_energies_and_momenta(frames, tmp_path, name):
    path = tmp_path / name
    if name.endswith(".traj"):
        with AseTrajectory(path, "w") as file:
            for frame in frames:
                file.write(frame)
        trajectory = read_trajectory(path, frame_interval_fs=TIMESTEP_FS)
    else:
        ase.io.write(path, frames, format="extxyz")
        trajectory = read_trajectory(path)
    assert trajectory.positions.shape == (STEPS + 1, 3, 3)
    np.testing.assert_allclose(trajectory.times_fs, np.arange(STEPS + 1) * TIMESTEP_FS)
    np.testing.assert_allclose(trajectory.momenta[-1], frames[-1].get_momenta(), atol=1e-7)
    np.testing.assert_allclose(trajectory.energies.total[-1], frames[-1].get_total_energy(), atol=1e-6)
    np.testing.assert_allclose(trajectory.masses, MASSES, rtol=1e-3)


def test_file_without_times_says_what_is_missing(frames, tmp_path):
    with AseTrajectory(tmp_path / "run.traj", "w") as file:
        for frame in frames[:50]:
            bare = frame.copy()
            bare.info.clear()
            bare.calc = SinglePointCalculator(bare, energy=frame.get_potential_energy())
            file.write(bare)
    report = check_trajectory(tmp_path / "run.traj")
    assert "give the time between frames" in verdict(report, "energy drift").explanation
    assert verdict(report, "linear momentum").passed is True
    write_report(report, tmp_path)


def test_positions_alone_are_checked_for_structure(frames, tmp_path):
    bare = [Atoms(frame.numbers, frame.positions) for frame in frames[:20]]
    ase.io.write(tmp_path / "bare.xyz", bare)
    report = check_trajectory(tmp_path / "bare.xyz")
    assert report.passed
    assert "no total energies" in verdict(report, "energy drift").explanation
    assert "no momenta" in verdict(report, "linear momentum").explanation
    assert verdict(report, "largest bond deviation").passed is True
    write_report(report, tmp_path)


def test_periodic_system_is_not_judged_by_angular_momentum(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.set_momenta(np.ones((4, 3)))
    ase.io.write(tmp_path / "crystal.xyz", [atoms, atoms])
    report = check_trajectory(tmp_path / "crystal.xyz")
    assert "periodic" in verdict(report, "angular momentum").explanation
    assert verdict(report, "linear momentum").passed is True


def test_single_atom_is_checked(tmp_path):
    atoms = Atoms("Ar", positions=[[0.1, 0.2, 0.3]], momenta=[[0.1, 0.7, 0.3]])
    ase.io.write(tmp_path / "atom.xyz", [atoms, atoms])
    report = check_trajectory(tmp_path / "atom.xyz")
    assert report.passed
    assert verdict(report, "angular momentum").value is None
    assert "no bonds" in verdict(report, "largest bond deviation").explanation
    write_report(report, tmp_path)


def mdtraj_trajectory(frames, tmp_path):
    mdtraj = pytest.importorskip("mdtraj")
    ase.io.write(tmp_path / "water.xyz", frames[0])
    topology = mdtraj.Topology()
    residue = topology.add_residue("HOH", topology.add_chain())
    for symbol in "OHH":
        topology.add_atom(symbol, mdtraj.element.Element.getBySymbol(symbol), residue)
    positions = np.stack([frame.positions for frame in frames]) / 10
    times_ps = np.array([frame.info["time_fs"] for frame in frames]) / 1000
    return mdtraj.Trajectory(positions, topology, time=times_ps), positions * 10


needs_hdf5 = pytest.mark.skipif(find_spec("tables") is None, reason="mdtraj reads HDF5 with PyTables")
HDF5_FILE = pytest.param("run.h5", marks=needs_hdf5)


@pytest.mark.parametrize("name", ["run.dcd", "run.xtc", HDF5_FILE])
def test_files_of_mdtraj(frames, tmp_path, name):
    trajectory, positions = mdtraj_trajectory(frames[:40], tmp_path)
    trajectory.save(str(tmp_path / name))
    trajectory[0].save_pdb(str(tmp_path / "water.pdb"))
    tolerance = 6e-3 if name.endswith("xtc") else 1e-5  # angstrom; XTC rounds to 0.001 nm
    for topology in ("water.pdb", "water.xyz"):
        read = read_trajectory(tmp_path / name, tmp_path / topology)
        np.testing.assert_allclose(read.positions, positions, atol=tolerance)
        np.testing.assert_array_equal(read.numbers, [8, 1, 1])
    if name.endswith("dcd"):
        assert read.times_fs is None
        read = read_trajectory(tmp_path / name, tmp_path / "water.pdb", frame_interval_fs=2.0)
        assert read.times_fs[3] == 6.0
    else:
        np.testing.assert_allclose(read.times_fs, np.arange(40) * TIMESTEP_FS, rtol=1e-4)
    report = check_trajectory(tmp_path / name, topology=tmp_path / "water.pdb")
    assert verdict(report, "largest bond deviation").passed is True


def write_hdf5(path, topology, frames, positions):
    """Positions in nm."""
    mdtraj = pytest.importorskip("mdtraj")
    per_ps = 1000 * units.fs / 10  # angstrom per ASE time to nm/ps
    velocities = np.zeros(positions.shape)
    velocities[:, :3] = np.stack([frame.get_velocities() for frame in frames]) * per_ps
    with mdtraj.formats.HDF5TrajectoryFile(str(path), "w") as file:
        file.topology = topology
        file.write(
            positions,
            time=np.array([frame.info["time_fs"] for frame in frames]) / 1000,
            velocities=velocities,
            potentialEnergy=[(frame.get_potential_energy() + 2000) * units.mol / units.kJ for frame in frames],
            kineticEnergy=[frame.get_kinetic_energy() * units.mol / units.kJ for frame in frames],
        )


@needs_hdf5
def test_hdf5_file_with_masses_of_its_own_is_judged_by_its_kinetic_energies(frames, tmp_path):
    """As with repartitioned hydrogen masses, which the file does not have."""
    trajectory, positions = mdtraj_trajectory(frames, tmp_path)
    heavy = [frame.copy() for frame in frames]
    for atoms, frame in zip(heavy, frames, strict=True):
        atoms.calc = frame.calc
        atoms.set_masses([12.0, 3.0, 3.0])
        atoms.set_velocities(frame.get_velocities())
    write_hdf5(tmp_path / "run.h5", trajectory.topology, heavy, positions / 10)
    read = read_trajectory(tmp_path / "run.h5")
    assert read.momenta is None
    assert "not those of its velocities" in read.notes[0]
    np.testing.assert_allclose(read.energies.kinetic[7], heavy[7].get_kinetic_energy(), rtol=1e-4)


@needs_hdf5
def test_sites_that_are_no_atoms_are_left_out(frames, tmp_path):
    mdtraj = pytest.importorskip("mdtraj")
    trajectory, positions = mdtraj_trajectory(frames, tmp_path)
    topology = trajectory.topology.copy()
    topology.add_atom("M", mdtraj.element.virtual, next(topology.residues))
    sites = np.concatenate([positions, positions[:, :1] + 0.1], axis=1)
    write_hdf5(tmp_path / "run.h5", topology, frames, sites / 10)
    report = check_trajectory(tmp_path / "run.h5")
    np.testing.assert_array_equal(report.trajectory.numbers, [8, 1, 1])
    assert report.trajectory.notes == ("1 sites that are no atoms were left out",)
    assert verdict(report, "energy drift").passed is True


def test_periodic_trajectory_without_a_cell_is_refused(tmp_path):
    (tmp_path / "run.xyz").write_text('1\nProperties=species:S:1:pos:R:3 pbc="T T T"\nAr 0 0 0\n')
    with pytest.raises(InputError, match="the cell must have a vector in each periodic direction"):
        read_trajectory(tmp_path / "run.xyz")


@needs_hdf5
def test_hdf5_file_with_energies_and_velocities_is_judged(frames, tmp_path):
    trajectory, positions = mdtraj_trajectory(frames, tmp_path)
    write_hdf5(tmp_path / "run.h5", trajectory.topology, frames, positions / 10)
    read = read_trajectory(tmp_path / "run.h5")
    kinetic = np.sum(read.momenta**2 / read.masses[:, None], axis=(1, 2)) / 2
    np.testing.assert_allclose(read.energies.kinetic, kinetic, rtol=1e-4)
    np.testing.assert_allclose(kinetic[7], frames[7].get_kinetic_energy(), rtol=1e-4)
    report = check_trajectory(tmp_path / "run.h5")
    assert verdict(report, "energy drift").passed is True
    assert verdict(report, "angular momentum").passed is True


def test_dcd_file_that_ends_early_is_read_with_a_note(frames, tmp_path):
    trajectory, positions = mdtraj_trajectory(frames[:40], tmp_path)
    trajectory.save(str(tmp_path / "run.dcd"))
    assert not read_trajectory(tmp_path / "run.dcd", tmp_path / "water.xyz").notes
    data = (tmp_path / "run.dcd").read_bytes()
    (tmp_path / "run.dcd").write_bytes(data[: int(0.61 * len(data))])
    read = read_trajectory(tmp_path / "run.dcd", tmp_path / "water.xyz")
    assert 15 < len(read) < 40
    np.testing.assert_allclose(read.positions, positions[: len(read)], atol=1e-5)
    assert read.notes == (f"run.dcd announces 40 frames and has {len(read)}",)


def test_missing_pytables_is_said(tmp_path, monkeypatch):
    (tmp_path / "run.h5").write_text("anything")
    monkeypatch.setitem(sys.modules, "tables", None)
    with pytest.raises(InputError, match="needs PyTables"):
        read_trajectory(tmp_path / "run.h5")


def test_missing_topology_and_missing_mdtraj_are_said(frames, tmp_path, monkeypatch):
    trajectory, _ = mdtraj_trajectory(frames[:4], tmp_path)
    trajectory.save(str(tmp_path / "run.dcd"))
    with pytest.raises(InputError, match="`topology` is needed"):
        read_trajectory(tmp_path / "run.dcd")
    with pytest.raises(InputError, match="does not exist"):
        read_trajectory(tmp_path / "run.dcd", tmp_path / "none.pdb")
    ase.io.write(tmp_path / "ethanol.xyz", molecule("CH3CH2OH"))
    with pytest.raises(InputError, match="same atoms"):
        read_trajectory(tmp_path / "run.dcd", tmp_path / "ethanol.xyz")
    monkeypatch.setitem(sys.modules, "mdtraj", None)
    with pytest.raises(InputError, match=r"ggnn-ff\[analysis\]"):
        read_trajectory(tmp_path / "run.dcd", tmp_path / "water.xyz")


def spoil_positions(run):
    text = (run / "trajectory.xyz").read_text().splitlines(keepends=True)
    text[7] = text[7].replace(text[7].split()[1], "nan", 1)
    (run / "trajectory.xyz").write_text("".join(text))


def append(run, name, text):
    with open(run / name, "a") as file:
        file.write(text)


DAMAGES = {
    "NaN": (spoil_positions, "positions must be finite, but row 1"),
    "no energies file": (lambda run: (run / "energies.csv").unlink(), "has no energies.csv"),
    "no rows": (
        lambda run: (run / "energies.csv").write_text(",".join(ENERGY_COLUMNS) + "\n"),
        "no whole row",
    ),
    "other columns": (lambda run: (run / "energies.csv").write_text("time,energy\n1,2\n"), "must start with"),
    "words": (lambda run: append(run, "energies.csv", "401,a,b,c,d,e\n"), "6 numbers in each row"),
    "no text": (
        lambda run: (run / "energies.csv").write_bytes((run / "energies.csv").read_bytes() + b"\xff\xfe,1,1,1,1,1\n"),
        "6 numbers in each row",
    ),
    "short row": (lambda run: append(run, "energies.csv", "401,200.5\n"), "6 numbers in each row"),
    "infinity": (
        lambda run: append(run, "energies.csv", "401,200.5,inf,1,inf,300\n"),
        "potential energy must",
    ),
    "two runs": (lambda run: append(run, "energies.csv", "0,0.0,1,1,2,300\n"), "must increase"),
    "other run": (lambda run: (run / "run.json").write_text('{"ensemble": "nve", "n_atoms": 9}'), "9 atoms"),
    "bad run": (lambda run: (run / "run.json").write_text('{"ensemble"'), "must be JSON"),
    "no frames": (lambda run: (run / "trajectory.xyz").write_text("3\n"), "no whole frame"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_run_folder_is_refused(run, damage):
    spoil, message = DAMAGES[damage]
    spoil(run)
    with pytest.raises(InputError, match=message):
        read_trajectory(run)


@pytest.mark.parametrize(("old", "new"), [("time_fs=0.0", "time_fs=abc"), ("momenta:R:3", "momenta:R:1:more:R:2")])
def test_columns_and_times_of_another_kind_are_refused(old, new, tmp_path):
    atoms = molecule("H2O")
    atoms.set_momenta(np.ones((3, 3)))
    later = atoms.copy()
    atoms.info["time_fs"], later.info["time_fs"] = 0.0, 1.0
    ase.io.write(tmp_path / "right.xyz", [atoms, later])
    text = (tmp_path / "right.xyz").read_text()
    assert old in text
    (tmp_path / "wrong.xyz").write_text(text.replace(old, new))
    with pytest.raises(InputError, match="momenta must be three numbers for each atom"):
        read_trajectory(tmp_path / "wrong.xyz")


FOREIGN = ["foreign.xyz", "foreign.traj", "foreign.dcd", "foreign.xtc", "foreign.docx"]


@pytest.mark.parametrize("name", [*FOREIGN, pytest.param("foreign.h5", marks=needs_hdf5)])
def test_foreign_and_empty_files_are_refused(tmp_path, name):
    ase.io.write(tmp_path / "water.xyz", molecule("H2O"))
    (tmp_path / name).write_text("Dear reader,\nthis is a letter.\nYours\n")
    with pytest.raises(InputError, match=r"cannot be read"):
        read_trajectory(tmp_path / name, tmp_path / "water.xyz")
    (tmp_path / name).write_text("")
    with pytest.raises(InputError, match="is empty"):
        read_trajectory(tmp_path / name, tmp_path / "water.xyz")
    with pytest.raises(InputError, match="does not exist"):
        read_trajectory(tmp_path / "nothing.xyz")
    with pytest.raises(InputError, match=r"has no run\.json"):
        read_trajectory(tmp_path)


@pytest.mark.parametrize("name", ["run.traj", HDF5_FILE, "run.xtc"])
def test_truncated_files_are_refused(frames, tmp_path, name):
    if name.endswith(".traj"):
        ase.io.write(tmp_path / name, frames[:40])
    else:
        mdtraj_trajectory(frames[:40], tmp_path)[0].save(str(tmp_path / name))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(0.61 * len(data))])
    with pytest.raises(InputError, match="cannot be read"):
        read_trajectory(tmp_path / name, tmp_path / "water.xyz")


def test_changing_atoms_are_refused(tmp_path):
    ase.io.write(tmp_path / "mixed.xyz", [molecule("H2O"), molecule("CH4")])
    with pytest.raises(InputError, match="frame 1 is CH4 and frame 0 is H2O"):
        read_trajectory(tmp_path / "mixed.xyz")


@pytest.mark.parametrize("interval", [0.0, -1.0, float("nan")])
def test_frame_interval_must_be_positive(run, interval):
    with pytest.raises(InputError, match="`frame_interval_fs` must be"):
        read_trajectory(run / "trajectory.xyz", frame_interval_fs=interval)


def test_report_is_written_as_json_and_picture(run, tmp_path):
    report = check_trajectory(run, reference=run)
    write_report(report, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "check.json").read_text())
    assert written == report.to_dict()
    assert written["passed"] is True
    assert {v["name"]: v["value"] for v in written["verdicts"]}["energy drift"] is not None
    assert (tmp_path / "out" / "check.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["check.html", "check.json", "check.png"]
    assert "passed" in (tmp_path / "out" / "check.html").read_text()


def test_table_shows_every_verdict(run):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(report_table(check_trajectory(run)))
    text = console.export_text()
    for name in ("energy drift", "linear momentum", "angular momentum", "largest bond deviation"):
        assert name in text
    assert "pass" in text
    assert "±" in text


def test_figure_shows_the_digits_that_its_error_leaves():
    assert Verdict("", 0.123456, "", None, None, "", error=0.0234).text == "0.123 ± 0.023"
    assert Verdict("", 1234.5, "", None, None, "", error=321.0).text == "1234 ± 321"
    assert Verdict("", 1.23456e-9, "", None, None, "").text == "1.23e-09"
    assert Verdict("", None, "", None, None, "").text == "-"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_figure_that_is_not_finite_fails_and_can_be_written(value):
    found = Verdict("", value, "", 1.0, True, "over kT", error=value)
    assert (found.value, found.error, found.passed) == (None, None, False)
    assert found.explanation == "not finite: over kT"
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["value"] is None
    assert Verdict("", 0.5, "", 1.0, None, "", error=value).error is None


def test_plots_are_written(frames, run, tmp_path):
    rng = np.random.default_rng(0)
    reference, numbers = rng.normal(size=(30, 3)), np.array([8, 1, 1] * 10)
    report = check_trajectory(run)
    curve = np.array([3.0, np.nan, 1.0])
    figures = {
        "learning": plots.plot_learning_curve(np.arange(3), {"force MAE (meV/Å)": {"train": curve}}),
        "parity": plots.plot_force_parity(reference, reference + 0.05, numbers),
        "energies": plots.plot_energies({"ASE": report.trajectory.energies}, 3),
        "distances": plots.plot_distance_distribution(report.distances, {"ASE": report.distribution}),
    }
    for name, figure in figures.items():
        plots.save_figure(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        for axes in figure.axes:
            assert axes.get_ylabel()
    assert any("MAE 50.0 meV/Å" in text.get_text() for text in figures["parity"].axes[0].texts)
    shown = figures["learning"].axes[0].lines[0].get_xydata()
    np.testing.assert_array_equal(shown, [[0, 3.0], [2, 1.0]])


def test_long_series_keep_their_extremes_in_the_picture(tmp_path):
    times = np.arange(100_000.0)
    values = np.zeros(100_000)
    values[31_415] = 7.0
    x, y = plots._thin(times, values)
    assert len(x) < 5000
    assert (x[y.argmax()], y.max()) == (31_415, 7.0)
    assert np.all(np.diff(x) > 0)


def test_plots_refuse_what_does_not_fit():
    with pytest.raises(InputError, match="one value for each of 3 epochs, got 2"):
        plots.plot_learning_curve(np.arange(3), {"loss": {"train": np.ones(2)}})
    with pytest.raises(InputError, match=r"shape \(N, 3\)"):
        plots.plot_force_parity(np.ones((2, 3)), np.ones((3, 3)), np.ones(3))


def test_missing_matplotlib_is_said_after_the_json_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"ggnn-ff\[analysis\]"):
        write_report(check_trajectory(run), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "check.json").read_text())["passed"] is True
    shutil.rmtree(tmp_path / "out")
