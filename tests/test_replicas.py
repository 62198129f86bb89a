"""Replicas: each is the run that it would be alone, and one that breaks stops alone. Thermostats."""

import json
import shutil

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.calculators.lj import LennardJones
from spring_molecule import ethanol

from ggnn_ff.dynamics import replicas as module
from ggnn_ff.dynamics.guard import Guard
from ggnn_ff.dynamics.replicas import run_replicas
from ggnn_ff.dynamics.run import run_md
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.dynamics.thermostats import (
    CHAIN_LENGTH,
    nose_hoover_energy,
    nose_hoover_half_step,
    ornstein_uhlenbeck_step,
)
from ggnn_ff.errors import InputError
from ggnn_ff.export import load_potential
from ggnn_ff.hosts.ase import GGNNCalculator
from ggnn_ff.stability.report import check_trajectory


@pytest.fixture(scope="session")
def trained(trained_folder):
    return load_potential(trained_folder, dtype="float64")


def run(potential, folder, n_replicas=3, **values):
    settings = make_settings(**{"host": "batched", "log_every": 5, "frame_every": 10, "steps": 40, **values})
    return run_replicas(potential, ethanol(), folder, settings, n_replicas, progress=False)


def energies(folder):
    return np.genfromtxt(folder / "energies.csv", delimiter=",", names=True)


def written(folder):
    return [
        (path / name).read_bytes() for path in sorted(folder.iterdir()) for name in ("energies.csv", "trajectory.xyz")
    ]


def status(folder):
    return json.loads((folder / "run.json").read_text())["status"]


def test_each_replica_is_the_run_in_ase_with_its_seed(tmp_path, trained):
    results = run(trained, tmp_path / "all", seed=7)
    for number, result in enumerate(results):
        settings = make_settings(host="ase", log_every=5, frame_every=10, steps=40, seed=7 + number)
        run_md(trained, ethanol(), tmp_path / f"{number}", settings, progress=False)
        ours, alone = energies(result.folder), energies(tmp_path / f"{number}")
        for name in ("potential_eV", "kinetic_eV", "temperature_K"):
            np.testing.assert_allclose(ours[name], alone[name], rtol=1e-7, atol=1e-7)
        assert status(result.folder) == "complete"
    assert energies(results[0].folder)["kinetic_eV"][0] != energies(results[1].folder)["kinetic_eV"][0]


@pytest.mark.parametrize("ensemble", ["nve", "langevin", "nose-hoover"])
def test_interrupted_replicas_go_on_exactly(tmp_path, trained, ensemble):
    run(trained, tmp_path / "whole", ensemble=ensemble)
    run(trained, tmp_path / "parts", ensemble=ensemble, steps=20)
    run(trained, tmp_path / "parts", ensemble=ensemble)
    assert written(tmp_path / "parts") == written(tmp_path / "whole")


def test_replicas_are_looked_at_between_rows_and_go_on_exactly(tmp_path, trained, monkeypatch):
    looks, judge = [], Guard.judge
    monkeypatch.setattr(Guard, "judge", lambda guard, step, state: looks.append(step) or judge(guard, step, state))
    rarely = {"n_replicas": 1, "log_every": 150, "frame_every": 150}
    run(trained, tmp_path / "whole", steps=300, **rarely)
    assert looks == [0, 100, 150, 250, 300]
    for steps in (150, 300):
        run(trained, tmp_path / "parts", steps=steps, **rarely)
    assert energies(tmp_path / "whole" / "replica-000")["step"].tolist() == [0, 150, 300]
    assert written(tmp_path / "parts") == written(tmp_path / "whole")


def test_replica_that_was_left_behind_catches_up(tmp_path, trained):
    run(trained, tmp_path / "whole")
    run(trained, tmp_path / "parts", steps=20)
    shutil.rmtree(tmp_path / "parts" / "replica-001")
    results = run(trained, tmp_path / "parts")
    for result in results:
        whole = energies(tmp_path / "whole" / result.folder.name)
        np.testing.assert_allclose(energies(result.folder)["total_eV"], whole["total_eV"], rtol=0, atol=1e-8)
        assert status(result.folder) == "complete"


def test_replica_that_breaks_leaves_the_others_running(tmp_path, trained, monkeypatch):
    first_state = module.first_state

    def hot(atoms, settings):
        start = first_state(atoms, settings)
        if settings.seed == 1:
            momenta = start.get_momenta()
            momenta[-1] *= 60.0
            start.set_momenta(momenta)
        return start

    monkeypatch.setattr(module, "first_state", hot)
    results = run(trained, tmp_path)
    assert [result.stopped is None for result in results] == [True, False, True]
    assert "0.5; the last good frame is in last_good.xyz" in results[1].stopped
    assert status(results[1].folder).startswith("stopped: ")
    assert (results[1].folder / "last_good.xyz").exists()
    assert energies(results[2].folder)["step"][-1] == 40


PLACES = {"nan": np.nan, "one place": 1e-3, "far": np.array([13.0, 33695.0, 65.0])}  # of an atom, from another


@pytest.mark.parametrize("what", PLACES)
def test_replica_that_cannot_be_evaluated_stops_alone(tmp_path, trained, monkeypatch, what):
    evaluate = module.Batch.evaluate
    calls = []

    def broken(self, active, x):
        calls.append(active)
        if 1 in active and len(calls) > 8:
            x = x.copy()
            x[active.index(1), 1] = x[active.index(1), 0] + PLACES[what]
        return evaluate(self, active, x)

    monkeypatch.setattr(module.Batch, "evaluate", broken)
    results = run(trained, tmp_path)
    assert [result.stopped is None for result in results] == [True, False, True]
    said = {"nan": "not finite", "one place": "got atoms 0 and 1 at", "far": "must keep atoms together"}
    assert said[what] in results[1].stopped
    assert "by step 5" in results[1].stopped
    assert energies(results[0].folder)["step"][-1] == 40


def test_replicas_of_a_calculator_are_those_of_its_potential(tmp_path, trained):
    calculator = GGNNCalculator(trained)
    for name, used in (("potential", trained), ("calculator", calculator)):
        run(used, tmp_path / name, ensemble="nose-hoover")
    for number in range(3):
        ours, theirs = (energies(tmp_path / name / f"replica-{number:03d}") for name in ("calculator", "potential"))
        np.testing.assert_allclose(ours["potential_eV"], theirs["potential_eV"], rtol=0, atol=1e-7)
    run(calculator, tmp_path / "parts", ensemble="nose-hoover", steps=20)
    run(calculator, tmp_path / "parts", ensemble="nose-hoover")
    assert written(tmp_path / "parts") == written(tmp_path / "calculator")


def test_replica_that_a_calculator_gives_up_stops_alone(tmp_path):
    class Moody(LennardJones):
        asked = 0

        def get_potential_energy(self, atoms):
            self.asked += 1
            if self.asked == 23:  # of the second replica, in the middle of an interval
                raise CalculationFailed("no convergence")
            return super().get_potential_energy(atoms)

    atoms = Atoms("Ar2", [(0, 0, 0), (3.8, 0, 0)])
    settings = make_settings(host="batched", log_every=5, frame_every=10, steps=40, temperature=10.0)
    calculator = Moody(sigma=3.4, epsilon=0.01, rc=20.0)
    results = run_replicas(calculator, atoms, tmp_path, settings, 3, progress=False)
    assert [result.stopped is None for result in results] == [True, False, True]
    assert "no convergence" in results[1].stopped


def test_nose_hoover_run_is_not_judged_as_if_it_conserved_energy(tmp_path, trained):
    (result,) = run(trained, tmp_path, n_replicas=1, ensemble="nose-hoover", steps=200)
    verdicts = {verdict.name: verdict for verdict in check_trajectory(result.folder).verdicts}
    assert verdicts["energy drift"].passed is None
    assert "nose-hoover" in verdicts["energy drift"].explanation


def test_what_does_not_fit_is_refused(tmp_path, trained):
    with pytest.raises(InputError, match="`replicas` must be at least 1"):
        run(trained, tmp_path, n_replicas=0)
    with pytest.raises(InputError, match="must be 'batched'"):
        run(trained, tmp_path, host="ase")
    with pytest.raises(InputError, match="use run_replicas"):
        run_md(trained, ethanol(), tmp_path, make_settings(host="batched"), progress=False)


# Thermostats

THERMAL = 0.03  # eV
MASSES = np.array([[1.0], [16.0]])  # dalton
STIFFNESS = 5.0  # eV/angstrom^2, of anharmonic springs to the origin


def oscillators(timestep, n_steps, n_replicas=200, with_bath=True):
    """Temperatures (K, S) over THERMAL, and the conserved energies (K, S) of independent anharmonic oscillators."""
    random = np.random.default_rng(0)
    x = 0.1 * random.standard_normal((n_replicas, 2, 3))
    p = 2.0 * np.sqrt(MASSES * THERMAL) * random.standard_normal(x.shape)  # too hot
    chain, dt, n = np.zeros((n_replicas, 2, CHAIN_LENGTH)), timestep * units.fs, 6
    temperatures, conserved = [], []
    for _ in range(n_steps):
        if with_bath:
            p = nose_hoover_half_step(p, MASSES, chain, dt, THERMAL, n)
        p = p - 0.5 * dt * STIFFNESS * (x + 10.0 * x**3)
        x = x + dt * p / MASSES
        p = p - 0.5 * dt * STIFFNESS * (x + 10.0 * x**3)
        if with_bath:
            p = nose_hoover_half_step(p, MASSES, chain, dt, THERMAL, n)
        kinetic = 0.5 * (p**2 / MASSES).sum(axis=(1, 2))
        potential = STIFFNESS * (0.5 * x**2 + 2.5 * x**4).sum(axis=(1, 2))
        temperatures.append(2.0 * kinetic / (n * THERMAL))
        conserved.append(kinetic + potential + nose_hoover_energy(chain, dt, THERMAL, n))
    return np.array(temperatures), np.array(conserved)


def test_nose_hoover_has_the_temperature_and_its_fluctuation():
    temperatures = oscillators(0.5, 3000)[0][1000:]
    assert temperatures.mean() == pytest.approx(1.0, abs=0.02)
    assert temperatures.std() == pytest.approx(np.sqrt(2.0 / 6.0), rel=0.05)
    assert oscillators(0.5, 300, with_bath=False)[0].mean() > 1.5  # which the bath has changed


def test_nose_hoover_conserves_the_energy_with_that_of_the_bath():
    """To second order in the time step."""
    errors = [np.ptp(oscillators(timestep, round(100 / timestep))[1], axis=0).mean() for timestep in (0.5, 0.25)]
    assert errors[0] < 0.1 * 6 * THERMAL
    assert 3.4 < errors[0] / errors[1] < 4.6


def test_friction_and_noise_keep_the_canonical_momenta():
    random = np.random.default_rng(0)
    p = np.zeros((20_000, 2, 3))
    for _ in range(60):
        p = ornstein_uhlenbeck_step(p, MASSES, random.standard_normal(p.shape), 0.1, THERMAL)
    np.testing.assert_allclose(p.var(axis=(0, 2)), MASSES[:, 0] * THERMAL, rtol=0.02)
