"""Guarding a run: what raises each alarm and what does not, what is kept, and the description of the training data."""

import hashlib
import json
import re
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from conftest import shared_data
from spring_molecule import Springs, ethanol, labelled_frames, set_temperature, springs

from ggnn_ff import GGNNCalculator, domain, guarded, load_potential
from ggnn_ff.contract import parse_contract
from ggnn_ff.data.readers import read_frames
from ggnn_ff.domain import DomainCheck, describe_atoms, describe_frames
from ggnn_ff.dynamics import replicas as replicas_module
from ggnn_ff.dynamics.guard import DOMAIN_EVERY, FRAMES_KEPT, Guard
from ggnn_ff.dynamics.replicas import run_replicas
from ggnn_ff.dynamics.run import run_md
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.errors import InputError, UnstableDynamics
from ggnn_ff.export import export_torchscript, shipped_potentials, write_domain
from ggnn_ff.graph import from_atoms


@pytest.fixture(scope="module")
def frames():
    return labelled_frames(120)


@pytest.fixture(scope="module")
def described(frames):
    return describe_frames(frames.select(np.arange(90)), frames.select(np.arange(90, 120)), 5.0)


@pytest.fixture
def potential(potential_folder, described):
    """Of random weights, with a contract that describes ethanol held by springs."""
    loaded = load_potential(potential_folder)
    return replace(loaded, contract=loaded.contract.model_copy(update={"domain": described}))


def look(described, atoms):
    return DomainCheck(described, atoms.numbers).look(from_atoms(atoms))


def novelty(described, atoms):
    return look(described, atoms).novelty


def turned(atoms, random):
    """Turned, reflected or not, and moved."""
    other = atoms.copy()
    turn = np.linalg.qr(random.standard_normal((3, 3)))[0]
    other.set_cell(atoms.cell.array @ turn)
    other.positions = atoms.positions @ turn + random.standard_normal(3)
    return other


def water_box() -> Atoms:
    """Eight molecules in a triclinic box below twice the cutoff."""
    random = np.random.default_rng(4)
    box = Atoms(cell=[[6.3, 0.0, 0.0], [0.6, 6.2, 0.0], [-0.5, 0.4, 6.4]], pbc=True)
    for corner in np.ndindex(2, 2, 2):
        one = molecule("H2O")
        one.rotate(random.uniform(0, 360), random.normal(size=3))
        one.positions += np.array(corner) / 2 @ box.cell.array
        box += one
    return box


def many(atoms, n_frames, width):
    """Shaken copies of a structure, as labelled frames."""
    random, n = np.random.default_rng(0), len(atoms)
    return replace(
        labelled_frames(1),
        numbers=np.tile(atoms.numbers, n_frames).astype(np.int64),
        positions=np.concatenate([atoms.positions + width * random.standard_normal((n, 3)) for _ in range(n_frames)]),
        forces=np.zeros((n * n_frames, 3)),
        n_atoms=np.full(n_frames, n),
        energy=np.zeros(n_frames),
        cell=np.tile(atoms.cell.array, (n_frames, 1, 1)),
        pbc=np.tile(atoms.pbc, (n_frames, 1)),
    )


# The description of the training data


def test_novelty_knows_no_orientation_place_or_order(described, frames):
    random = np.random.default_rng(1)
    atoms = frames.atoms(3)
    before = novelty(described, atoms)
    for _ in range(3):
        np.testing.assert_allclose(novelty(described, turned(atoms, random)), before, rtol=1e-8)
    order = random.permutation(len(atoms))
    np.testing.assert_allclose(novelty(described, atoms[order]), before[order], rtol=1e-8)
    assert np.ptp(before) > 0.1


def test_novelty_knows_no_cell_that_an_atom_is_in():
    box, random = water_box(), np.random.default_rng(2)
    shaken = many(box, 12, 0.05)
    described = describe_frames(shaken.select(np.arange(10)), shaken.select(np.arange(10, 12)), 5.0)
    atoms = shaken.atoms(11)
    before = novelty(described, atoms)
    moved = turned(atoms, random)
    moved.positions += random.integers(-2, 3, size=(len(atoms), 3)) @ moved.cell.array
    np.testing.assert_allclose(novelty(described, moved), before, rtol=1e-7)
    moved.wrap()
    np.testing.assert_allclose(novelty(described, moved), before, rtol=1e-7)
    alone = atoms.copy()
    alone.pbc = False
    assert np.abs(novelty(described, alone) - before).max() > 1.0


@pytest.mark.parametrize("cutoff", [3.0, 5.0])
def test_surroundings_fade_smoothly_at_the_cutoff(cutoff):
    def numbers(length):
        vectors = np.array([[1.0, 0.0, 0.0], [0.0, 0.6 * length, 0.8 * length]])
        near = np.array([1.0, length]) < cutoff
        lengths, zeros = np.array([1.0, length])[near], np.zeros(near.sum(), dtype=np.int64)
        return describe_atoms(vectors[near], lengths, zeros, zeros, 1, 1, cutoff)

    beyond = numbers(cutoff + 0.1)
    assert np.abs(numbers(cutoff - 1e-3) - beyond).max() < 1e-8  # as the third power
    assert np.abs(numbers(cutoff - 0.5) - beyond).max() > 1e-4


def test_frames_like_the_training_frames_are_inside(described):
    for atoms in map(labelled_frames(30, seed=5).atoms, range(30)):
        findings = look(described, atoms)
        assert findings.novelty.max() < described.threshold
        assert findings.distance is None


def test_novelty_counts_standard_deviations(described, frames):
    """The mean square over the training frames is one, less what directions that do not vary do not add."""
    check = DomainCheck(described, frames.numbers[:9])
    squares = np.array([check.look(from_atoms(frames.atoms(k))).novelty ** 2 for k in range(90)])
    for number in (1, 6, 8):
        assert 0.2 < squares[:, frames.numbers[:9] == number].mean() <= 1.0


@pytest.mark.parametrize(("length", "outside"), [(1.2, True), (1.5, False), (1.9, True)])
def test_distances_that_were_not_seen_are_outside(described, length, outside):
    strange = look(described, Atoms("C2", [[0.0, 0.0, 0.0], [0.0, 0.0, length]])).distance
    assert (strange is not None) == outside
    if strange is not None:
        assert strange.atoms == (0, 1)
        assert strange.length == pytest.approx(length)
        assert strange.seen == described.distances["C-C"]


def test_pairs_of_elements_that_were_not_seen_are_outside(described):
    atoms = ethanol() + Atoms("O", [[0.0, 0.0, 4.0]])
    strange = look(described, atoms).distance
    assert strange is not None
    assert strange.seen is None
    assert {atoms.symbols[atom] for atom in strange.atoms} == {"O"}


def test_angles_that_were_not_seen_are_novel(described):
    atoms = ethanol()
    assert novelty(described, atoms).max() < described.threshold
    atoms.set_angle(0, 1, 2, 80.0, indices=[2, 3])
    assert novelty(described, atoms).max() > 2.0 * described.threshold


def test_the_threshold_is_that_of_the_frames_held_out(frames, described):
    train = frames.select(np.arange(90))
    hotter = describe_frames(train, labelled_frames(12, seed=3, temperature=1500.0), 5.0)
    assert hotter.threshold > 1.2 * described.threshold
    assert hotter.surroundings == described.surroundings
    assert hotter.distances == described.distances
    assert (hotter.n_frames, hotter.n_held_out) == (90, 12)


def test_large_systems_take_turns(described, frames, monkeypatch):
    atoms = frames.atoms(0)
    whole = novelty(described, atoms)
    monkeypatch.setattr(domain, "MOST_JUDGED", 4)
    check, seen = DomainCheck(described, atoms.numbers), np.full(9, np.nan)
    for turn in (0, 1, 2):  # as few as can be
        findings = check.look(from_atoms(atoms), turn)
        assert len(findings.novelty) <= 4
        np.testing.assert_allclose(findings.novelty, whole[findings.judged], rtol=1e-12)
        seen[findings.judged] = findings.novelty
    np.testing.assert_allclose(seen, whole, rtol=1e-12)


def test_of_many_frames_some_are_described(frames, monkeypatch):
    monkeypatch.setattr(domain, "MOST_DESCRIBED", 300)
    fewer = describe_frames(frames, frames, 5.0)
    assert 300 / 9 * 0.5 < fewer.n_frames <= 300 / 9 + 1


def test_long_cutoffs_are_described_to_five_angstrom(frames):
    assert describe_frames(frames.select(np.arange(5)), frames.select(np.arange(5, 6)), 8.0).cutoff == 5.0


# In the contract


def test_contract_without_a_description_is_what_it_was():
    for name, folder in shipped_potentials().items():
        later = {"certification", "domain", "started_from"}
        contract = load_potential(name).contract.model_copy(update=dict.fromkeys(later))
        text = contract.model_dump_json(indent=1, exclude=later)
        assert contract.to_json() == text
        assert contract.identity == hashlib.sha256(text.encode()).hexdigest()
        assert "domain" not in json.loads(contract.to_json())
        assert (folder / "potential.json").exists()


def test_a_description_does_not_change_the_identity(potential):
    assert potential.contract.identity == potential.contract.model_copy(update={"domain": None}).identity


def test_description_is_written_into_both_forms(tmp_path, potential_folder, described):
    folder = tmp_path / "potential"
    folder.mkdir()
    for name in ("weights.safetensors", "potential.json"):
        (folder / name).write_bytes((potential_folder / name).read_bytes())
    export_torchscript(folder, folder / "potential.pt")
    assert [path.name for path in write_domain(folder, described)] == ["potential.json", "potential.pt"]
    for form in (folder, folder / "potential.pt"):
        assert load_potential(form).contract.domain == described
    assert (folder / "potential.json").stat().st_size < 100_000


@pytest.mark.parametrize("what", ["elements", "pair", "row", "number", "functions", "descriptor"])
def test_description_that_does_not_fit_is_refused(potential, what):
    content = json.loads(potential.contract.to_json())
    surroundings = content["domain"]["surroundings"]
    if what == "elements":
        del surroundings["O"]
    elif what == "pair":
        content["domain"]["distances"]["H-S"] = [1.0, 2.0]
    elif what == "functions":
        surroundings["O"] = {"mean": "0", "whitening": ["1"]}
    elif what == "row":
        surroundings["O"]["whitening"].pop()
    elif what == "number":
        surroundings["O"]["whitening"][3] = "1 2 nan 3"
    else:
        content["domain"]["descriptor"] = "of another version"
    with pytest.raises(InputError, match="`domain"):
        parse_contract(json.dumps(content), "it")


# Alarms


def moving(temperature=300.0, seed=0):
    atoms = ethanol()
    set_temperature(atoms, temperature, np.random.default_rng(seed))
    return atoms


def verlet(atoms):
    return VelocityVerlet(atoms, 0.5 * units.fs)


def states(n_looks, every=10):
    """Positions, momenta and energies of an ordinary run."""
    atoms, found = moving(), []
    run = verlet(atoms)
    run.run(200)
    for _ in range(n_looks):
        run.run(every)
        found.append((atoms.positions.copy(), atoms.get_momenta(), atoms.get_potential_energy()))
    return found


@pytest.fixture(scope="module")
def ordinary():
    return states(60)


def make_guard(folder, described=None, **values):
    return Guard(ethanol(), folder, 21, domain=described, **values)


def feed(guard, given, first=0):
    """Judges states as if there were 10 steps between them; the first reason to stop."""
    for number, one in enumerate(given, start=first):
        reason = guard.judge(10 * number, guard.state(10 * number, *one))
        if reason is not None:
            return reason
    return None


def stretched(positions, momenta, energy):
    atoms = Atoms(ethanol().symbols, positions)
    atoms.set_distance(2, 3, 1.6, fix=0)
    return atoms.positions, momenta, energy


def squeezed(positions, momenta, energy):
    atoms = Atoms(ethanol().symbols, positions)
    atoms.set_distance(2, 3, 0.7, fix=0)
    return atoms.positions, momenta, energy


def bent(positions, momenta, energy):
    atoms = Atoms(ethanol().symbols, positions)
    atoms.set_angle(0, 1, 2, 80.0, indices=[2, 3])
    return atoms.positions, momenta, energy


def hot(positions, momenta, energy):
    return positions, 2.5 * momenta, energy - 5.25 * 0.5 * (momenta**2 / ethanol().get_masses()[:, None]).sum()


def jumped(positions, momenta, energy):
    return positions, momenta, energy + 0.1


STRANGE = {
    "bond": (stretched, "the bond O2-H3 deviates by 0.6"),
    "temperature": (hot, "of the last 20 looks is"),
    "energy": (jumped, r"total energy has changed by 0\."),
    "distance": (squeezed, r"O2 and H3 are 0\.70 angstrom apart at step 400; such atoms are 0\.\d+ to \d"),
    "novelty": (bent, r"unlike any in the training data \(novelty"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_each_alarm_is_raised_by_its_case(tmp_path, ordinary, described, kind):
    change, text = STRANGE[kind]
    guard = make_guard(tmp_path, described, on_alarm="stop")
    assert feed(guard, ordinary[:40]) is None
    assert not guard.alarms
    assert not list(tmp_path.iterdir())
    reason = guard.judge(400, guard.state(400, *change(*ordinary[40])))
    assert reason is not None
    assert "last_good.xyz" in reason
    assert guard.alarms[kind].step == 400
    assert re.search(text, guard.alarms[kind].text)
    kept = ase.io.read(tmp_path / f"alarm-{kind}.xyz", ":")
    assert [frame.info["step"] for frame in kept] == list(range(210, 401, 10))
    np.testing.assert_allclose(kept[-1].positions, change(*ordinary[40])[0], atol=1e-7)
    guard.write_last_good()
    good = ase.io.read(tmp_path / "last_good.xyz")
    np.testing.assert_allclose(good.positions, ordinary[39][0], atol=1e-7)
    np.testing.assert_allclose(good.get_momenta(), ordinary[39][1], atol=1e-7)
    assert good.get_potential_energy() == pytest.approx(ordinary[39][2], abs=1e-7)


@pytest.mark.parametrize("bath", [None, 300.0])
def test_heat_in_a_bath_is_compared_with_the_bath(tmp_path, ordinary, bath):
    guard = make_guard(tmp_path, bath=bath, on_alarm="stop")
    reason = feed(guard, [hot(*hot(*ordinary[0]))])
    assert (reason is not None) == (bath is not None)


@pytest.mark.parametrize("n", [3, 21, 3000])
def test_a_canonical_ensemble_is_not_too_hot(tmp_path, n):
    """Nor is the limit far from the hottest of so many, whatever the size of the system."""
    guard = Guard(ethanol(), tmp_path, n)
    hottest = np.random.default_rng(0).chisquare(n, size=500_000).max() / n
    assert 1.1 < (guard.hottest - 1.0) / (hottest - 1.0) < 2.0


def test_soft_alarms_are_told_once_and_counted(tmp_path, ordinary, capsys):
    guard = make_guard(tmp_path)
    assert feed(guard, ordinary[:30]) is None
    assert feed(guard, [hot(*one) for one in ordinary[30:35]], first=30) is None
    assert feed(guard, ordinary[35:], first=35) is None
    assert 2 <= guard.alarms["temperature"].looks <= 5  # what is usual moves with them
    told = capsys.readouterr().err
    assert told.count("the temperature is") == 1
    assert f"{tmp_path}: the temperature is" in told
    assert guard.last_good.info["step"] == 590


@pytest.mark.parametrize("kind", [kind for kind in STRANGE if kind != "bond"])
def test_a_frame_of_an_alarm_is_not_the_last_good_one(tmp_path, ordinary, described, kind):
    """Also where the run goes on; the next one in order is."""
    guard = make_guard(tmp_path, described)
    feed(guard, ordinary[:40])
    assert guard.judge(400, guard.state(400, *STRANGE[kind][0](*ordinary[40]))) is None
    assert guard.alarms[kind].looks == 1
    assert guard.last_good.info["step"] == 390
    newest = guard.state(410, *ordinary[41])
    np.testing.assert_array_equal(newest.positions, ordinary[41][0])
    np.testing.assert_array_equal(newest.get_masses(), ethanol().get_masses())
    guard.write_last_good()
    assert ase.io.read(tmp_path / "last_good.xyz").info["step"] == 390
    feed(guard, ordinary[41:46], first=41)  # which are not compared with the training data
    assert guard.last_good.info["step"] == (390 if kind in ("distance", "novelty") else 450)
    feed(guard, ordinary[46:60], first=46)
    assert guard.last_good.info["step"] == 590


def test_without_a_good_frame_the_first_structure_is_kept(tmp_path, ordinary, described):
    guard = make_guard(tmp_path, described)
    guard.judge(0, guard.state(0, *bent(*ordinary[0])))
    guard.write_last_good()
    np.testing.assert_allclose(ase.io.read(tmp_path / "last_good.xyz").positions, ethanol().positions, atol=1e-7)


def test_training_data_is_compared_every_hundred_steps(tmp_path, ordinary, described):
    guard = make_guard(tmp_path, described)
    looks = []
    guard.domain.look = lambda structure, turn: looks.append(turn) or DomainCheck.look(guard.domain, structure, turn)
    feed(guard, ordinary[:40])
    assert looks == [0, 1, 2, 3]
    assert DOMAIN_EVERY == 100


def test_a_guard_that_was_saved_goes_on_as_before(tmp_path, ordinary, described):
    given = ordinary[:40] + [jumped(*one) for one in ordinary[40:45]] + [bent(*one) for one in ordinary[45:60]]
    whole = make_guard(tmp_path / "whole", described)
    feed(whole, given)
    assert {"energy", "novelty"} <= whole.alarms.keys()
    for cut in (15, 42, 55):
        first, second = make_guard(tmp_path / "a", described), make_guard(tmp_path / "a", described)
        feed(first, given[:cut])
        second.restore(first.save())
        assert second.last_good == first.last_good
        assert second.last_good.info == first.last_good.info
        assert second.last_good.get_potential_energy() == first.last_good.get_potential_energy()
        assert (second.last_good.get_momenta() == first.last_good.get_momenta()).all()
        feed(second, given[cut:], first=cut)
        assert second.record() == whole.record()
    assert first.last_good.info["step"] == 490  # it was cut after the alarm of step 500


def test_another_answer_to_alarms_is_refused(tmp_path):
    with pytest.raises(InputError, match="`on_alarm` must be 'warn' or 'stop', got 'ignore'"):
        make_guard(tmp_path, on_alarm="ignore")
    with pytest.raises(InputError, match="`on_alarm`"):
        make_settings(on_alarm="ignore")


# In runs of the package


class Changing(Springs):
    """Changes its results from the given call on."""

    def __init__(self, first, change):
        super().__init__()
        self.first, self.change, self.calls = first, change, 0

    def calculate(self, *arguments, **keywords):
        super().calculate(*arguments, **keywords)
        self.calls += 1
        if self.calls >= self.first:
            self.change(self.results)


def shift(results):
    results["energy"] += 0.5


def spoil(results):
    results["forces"] = np.full((9, 3), np.nan)


def run(calculator, folder, **values):
    settings = make_settings(**{"log_every": 5, "frame_every": 50, "steps": 300, **values})
    return run_md(calculator, ethanol(), folder, settings, progress=False)


def record(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("ensemble", ["nve", "langevin"])
def test_an_ordinary_run_raises_no_alarm(tmp_path, ensemble):
    run(Springs(), tmp_path, ensemble=ensemble, steps=1500, on_alarm="stop")
    assert record(tmp_path)["alarms"] == {}
    assert not list(tmp_path.glob("alarm*"))


def test_alarms_of_a_run_are_recorded(tmp_path, capsys):
    run(Changing(200, shift), tmp_path)
    alarm = record(tmp_path)["alarms"]["energy"]
    assert (alarm["step"], alarm["looks"], alarm["saved"]) == (200, 1, "alarm-energy.xyz")
    assert record(tmp_path)["status"] == "complete"
    assert len(ase.io.read(tmp_path / "alarm-energy.xyz", ":")) == FRAMES_KEPT
    assert capsys.readouterr().err.count("the total energy has changed") == 1


def test_alarms_stop_a_run_on_request(tmp_path):
    with pytest.raises(
        UnstableDynamics, match=r"total energy has changed .* at step 200 .*alarm-energy\.xyz.*last_good"
    ):
        run(Changing(200, shift), tmp_path, on_alarm="stop")
    assert record(tmp_path)["status"].startswith("stopped: the total energy")
    assert record(tmp_path)["steps_done"] == 200
    assert ase.io.read(tmp_path / "last_good.xyz").info["step"] == 195
    assert ase.io.read(tmp_path / "trajectory.xyz", -1).info["step"] == 200


def test_the_last_good_frame_of_a_run_that_went_on_is_before_the_alarms(tmp_path, monkeypatch):
    """Was interrupted among them, and then broke."""
    monkeypatch.setattr(Guard, "_too_hot", lambda guard, step, temperature: "it is hot" if step >= 100 else None)
    run(Changing(10_000, spoil), tmp_path, steps=150)
    assert record(tmp_path)["alarms"]["temperature"]["looks"] == 11
    with pytest.raises(UnstableDynamics, match="not finite"):
        run(Changing(50, spoil), tmp_path, steps=300)
    good = ase.io.read(tmp_path / "last_good.xyz")
    assert good.info["step"] == 95
    row = np.genfromtxt(tmp_path / "energies.csv", delimiter=",", names=True)[95 // 5]
    assert good.get_potential_energy() == pytest.approx(row["potential_eV"], abs=1e-7)
    assert good.get_kinetic_energy() == pytest.approx(row["kinetic_eV"], abs=1e-6)


def test_another_answer_to_alarms_may_be_given_when_a_run_goes_on(tmp_path):
    run(Springs(), tmp_path, steps=50)
    older = record(tmp_path)
    del older["settings"]["on_alarm"], older["alarms"]  # as it was written before there were any
    (tmp_path / "run.json").write_text(json.dumps(older))
    run(Springs(), tmp_path, steps=100, on_alarm="stop")
    assert record(tmp_path)["steps_done"] == 100


def test_a_replica_that_leaves_the_training_data_stops_alone(tmp_path, potential, monkeypatch):
    first_state = replicas_module.first_state

    def strange(atoms, settings):
        start = first_state(atoms, settings)
        if settings.seed == 1:
            start.set_angle(0, 1, 2, 85.0, indices=[2, 3])
        return start

    monkeypatch.setattr(replicas_module, "first_state", strange)
    settings = make_settings(host="batched", log_every=5, frame_every=10, steps=10, on_alarm="stop")
    results = run_replicas(potential, ethanol(), tmp_path, settings, 3, progress=False)
    assert [result.stopped is None for result in results] == [True, False, True]
    assert "training data" in results[1].stopped
    assert list(results[1].folder.glob("alarm-*.xyz"))
    assert [record(result.folder)["steps_done"] for result in results] == [10, 0, 10]


# In the scripts of others


def test_good_dynamics_of_a_shipped_potential_are_inside_its_training_data(tmp_path):
    labelled = read_frames(shared_data("rmd17_ethanol", "train.xyz")).select(np.arange(0, 1000, 10))
    loaded = load_potential("ethanol-pbe-fast")
    described = describe_frames(labelled.select(np.arange(80)), labelled.select(np.arange(80, 100)), 5.0)
    loaded = replace(loaded, contract=loaded.contract.model_copy(update={"domain": described}))
    atoms = labelled.atoms(0)
    set_temperature(atoms, 300.0, np.random.default_rng(0))
    atoms.calc = GGNNCalculator(loaded)
    dynamics = verlet(atoms)
    with guarded(dynamics, loaded, tmp_path, on_alarm="stop") as guard:
        dynamics.run(200)
    assert not guard.alarms
    assert guard.last_good.info["step"] == 200
    assert not list(tmp_path.iterdir())


def test_guarded_dynamics_stop_in_ase(tmp_path, potential):
    atoms = moving()
    dynamics, mine = verlet(atoms), []
    dynamics.attach(mine.append, 1, 0)
    with guarded(dynamics, potential, tmp_path, on_alarm="stop"):
        dynamics.run(150)
        assert len(dynamics.observers) == 2
        atoms.set_angle(0, 1, 2, 80.0, indices=[2, 3])
        with pytest.raises(UnstableDynamics, match="training data"):
            dynamics.run(1000)
    assert dynamics.nsteps == 200
    assert len(dynamics.observers) == 1
    assert len(mine) == 201
    first = (tmp_path / "alarm-novelty.xyz").read_bytes()
    assert ase.io.read(tmp_path / "alarm-novelty.xyz", -1).info["step"] == 200
    assert ase.io.read(tmp_path / "last_good.xyz").info["step"] < 200
    dynamics = verlet(atoms)
    with (
        pytest.raises(UnstableDynamics, match=r"training data.*alarm-novelty-2\.xyz"),
        guarded(dynamics, potential, tmp_path, on_alarm="stop"),
    ):
        dynamics.run(1000)
    assert (tmp_path / "alarm-novelty.xyz").read_bytes() == first


def test_guarded_dynamics_warn_in_ase(tmp_path, potential, capsys):
    atoms = moving()
    dynamics = verlet(atoms)
    with guarded(dynamics, potential, tmp_path) as guard:
        dynamics.run(600)
        atoms.set_momenta(3.0 * atoms.get_momenta())
        dynamics.run(100)
    assert {"temperature", "energy"} <= guard.alarms.keys()
    assert capsys.readouterr().err.count("the temperature is") == 1
    assert (tmp_path / "alarm-energy.xyz").exists()
    assert not (tmp_path / "last_good.xyz").exists()
    assert not dynamics.observers


@pytest.mark.parametrize(("bath", "alarms"), [(None, {"temperature"}), (300.0, set())])
def test_a_structure_that_a_bath_warms_up_is_not_too_hot(tmp_path, potential, bath, alarms):
    atoms = moving(3.0)
    bath_settings = {"friction": 0.1 / units.fs, "fixcm": False}
    dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=3.0, rng=np.random.default_rng(0), **bath_settings)
    with guarded(dynamics, potential, tmp_path, temperature=bath) as guard:
        dynamics.run(250)
        dynamics.set_temperature(temperature_K=300.0)
        dynamics.run(250)
    assert guard.alarms.keys() & {"temperature"} == alarms
    with (
        pytest.raises(InputError, match=r"`temperature` must be .* got -1"),
        guarded(dynamics, potential, tmp_path, temperature=-1.0),
    ):
        pass


@pytest.mark.parametrize("refuses", [False, True])
def test_numbers_that_blow_up_end_guarded_dynamics(tmp_path, potential, refuses):
    """Whether the calculator refuses positions that are not finite, or not."""

    class Refusing(Changing):
        def calculate(self, *arguments, **keywords):
            if refuses:
                from_atoms(arguments[0])
            super().calculate(*arguments, **keywords)

    atoms = moving()
    atoms.calc = Refusing(200, spoil)
    dynamics = verlet(atoms)
    with pytest.raises(UnstableDynamics, match="not finite by step"), guarded(dynamics, potential, tmp_path):
        dynamics.run(1000)
    assert np.isfinite(ase.io.read(tmp_path / "last_good.xyz").positions).all()
    assert len(ase.io.read(tmp_path / "alarm-failure.xyz", ":")) == 10
    assert not dynamics.observers


def test_errors_of_others_pass_through(tmp_path, potential):
    dynamics = verlet(moving())
    dynamics.attach(lambda: 1 // (10 - dynamics.nsteps))
    with pytest.raises(ZeroDivisionError), guarded(dynamics, potential, tmp_path):
        dynamics.run(20)
    assert len(dynamics.observers) == 1
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_guarded_is_named(tmp_path, potential):
    with (
        pytest.raises(InputError, match=r"`dynamics` must be .*, got builtins\.str"),
        guarded("x", potential, tmp_path),
    ):
        pass
    nitrogen = Atoms("N2", [[0, 0, 0], [0, 0, 1.1]], calculator=Springs())
    with pytest.raises(InputError, match="holds N, but"), guarded(verlet(nitrogen), potential, tmp_path):
        pass


@pytest.fixture
def simulation():
    """The springs in OpenMM."""
    openmm = pytest.importorskip("openmm", reason="needs the extra `openmm`")
    from openmm import app, unit

    from ggnn_ff.hosts.openmm import make_topology

    atoms, system, force = moving(), openmm.System(), openmm.HarmonicBondForce()
    per_ev = 1.0 / (units.kJ / units.mol)
    for mass in atoms.get_masses():
        system.addParticle(mass)
    for i in range(9):
        for j in range(i):
            stretched = atoms.positions.copy()
            length = atoms.get_distance(i, j)
            stretched[i] += 1e-3 * (stretched[i] - stretched[j]) / length
            stiffness = 2e6 * (springs(stretched)[0] - springs(atoms.positions)[0])
            force.addBond(i, j, length / 10.0, 2.0 * stiffness * per_ev * 100.0 / 2.0)
    system.addForce(force)
    integrator = openmm.VerletIntegrator(0.5 * unit.femtosecond)
    simulation = app.Simulation(
        make_topology(atoms), system, integrator, openmm.Platform.getPlatformByName("Reference")
    )
    simulation.context.setPositions(atoms.positions / 10.0)
    simulation.context.setVelocities(atoms.get_velocities() * units.fs * 1e3 / 10.0)
    return simulation


def test_guarded_simulation_sees_what_ase_sees(tmp_path, potential, simulation):
    simulation.reporters.append(other := Silent())
    with guarded(simulation, potential, tmp_path) as guard:
        simulation.step(2300)
        state = simulation.context.getState(velocities=True, positions=True, energy=True)
    assert simulation.reporters == [other]
    assert not guard.alarms
    assert guard.last_step == 2300
    last = guard.last_good
    positions = state.getPositions(asNumpy=True)._value * 10.0
    np.testing.assert_allclose(last.positions, positions, atol=1e-9)
    potential_energy = state.getPotentialEnergy()._value * units.kJ / units.mol
    assert last.get_potential_energy() == pytest.approx(potential_energy, abs=1e-9)
    velocities = state.getVelocities(asNumpy=True)._value * 10.0 / (1e3 * units.fs)
    np.testing.assert_allclose(last.get_velocities(), velocities, atol=1e-12)
    assert np.mean(guard.temperatures) == pytest.approx(150.0, rel=0.5)


class Silent:
    """A reporter that never has anything to report."""

    def describeNextReport(self, simulation):  # noqa: N802
        return {"steps": 0, "include": []}

    def report(self, simulation, state):
        pytest.fail("was asked to")


def test_guarded_simulation_stops(tmp_path, potential, simulation):
    with guarded(simulation, potential, tmp_path, on_alarm="stop"):
        simulation.step(300)
        velocities = simulation.context.getState(velocities=True).getVelocities(asNumpy=True)
        velocities[3] *= 60.0
        simulation.context.setVelocities(velocities)
        with pytest.raises(UnstableDynamics):
            simulation.step(5000)
    assert simulation.currentStep == 400
    assert not simulation.reporters
    assert ase.io.read(tmp_path / "last_good.xyz").info["step"] == 300


def test_numbers_that_blow_up_end_a_guarded_simulation(tmp_path, potential, simulation):
    with guarded(simulation, potential, tmp_path):
        simulation.step(300)
    simulation.context.setVelocities(np.full((9, 3), np.nan))
    with pytest.raises(UnstableDynamics, match="not finite by step"), guarded(simulation, potential, tmp_path):
        simulation.step(5000)
    assert (tmp_path / "last_good.xyz").exists()
    assert not simulation.reporters
