"""Runs of molecular dynamics: physics, files, kills, and what stops them, in both hosts."""

import json
import resource
import shutil
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.constraints import FixAtoms
from killed import md_killed_at, run_to_death
from spring_molecule import Springs, ethanol, set_temperature, springs

from ggnn_ff.dynamics.guard import Guard
from ggnn_ff.dynamics.integrators import ASEIntegrator, OpenMMIntegrator
from ggnn_ff.dynamics.run import UnstableDynamics, run_md
from ggnn_ff.dynamics.run_files import RunFiles
from ggnn_ff.dynamics.settings import MDSettings, make_settings
from ggnn_ff.dynamics.start import degrees_of_freedom, first_state
from ggnn_ff.errors import InputError
from ggnn_ff.export import load_potential
from ggnn_ff.files import lock, unlock
from ggnn_ff.hosts.ase import GGNNCalculator
from ggnn_ff.stability.report import check_trajectory

HOSTS = ["springs", "ase", "openmm"]  # an analytic potential in ASE, a trained one in ASE and in OpenMM


@pytest.fixture(scope="session")
def trained(trained_folder):
    return load_potential(trained_folder, dtype="float64")


@pytest.fixture
def potential_in(trained):
    def get(host):
        return Springs() if host == "springs" else trained

    return get


def settings_for(host, **values) -> MDSettings:
    host = "openmm" if host == "openmm" else "ase"
    return make_settings(**{"host": host, "log_every": 1, "frame_every": 10, **values})


def run(potential, folder, settings, atoms=None):
    return run_md(potential, ethanol() if atoms is None else atoms, folder, settings, progress=False)


def energies(folder):
    return np.genfromtxt(folder / "energies.csv", delimiter=",", names=True)


def frames(folder):
    return ase.io.read(folder / "trajectory.xyz", ":")


def written(folder):
    return (folder / "energies.csv").read_bytes(), (folder / "trajectory.xyz").read_bytes()


def record(folder):
    return json.loads((folder / "run.json").read_text())


def without_duration(folder):
    return {key: value for key, value in record(folder).items() if key != "milliseconds_per_step"}


# Physics


@pytest.mark.parametrize("host", HOSTS)
def test_half_the_time_step_cuts_the_energy_fluctuation_by_four(tmp_path, potential_in, host):
    fluctuation = []
    for timestep, steps in ((1.0, 300), (0.5, 600)):
        folder = tmp_path / str(timestep)
        run(potential_in(host), folder, settings_for(host, temperature=150.0, timestep=timestep, steps=steps))
        total = energies(folder)["total_eV"]
        fluctuation.append(total.std())
        kinetic = energies(folder)["kinetic_eV"].std()
        assert total.std() < 0.1 * kinetic
        thirds = len(total) // 3
        assert abs(total[-thirds:].mean() - total[:thirds].mean()) < 1.5 * total.std()
    assert 3.4 < fluctuation[0] / fluctuation[1] < 4.6


def test_both_hosts_follow_the_same_trajectory(tmp_path, trained):
    for host in ("ase", "openmm"):
        run(trained, tmp_path / host, settings_for(host, steps=100, timestep=0.5))
    first, second = (energies(tmp_path / host) for host in ("ase", "openmm"))
    for name in ("potential_eV", "kinetic_eV", "total_eV"):
        np.testing.assert_allclose(first[name], second[name], rtol=0, atol=1e-6)
    assert first["potential_eV"].std() > 1e-2
    for one, other in zip(frames(tmp_path / "ase"), frames(tmp_path / "openmm"), strict=True):
        np.testing.assert_allclose(one.positions, other.positions, rtol=0, atol=1e-6)
        np.testing.assert_allclose(one.get_momenta(), other.get_momenta(), rtol=0, atol=1e-5)
    assert np.abs(frames(tmp_path / "ase")[-1].positions - ethanol().positions).max() > 0.05


@pytest.mark.parametrize(("host", "steps"), [("springs", 6000), ("openmm", 1500)])
def test_langevin_reaches_the_temperature_of_the_bath(tmp_path, potential_in, host, steps):
    """The first structure is at rest, so that without a bath the mean temperature would be half of the first."""
    settings = settings_for(host, ensemble="langevin", friction=0.05, timestep=1.0, steps=steps, log_every=10)
    run(potential_in(host), tmp_path, settings)
    temperature = energies(tmp_path)["temperature_K"]
    assert temperature[len(temperature) // 10 :].mean() == pytest.approx(300.0, rel=0.12)


def test_first_momenta_have_no_total_momentum_and_the_temperature():
    start = first_state(ethanol(), settings_for("ase", temperature=250.0))
    np.testing.assert_allclose(start.get_momenta().sum(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(start.get_angular_momentum(), 0.0, atol=1e-10)
    again, other = (first_state(ethanol(), settings_for("ase", temperature=250.0, seed=seed)) for seed in (0, 1))
    assert np.array_equal(start.get_momenta(), again.get_momenta())
    assert not np.allclose(start.get_momenta(), other.get_momenta())


def crystal() -> Atoms:
    return Atoms("HHO", positions=[[0, 0, 0], [2, 0, 0], [0, 2, 0]], cell=[4, 4, 4], pbc=True)


def in_line(symbols) -> Atoms:
    return Atoms(symbols, positions=[[1.0, 2.0, 3.0 + 1.2 * i] for i in range(len(Atoms(symbols)))])


STARTS = {"molecule": (ethanol, 21), "crystal": (crystal, 6)}
STARTS |= {symbols: (lambda symbols=symbols: in_line(symbols), n) for symbols, n in {"N": 3, "N2": 1, "CO2": 4}.items()}


@pytest.mark.parametrize("name", STARTS)
def test_first_momenta_have_the_temperature_on_average(name):
    """In what is left when rigid motion is out, each degree of freedom has kT / 2."""
    make, n = STARTS[name]
    kinetic = [first_state(make(), settings_for("ase", seed=seed)).get_kinetic_energy() for seed in range(400)]
    temperatures = 2.0 * np.array(kinetic) / (n * units.kB)
    assert abs(temperatures.mean() - 300.0) < 3.5 * 300.0 * np.sqrt(2.0 / (n * 400))
    assert degrees_of_freedom(make(), settings_for("ase")) == n
    assert degrees_of_freedom(make(), settings_for("ase", ensemble="langevin")) == 3 * len(make())


@pytest.mark.parametrize(("ensemble", "n"), [("nve", 21), ("langevin", 27)])
def test_temperature_counts_what_can_move(tmp_path, ensemble, n):
    run(Springs(), tmp_path, settings_for("ase", ensemble=ensemble, steps=5))
    table = energies(tmp_path)
    np.testing.assert_allclose(table["temperature_K"], 2.0 * table["kinetic_eV"] / (n * units.kB), atol=1e-3)


def test_temperature_counts_rigid_motion_of_the_structure_s_own_momenta():
    atoms, settings = ethanol(), settings_for("ase", temperature=None)
    set_temperature(atoms, 300.0, np.random.default_rng(3))
    assert degrees_of_freedom(first_state(atoms, settings), settings) == 27
    without = first_state(ethanol(), settings_for("ase", temperature=300.0))
    assert degrees_of_freedom(first_state(without, settings), settings) == 21


@pytest.mark.parametrize("symbols", ["N2", "CO2"])
def test_linear_molecules_get_momenta_without_rotation(symbols):
    start = first_state(in_line(symbols), settings_for("ase"))
    np.testing.assert_allclose(start.get_momenta().sum(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(start.get_angular_momentum(), 0.0, atol=1e-10)
    assert start.get_kinetic_energy() > 1e-5


def test_masses_of_the_structure_are_kept():
    heavy = ethanol()
    heavy.set_masses(2.0 * heavy.get_masses())
    assert np.array_equal(first_state(heavy, settings_for("ase")).get_masses(), heavy.get_masses())


@pytest.mark.parametrize("ensemble", ["nve", "langevin"])
def test_a_run_with_other_masses_is_checked_with_them(tmp_path, ensemble):
    heavy = ethanol()
    heavy.set_masses(
        [2.014 if symbol == "H" else mass for symbol, mass in zip(heavy.symbols, heavy.get_masses(), strict=True)]
    )
    settings = settings_for("springs", ensemble=ensemble, temperature=300.0, steps=400, frame_every=2)
    run(Springs(), tmp_path, settings, heavy)
    assert frames(tmp_path)[-1].get_masses() == pytest.approx(heavy.get_masses())
    found = {verdict.name: verdict for verdict in check_trajectory(tmp_path).verdicts}
    assert found["velocities"].passed


@pytest.mark.parametrize("host", HOSTS)
def test_without_a_temperature_the_momenta_of_the_structure_are_used(tmp_path, potential_in, host):
    atoms = ethanol()
    with pytest.raises(InputError, match="must have momenta when no temperature is given"):
        run(potential_in(host), tmp_path, settings_for(host, temperature=None, steps=1), atoms)
    set_temperature(atoms, 300.0, np.random.default_rng(3))
    run(potential_in(host), tmp_path, settings_for(host, temperature=None, steps=1), atoms)
    np.testing.assert_allclose(frames(tmp_path)[0].get_momenta(), atoms.get_momenta(), atol=1e-7)
    assert energies(tmp_path)["kinetic_eV"][0] == pytest.approx(atoms.get_kinetic_energy(), abs=1e-9)


@pytest.mark.parametrize("host", HOSTS)
def test_the_check_passes_on_the_folder_of_a_good_run(tmp_path, potential_in, host):
    run(potential_in(host), tmp_path, settings_for(host, timestep=0.25, steps=1000, log_every=2))
    report = check_trajectory(tmp_path)
    failed = [verdict for verdict in report.verdicts if verdict.passed is False]
    assert not failed
    assert report.trajectory.ensemble == "nve"
    assert any(verdict.passed for verdict in report.verdicts)


# Files


def test_rows_and_frames_are_those_asked_for(tmp_path):
    run(Springs(), tmp_path, settings_for("ase", steps=45, log_every=5, frame_every=20, timestep=0.5))
    table = energies(tmp_path)
    assert table["step"].tolist() == list(range(0, 50, 5))
    assert table["time_fs"].tolist() == [0.5 * step for step in range(0, 50, 5)]
    np.testing.assert_allclose(table["total_eV"], table["potential_eV"] + table["kinetic_eV"], atol=1e-9)
    images = frames(tmp_path)
    assert [image.info["step"] for image in images] == [0, 20, 40]
    for image, row in zip(images, table[::4], strict=False):
        assert image.get_potential_energy() == pytest.approx(row["potential_eV"], abs=1e-7)
        assert springs(image.positions)[0] == pytest.approx(row["potential_eV"], abs=1e-5)
        assert image.get_kinetic_energy() == pytest.approx(row["kinetic_eV"], abs=1e-6)
    assert record(tmp_path)["status"] == "complete"
    assert record(tmp_path)["steps_done"] == 45


@pytest.mark.parametrize("ensemble", ["nve", "langevin"])
@pytest.mark.parametrize("host", ["springs", "openmm"])
def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path, trained_folder, potential_in, host, ensemble):
    settings = settings_for(host, ensemble=ensemble, steps=120, log_every=2, frame_every=6)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(potential_in(host), whole, settings)
    potential = Springs() if host == "springs" else {"name_or_path": trained_folder, "dtype": "float64"}
    for step in (40, 90):
        run_to_death(md_killed_at, step, potential, ethanol(), killed, settings)
        with np.load(killed / "checkpoint.npz") as checkpoint:
            assert 0 < checkpoint["progress"][0] < step
        assert record(killed)["status"] == "running"
    assert written(killed) != written(whole)
    run(potential_in(host), killed, settings)
    assert written(killed) == written(whole)
    assert without_duration(killed) == without_duration(whole)


def test_a_run_interrupted_between_two_rows_ends_like_an_uninterrupted_one(tmp_path, monkeypatch):
    """With alarms on the way that only looks between rows see."""

    def hot(guard, step, temperature):
        return "it is hot" if step in (350, 600, 700) else None

    monkeypatch.setattr(Guard, "_too_hot", hot)
    settings = settings_for("springs", steps=1000, log_every=250, frame_every=500)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(Springs(), whole, settings)
    assert energies(whole)["step"].tolist() == [0, 250, 500, 750, 1000]
    assert record(whole)["alarms"]["temperature"]["looks"] == 3
    checkpoint = RunFiles.checkpoint

    def interrupted(files, step, integrator, force=False):
        checkpoint(files, step, integrator, force=step == 600)
        if step == 700:
            raise KeyError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(RunFiles, "checkpoint", interrupted)
        with pytest.raises(KeyError, match="interrupted"):
            run(Springs(), parts, settings)
    with np.load(parts / "checkpoint.npz") as stored:
        assert stored["progress"][0] == 600
    run(Springs(), parts, settings)
    assert written(parts) == written(whole)
    assert without_duration(parts) == without_duration(whole)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path):
    settings = settings_for("springs", steps=30)
    run(Springs(), tmp_path / "whole", settings)
    run_to_death(md_killed_at, 5, Springs(), ethanol(), tmp_path / "killed", settings)
    assert not (tmp_path / "killed" / "checkpoint.npz").exists()
    run(Springs(), tmp_path / "killed", settings)
    assert written(tmp_path / "killed") == written(tmp_path / "whole")


@pytest.mark.parametrize("host", HOSTS)
def test_a_finished_run_is_left_as_it_is(tmp_path, potential_in, host, monkeypatch):
    settings = settings_for(host, steps=20)
    first = run(potential_in(host), tmp_path, settings)
    before = written(tmp_path), record(tmp_path)
    for kind in (ASEIntegrator, OpenMMIntegrator):
        monkeypatch.setattr(kind, "step", lambda self, n_steps: pytest.fail("took a step"))
    result = run(potential_in(host), tmp_path, settings)
    assert (written(tmp_path), record(tmp_path)) == before
    assert result.milliseconds_per_step == first.milliseconds_per_step > 0


@pytest.mark.parametrize("ensemble", ["nve", "langevin"])
@pytest.mark.parametrize("host", ["springs", "openmm"])
def test_more_steps_extend_a_run(tmp_path, potential_in, host, ensemble):
    for steps in (40, 80):
        run(potential_in(host), tmp_path / "grown", settings_for(host, ensemble=ensemble, steps=steps, log_every=5))
    run(potential_in(host), tmp_path / "whole", settings_for(host, ensemble=ensemble, steps=80, log_every=5))
    assert written(tmp_path / "grown") == written(tmp_path / "whole")
    assert record(tmp_path / "grown")["steps"] == 80


def test_an_extended_run_returns_to_the_rhythm_of_its_rows(tmp_path):
    for steps in (23, 60):
        run(Springs(), tmp_path, settings_for("springs", steps=steps, log_every=5, frame_every=10))
    assert energies(tmp_path)["step"].tolist() == [0, 5, 10, 15, 20, 23, 25, 30, 35, 40, 45, 50, 55, 60]
    assert [image.info["step"] for image in frames(tmp_path)] == [0, 10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestep": 0.25}, "timestep: 0.5 there, 0.25 now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"ensemble": "langevin"}, "ensemble: nve there, langevin now"),
        ({"log_every": 2}, "log_every: 1 there, 2 now"),
    ],
)
def test_another_setting_in_the_same_folder_is_refused(tmp_path, change, message):
    run(Springs(), tmp_path, settings_for("ase", steps=5))
    with pytest.raises(InputError, match=message):
        run(Springs(), tmp_path, settings_for("ase", steps=5, **change))


def test_another_structure_in_the_same_folder_is_refused(tmp_path):
    run(Springs(), tmp_path, settings_for("ase", steps=5))
    moved = ethanol()
    moved.positions[0, 0] += 1e-3
    with pytest.raises(InputError, match="start_sha256"):
        run(Springs(), tmp_path, settings_for("ase", steps=5), moved)


def test_another_potential_in_the_same_folder_is_refused(tmp_path, trained, trained_folder, potential_folder):
    run(trained, tmp_path, settings_for("ase", steps=5))
    for other in (load_potential(trained_folder), load_potential(potential_folder, dtype="float64"), Springs()):
        with pytest.raises(InputError, match="potential_sha256"):
            run(other, tmp_path, settings_for("ase", steps=10))
    shutil.copytree(trained_folder, tmp_path / "elsewhere")
    run(load_potential(tmp_path / "elsewhere", dtype="float64"), tmp_path, settings_for("ase", steps=10))


# What is wrong with the input


def test_rows_must_divide_frames():
    with pytest.raises(InputError, match="`frame_every` must be a multiple of `log_every`, got 15 and 10"):
        make_settings(log_every=10, frame_every=15)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tempreature": 300}, "did you mean 'temperature'"),
        ({"timestep": -1}, "`timestep`.*greater than 0"),
        ({"timestep": float("nan")}, "`timestep`"),
        ({"ensemble": "npt"}, "'nve', 'langevin' or 'nose-hoover'"),
        ({"ensemble": "nose-hoover"}, "give --replicas"),
        ({"ensemble": "nose-hoover", "temperature": 0.0}, "above 0 K"),
        ({"ensemble": "langevin", "temperature": None}, "`temperature` must be given for a langevin run"),
    ],
)
def test_settings_that_do_not_fit_are_named(values, message):
    with pytest.raises(InputError, match=message):
        make_settings(**values)


def test_partial_periodicity_is_refused_in_openmm(tmp_path, trained):
    atoms = ethanol()
    atoms.set_cell([20.0, 20.0, 20.0])
    atoms.pbc = [True, True, False]
    with pytest.raises(InputError, match=r"periodic in no or all directions in OpenMM, got pbc=\[True, True, False\]"):
        run(trained, tmp_path / "run", settings_for("openmm", steps=1), atoms)
    assert not (tmp_path / "run").exists()


def test_a_cell_that_openmm_does_not_take_is_refused_until_it_is_turned(tmp_path, trained):
    atoms = ethanol()
    atoms.set_cell([[0.0, 9.0, 9.0], [9.0, 0.0, 9.0], [9.0, 9.0, 0.0]])
    atoms.pbc = True
    with pytest.raises(InputError, match=r"`atoms.cell` must have OpenMM's reduced form.*standard_form"):
        run(trained, tmp_path / "run", settings_for("openmm", steps=1), atoms)
    assert not (tmp_path / "run").exists()
    atoms.set_cell(atoms.cell.standard_form()[0], scale_atoms=True)
    run(trained, tmp_path / "run", settings_for("openmm", steps=1), atoms)


def test_a_potential_on_another_device_is_refused_in_openmm(tmp_path, trained):
    elsewhere = replace(trained, device=torch.device("cuda"))
    with pytest.raises(InputError, match="must be on the CPU for host 'openmm', got cuda"):
        run(elsewhere, tmp_path / "run", settings_for("openmm", steps=1))


@pytest.mark.parametrize("host", HOSTS)
def test_constraints_are_refused(tmp_path, potential_in, host):
    atoms = ethanol()
    atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match=r"`structure` must have no constraints, .*got FixAtoms"):
        run(potential_in(host), tmp_path / "run", settings_for(host, steps=1), atoms)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("host", HOSTS)
def test_atoms_on_one_place_are_refused(tmp_path, potential_in, host):
    atoms = ethanol()
    atoms.positions[4] = atoms.positions[7] + 0.01
    with pytest.raises(InputError, match="must keep atoms apart, got atoms 4 and 7"):
        run(potential_in(host), tmp_path / "run", settings_for(host, steps=1), atoms)
    assert not (tmp_path / "run").exists()


def test_a_run_that_lost_its_checkpoint_is_not_overwritten(tmp_path):
    settings = settings_for("springs", steps=30)
    run(Springs(), tmp_path, settings)
    before = written(tmp_path)
    (tmp_path / "checkpoint.npz").unlink()
    with pytest.raises(
        InputError, match=r"checkpoint\.npz is missing, though .*run\.json says that 30 steps were made"
    ):
        run(Springs(), tmp_path, settings)
    assert written(tmp_path) == before


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path):
    settings = settings_for("ase", steps=5)
    held = lock(tmp_path)
    with pytest.raises(InputError, match="another process writes to"):
        run(Springs(), tmp_path, settings)
    unlock(held)
    run(Springs(), tmp_path, settings)
    assert record(tmp_path)["status"] == "complete"


@pytest.mark.parametrize("name", ["energies.csv", "trajectory.xyz", "checkpoint.npz"])
def test_files_of_others_are_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match=rf"{name} exists without a run\.json and would be overwritten"):
        run(Springs(), tmp_path, settings_for("ase", steps=1))
    assert (tmp_path / name).read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"settings": {}}', '{"settings": 3}', "\0\0"])
def test_a_foreign_run_json_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json is damaged or of another program"):
        run(Springs(), tmp_path, settings_for("ase", steps=1))
    assert (tmp_path / "run.json").read_text() == text


def test_a_checkpoint_that_openmm_refuses_is_named(tmp_path, trained):
    run(trained, tmp_path, settings_for("openmm", steps=5))
    with np.load(tmp_path / "checkpoint.npz") as stored:
        state = dict(stored)
    state["checkpoint"] = np.frombuffer(b"of another OpenMM" * 10, dtype=np.uint8)
    np.savez(tmp_path / "checkpoint.npz", **state)
    with pytest.raises(InputError, match=r"checkpoint\.npz is damaged or of another program"):
        run(trained, tmp_path, settings_for("openmm", steps=10))


def test_openmm_needs_a_potential_of_this_package(tmp_path):
    with pytest.raises(InputError, match="`host` must be 'ase' for an ASE calculator"):
        run(Springs(), tmp_path / "run", settings_for("openmm", steps=1))


@pytest.mark.parametrize("host", ["ase", "openmm"])
def test_an_unknown_element_is_named(tmp_path, trained, host):
    with pytest.raises(InputError, match="holds N, but this potential was trained on H, C, O"):
        run(trained, tmp_path / "run", settings_for(host, steps=1), Atoms("NH", [[0, 0, 0], [0, 0, 1.0]]))
    assert not (tmp_path / "run").exists()


# What stops a run


class Snapping(Springs):
    """Lets all atoms fly."""

    def calculate(self, *arguments, **keywords):
        super().calculate(*arguments, **keywords)
        self.results["forces"] *= 0.0


class Failing(Springs):
    """Answers NaN from the given call on."""

    def __init__(self, name, first):
        super().__init__()
        self.name_of_result, self.first, self.calls = name, first, 0

    def calculate(self, *arguments, **keywords):
        super().calculate(*arguments, **keywords)
        self.calls += 1
        if self.calls >= self.first:
            self.results[self.name_of_result] = self.results[self.name_of_result] * np.nan


def test_a_broken_bond_stops_the_run(tmp_path):
    atoms = ethanol()
    away = atoms.positions[3] - atoms.positions[2]
    momenta = np.zeros((9, 3))
    momenta[3] = 0.5 * away
    atoms.set_momenta(momenta)
    settings = settings_for("ase", temperature=None, steps=1000, log_every=5)
    with pytest.raises(UnstableDynamics, match=r"the bond O2-H3 deviates by 0\.\d+ angstrom .*last_good\.xyz"):
        run(Snapping(), tmp_path, settings, atoms)
    good = ase.io.read(tmp_path / "last_good.xyz")
    stretch = good.get_distance(2, 3) - np.linalg.norm(away)
    assert 0.3 < stretch <= 0.5
    assert record(tmp_path)["status"].startswith("stopped: the bond O2-H3")
    table = energies(tmp_path)
    assert table["step"][-1] == record(tmp_path)["steps_done"] == frames(tmp_path)[-1].info["step"]
    assert good.get_potential_energy() == pytest.approx(table["potential_eV"][-2], abs=1e-7)
    report = check_trajectory(tmp_path)
    failed = {verdict.name: verdict.explanation for verdict in report.verdicts if verdict.passed is False}
    assert failed["run completed"] == record(tmp_path)["status"]
    assert failed["largest bond deviation"].startswith("O2-H3 is the first to deviate")
    with pytest.raises(UnstableDynamics, match="the bond O2-H3"):  # and again
        run(Snapping(), tmp_path, settings, atoms)


def test_a_broken_bond_stops_a_run_with_few_rows_as_soon(tmp_path):
    atoms = ethanol()
    momenta = np.zeros((9, 3))
    momenta[3] = 0.02 * (atoms.positions[3] - atoms.positions[2])
    atoms.set_momenta(momenta)
    for name, every in (("often", 100), ("seldom", 1000)):
        settings = settings_for("ase", temperature=None, steps=5000, log_every=every, frame_every=1000)
        with pytest.raises(UnstableDynamics, match="the bond O2-H3"):
            run(Snapping(), tmp_path / name, settings, atoms)
    often, seldom = energies(tmp_path / "often"), energies(tmp_path / "seldom")
    last = int(often["step"][-1])
    assert 200 <= last < 1000
    assert seldom["step"].tolist() == [0, last]
    assert seldom[-1] == often[-1]
    assert record(tmp_path / "seldom")["steps_done"] == last
    assert ase.io.read(tmp_path / "seldom" / "last_good.xyz").info["step"] == last - 100


@pytest.mark.parametrize("name", ["energy", "forces"])
@pytest.mark.parametrize("first", [1, 30])
def test_numbers_that_blow_up_stop_the_run(tmp_path, name, first):
    with pytest.raises(UnstableDynamics, match="not finite"):
        run(Failing(name, first), tmp_path, settings_for("ase", steps=100, log_every=5))
    good = ase.io.read(tmp_path / "last_good.xyz")
    assert np.isfinite(good.positions).all()
    assert np.isfinite(good.get_momenta()).all()
    assert "are not finite" in record(tmp_path)["status"]
    assert b"nan" not in b"".join(written(tmp_path))
    if (name, first) == ("energy", 1):
        with pytest.raises(InputError, match=r"has no frame to check: the run was stopped: .* not finite"):
            check_trajectory(tmp_path)
    else:
        report = check_trajectory(tmp_path)
        assert [verdict.name for verdict in report.verdicts if verdict.passed is False] == ["run completed"]
        assert report.summary.startswith("FAILED")


@pytest.mark.parametrize("backend", ["torch", "python"])
def test_numbers_that_blow_up_stop_openmm(tmp_path, trained, backend, monkeypatch):
    step = OpenMMIntegrator.step
    taken = []

    def spoiled(self, n_steps):
        taken.append(n_steps)
        if len(taken) == 3:
            self.context.setVelocities(np.full((9, 3), np.nan))
        step(self, n_steps)

    monkeypatch.setattr(OpenMMIntegrator, "step", spoiled)
    with pytest.raises(UnstableDynamics, match="not finite by step 15; the last good frame"):
        run(trained, tmp_path, settings_for("openmm", backend=backend, steps=100, log_every=5))
    assert np.isfinite(ase.io.read(tmp_path / "last_good.xyz").positions).all()
    assert record(tmp_path)["status"].startswith("stopped:")


def test_numbers_that_blow_up_stop_a_trained_potential_in_ase(tmp_path, trained, monkeypatch):
    """Its calculator refuses positions that are not finite, so the run has to stop one step before."""
    calculate, calls = GGNNCalculator.calculate, []

    def spoiled(calculator, *arguments, **keywords):
        calculate(calculator, *arguments, **keywords)
        calls.append(1)
        if len(calls) > 12:
            calculator.results["forces"] = calculator.results["forces"] * np.nan

    monkeypatch.setattr(GGNNCalculator, "calculate", spoiled)
    with pytest.raises(UnstableDynamics, match="not finite by step 15"):
        run(trained, tmp_path, settings_for("ase", steps=100, log_every=5))
    assert np.isfinite(ase.io.read(tmp_path / "last_good.xyz").positions).all()


def test_atoms_that_fall_onto_each_other_stop_a_run(tmp_path, trained, monkeypatch):
    step, taken = ASEIntegrator.step, []

    def spoiled(self, n_steps):
        taken.append(n_steps)
        if len(taken) == 3:
            self.atoms.positions[1] = self.atoms.positions[0]
        step(self, n_steps)

    monkeypatch.setattr(ASEIntegrator, "step", spoiled)
    with pytest.raises(UnstableDynamics, match=r"broke by step 15: `positions` must keep atoms apart.*last_good\.xyz"):
        run(trained, tmp_path, settings_for("ase", steps=100, log_every=5))
    assert record(tmp_path)["status"].startswith("stopped: the structure broke by step 15")
    assert record(tmp_path)["steps_done"] == 10
    assert ase.io.read(tmp_path / "last_good.xyz").get_distance(0, 1) > 0.5


@pytest.mark.parametrize("backend", ["torch", "python"])
def test_atoms_that_fly_off_stop_openmm(tmp_path, trained, backend, monkeypatch):
    """Vesin's neighbour list would end the process."""
    step, taken = OpenMMIntegrator.step, []

    def spoiled(self, n_steps):
        taken.append(n_steps)
        if len(taken) == 3:
            positions = self.read()[0] / 10.0
            positions[1, 0] += 1e6
            self.context.setPositions(positions)
        step(self, n_steps)

    monkeypatch.setattr(OpenMMIntegrator, "step", spoiled)
    with pytest.raises(UnstableDynamics, match=r"broke by step 15: `positions` must keep atoms together.*last_good"):
        run(trained, tmp_path, settings_for("openmm", backend=backend, steps=100, log_every=5))
    assert ase.io.read(tmp_path / "last_good.xyz").positions.max() < 100.0


def test_a_potential_of_nan_stops_ase(tmp_path, trained_folder):
    spoiled = load_potential(trained_folder)
    spoiled.module.potential.scale.fill_(float("nan"))
    with pytest.raises(
        UnstableDynamics, match="of the first structure are not finite; its positions must be in angstrom"
    ):
        run(spoiled, tmp_path, settings_for("ase", steps=10))


# Damaged files and full disks


@pytest.mark.parametrize("kept", [0, 100, -30])
def test_a_truncated_checkpoint_is_named(tmp_path, kept):
    run(Springs(), tmp_path, settings_for("ase", steps=10))
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:kept])
    before = written(tmp_path)
    with pytest.raises(InputError, match=r"checkpoint\.npz is damaged .*delete the folder"):
        run(Springs(), tmp_path, settings_for("ase", steps=20))
    assert written(tmp_path) == before


@pytest.mark.parametrize("name", ["energies.csv", "trajectory.xyz"])
def test_files_shorter_than_at_the_checkpoint_are_refused(tmp_path, name):
    run(Springs(), tmp_path, settings_for("ase", steps=10))
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{name} must hold what was written"):
        run(Springs(), tmp_path, settings_for("ase", steps=20))
    path.unlink()
    with pytest.raises(InputError, match="is shorter or missing"):
        run(Springs(), tmp_path, settings_for("ase", steps=20))


@pytest.mark.parametrize("name", ["energies.csv", "trajectory.xyz"])
def test_a_full_disk_names_the_file_and_the_run_goes_on_when_there_is_room(tmp_path, monkeypatch, name):
    frame_every = 50 if name == "energies.csv" else 1
    settings = settings_for("ase", steps=400, frame_every=frame_every)
    run(Springs(), tmp_path / "whole", settings)
    full = tmp_path / "full"
    checkpoint = RunFiles.checkpoint

    def always_at_hundreds(files, step, integrator, force=False):
        checkpoint(files, step, integrator, force=step % 100 == 0)

    monkeypatch.setattr(RunFiles, "checkpoint", always_at_hundreds)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = {"energies.csv": 20_000, "trajectory.xyz": 300_000}[name]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(OSError, match=rf"could not write .*{name}: .*run again to go on"):
            run(Springs(), full, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with np.load(full / "checkpoint.npz") as stored:
        step, *sizes = stored["progress"].tolist()
    assert step >= 100
    for first, second, size in zip(written(full), written(tmp_path / "whole"), sizes, strict=True):
        assert len(first) >= size
        assert first[:size] == second[:size]
    run(Springs(), full, settings)
    assert written(full) == written(tmp_path / "whole")
