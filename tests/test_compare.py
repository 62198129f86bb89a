"""Comparisons: the whole way with two tiny rows, going on after a kill, and what the table and the pictures say."""

import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from killed import compare_killed_in_training, run_to_death
from rich.console import Console
from spring_molecule import write_frames
from test_cli import failure

from ggnn_ff import cli
from ggnn_ff.comparison import run as comparison
from ggnn_ff.comparison.measure import measure_dynamics, potential_surface
from ggnn_ff.comparison.plots import pareto_front, plot_conservation_accuracy
from ggnn_ff.comparison.row import Row
from ggnn_ff.comparison.run import compare
from ggnn_ff.comparison.settings import Settings, Sizes, parse_budget, parse_models
from ggnn_ff.comparison.speed import structures, water_box
from ggnn_ff.comparison.table import cells, header
from ggnn_ff.data.readers import read_frames
from ggnn_ff.errors import InputError
from ggnn_ff.export import evaluate, load_potential
from ggnn_ff.forces import EnergyForces
from ggnn_ff.models import MODELS
from ggnn_ff.potential import Potential
from ggnn_ff.stability.smoothness import NEGLIGIBLE, largest_jumps, order_swaps, random_lines
from ggnn_ff.training.curve import read_learning_curve

TINY = Sizes(
    lines=2, line_step=0.05, equilibration_ps=0.02, nve_ps=0.1, hot_ps=0.1, evaluations=3, seconds=1.0, timestep=0.25
)
SECONDS = 3.0


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    folder = tmp_path_factory.mktemp("data")
    return Settings(
        data=write_frames(folder / "train.npz", 60),
        test=write_frames(folder / "test.npz", 20, seed=1),
        budget_minutes=SECONDS / 60,
        n_valid=10,
        learning_rate=5e-3,
        threads=1,
    )


def run(settings, folder, *models):
    return compare(settings, models, folder, Console(quiet=True), TINY)


def rows(folder) -> list[Row]:
    return [Row(**row) for row in json.loads((folder / "comparison.json").read_text())["rows"]]


def validated(training) -> np.ndarray:
    """Minutes at which there were validations."""
    minutes = read_learning_curve(training).minutes
    return minutes[np.isfinite(minutes)]


@pytest.fixture(scope="module")
def compared(settings, tmp_path_factory):
    """A comparison that was killed while its second architecture trained, and run again."""
    folder = tmp_path_factory.mktemp("comparison")
    run_to_death(compare_killed_in_training, settings, ["schnet", "painn"], folder, TINY, "painn", 3)
    (finished,) = rows(folder)
    assert finished.model == "schnet"
    assert not (folder / "painn" / "potential.pt").exists()
    stamp = (folder / "schnet" / "row.json").stat().st_mtime_ns
    spent = validated(folder / "painn" / "training")[-1]
    assert run(settings, folder, "schnet", "painn") == {}
    assert (folder / "schnet" / "row.json").stat().st_mtime_ns == stamp
    curve = validated(folder / "painn" / "training")
    assert (np.diff(curve) > 0).all()
    assert spent in curve
    assert curve[-1] >= SECONDS / 60
    return folder


def test_each_architecture_has_a_row_with_all_figures(compared, settings):
    frames = read_frames(settings.test)
    for row, name in zip(rows(compared), ("schnet", "painn"), strict=True):
        assert row.model == name
        assert row.hyperparameters == MODELS[name].presets["small"].model_dump()
        eager = load_potential(compared / name / "training").module
        assert row.n_parameters == sum(p.numel() for p in eager.parameters())
        assert row.errors.sha256 == frames.sha256
        assert row.errors.n_frames == 20
        assert [(s.structure, s.n_atoms) for s in row.speed] == [("ethanol", 9), ("aspirin", 21), ("64 waters", 192)]
        assert all(s.evaluation_ms > 0.0 for s in row.speed)
        assert all(s.step_ms > 0.0 for s in row.speed)
        assert {j.lines for j in row.jumps} == {"random lines", "cutoff crossings", "neighbour swaps"}
        assert row.energy_jump <= NEGLIGIBLE
        assert row.forces_jump <= NEGLIGIBLE
        assert 0.1 < row.largest_force < 1e3
        assert row.curve[-1].minutes >= SECONDS / 60
        assert row.epochs == row.curve[-1].epoch + 1 >= len(row.curve) > 1
        if row.nve.stopped is None:
            assert row.nve.picoseconds == pytest.approx(0.1)
            assert row.nve.drift_error > 0.0
            assert row.nve.fluctuation_mev_per_atom > 0.0


def test_table_and_pictures_are_written(compared):
    text = (compared / "comparison.md").read_text()
    assert re.search(r"^\| schnet \| [\d,]+ \| 0\.005 \| \d+ \|", text, re.MULTILINE)
    assert re.search(r"^\| painn \| [\d,]+ \| 0\.005 \| \d+ \|", text, re.MULTILINE)
    assert "one thread" in text
    for name in ("accuracy_speed", "conservation_accuracy", "learning_curves"):
        assert (compared / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((compared / "comparison.json").read_text())
    assert content["settings"]["budget_minutes"] == SECONDS / 60
    assert content["failures"] == {}


def test_finished_comparison_is_not_done_again(compared, settings, monkeypatch):
    monkeypatch.setattr(comparison, "fit", None)
    assert run(settings, compared, "painn") == {}
    assert [row.model for row in rows(compared)] == ["schnet", "painn"]  # also what others asked for


def test_times_are_taken_again_where_they_were_deleted(compared, settings, tmp_path, monkeypatch):
    shutil.copytree(compared, tmp_path / "copy")
    before = rows(compared)
    for name in ("fit", "measure_jumps", "measure_dynamics"):
        monkeypatch.setattr(comparison, name, None)
    (tmp_path / "copy" / "painn" / "speed.json").unlink()
    assert run(settings, tmp_path / "copy", "schnet", "painn") == {}
    schnet, painn = rows(tmp_path / "copy")
    assert schnet == before[0]
    assert painn.speed != before[1].speed
    assert painn.model_copy(update={"speed": before[1].speed}) == before[1]


def test_other_settings_are_refused_in_the_same_folder(compared, settings):
    other = settings.model_copy(update={"seed": 1})
    with pytest.raises(InputError, match="holds another comparison: `seed` was 0 and is now 1"):
        run(other, compared, "painn")


def test_failure_of_one_architecture_leaves_the_others_alone(settings, compared, tmp_path, monkeypatch):
    def make_row(settings, model, folder, *arguments):
        if model == "schnet":
            raise InputError("the training diverged")
        folder.mkdir()
        for name in ("row.json", "speed.json"):
            shutil.copy(compared / model / name, folder / name)

    monkeypatch.setattr(comparison, "_make_row", make_row)
    assert run(settings, tmp_path, "schnet", "painn") == {"schnet": "InputError: the training diverged"}
    assert [row.model for row in rows(tmp_path)] == ["painn"]
    told = "schnet: no row, for InputError: the training diverged"
    assert told in (tmp_path / "comparison.md").read_text()
    assert run(settings, tmp_path, "painn") == {}
    assert told in (tmp_path / "comparison.md").read_text()  # still
    for name in ("row.json", "speed.json"):
        (tmp_path / "schnet").mkdir(exist_ok=True)
        shutil.copy(compared / "schnet" / name, tmp_path / "schnet" / name)
    run(settings, tmp_path, "painn")
    assert told not in (tmp_path / "comparison.md").read_text()


def test_simulation_that_broke_is_not_run_again(compared, tmp_path):
    """At 1e5 K nothing holds."""
    potential = load_potential(compared / "painn" / "potential.pt")
    start = structures()["ethanol"]
    hot = TINY.model_copy(
        update={"hot_temperature": 1e5, "hot_ps": 1.0, "nve_temperature": 1e5, "equilibration_ps": 1.0}
    )
    first = measure_dynamics(potential, start, tmp_path, hot, 0, print)
    for dynamics in first:
        assert dynamics.stopped
        assert dynamics.picoseconds < 0.5
        assert dynamics.drift_mev_per_atom_per_ps is None
    stamp = (tmp_path / "hot" / "run.json").stat().st_mtime_ns
    assert measure_dynamics(potential, start, tmp_path, hot, 0, print) == first
    assert (tmp_path / "hot" / "run.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(("largest", "jump"), [(None, "1.0e+10"), (1e15, "1.0e+10"), (1e24, "none")])
def test_rounding_of_enormous_forces_is_no_jump(compared, largest, jump):
    row = rows(compared)[0]
    update = {"forces_ev_per_angstrom": 1e10, "largest_force_ev_per_angstrom": largest}
    row = row.model_copy(update={"jumps": [row.jumps[0].model_copy(update=update)]})
    named = dict(zip(header([row], TINY), cells(row, TINY), strict=True))
    assert named["force jump (eV/Å)"] == jump
    assert named["largest force there (eV/Å)"] == ("-" if largest is None else f"{largest:.2g}")


def test_what_broke_is_in_table_and_picture(compared):
    row = rows(compared)[1]
    broken = row.model_copy(
        update={
            "nve": row.nve.model_copy(update={"stopped": "x", "picoseconds": 1.0, "drift_mev_per_atom_per_ps": None}),
            "hot": row.hot.model_copy(update={"stopped": "x", "picoseconds": 2.5}),
        }
    )
    named = dict(zip(header([broken], TINY), cells(broken, TINY), strict=True))
    assert named["drift, 300 K (meV/atom/ps)"] == "broke after 1.00 ps"
    assert named["stable at 500 K (ps)"] == "2.50"
    texts = [text.get_text() for text in plot_conservation_accuracy([broken]).axes[0].texts]
    assert texts == ["painn (broke)"]


def test_published_torsion_of_spherenet_is_a_candidate_and_jumps(settings, tmp_path):
    """What the other architectures and its smooth form do not: `test_model_contract.py`."""
    atoms, config = structures()["ethanol"], settings.training("spherenet-published", tmp_path).model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        potential = Potential(config.name, config.chosen(), 5.0, ["H", "C", "O"], torch.float64)
    module = EnergyForces(potential).eval()
    potential.scale.mul_(3.0 / evaluate(module, atoms, 5.0, torch.device("cpu")).forces.abs().max())
    loaded = SimpleNamespace(module=module, contract=SimpleNamespace(cutoff=5.0))
    for lines in (random_lines(atoms.positions, 1), order_swaps(atoms.positions, 4)):
        jumps = largest_jumps(potential_surface(loaded, atoms), lines, step=0.01, looks=1)
        assert jumps.energy > 1e-5
        assert jumps.forces > 1e-4


def test_pareto_front_is_what_nothing_beats():
    points = np.array([[1.0, 9.0], [2.0, 4.0], [3.0, 5.0], [4.0, 1.0], [4.0, 2.0], [2.0, 4.0]])
    assert pareto_front(points).tolist() in ([0, 1, 5, 3], [0, 5, 1, 3])


def test_water_has_density_one_and_whole_molecules():
    box = water_box()
    assert len(box) == 192
    assert box.get_masses().sum() * 1.66053907 / box.get_volume() == pytest.approx(1.0, rel=1e-6)
    distances = box.get_all_distances(mic=True)
    oxygens = np.flatnonzero(box.numbers == 8)
    for oxygen in oxygens:
        assert (distances[oxygen, oxygen + 1 : oxygen + 3] < 1.0).all()
    between = distances[~np.equal.outer(np.arange(192) // 3, np.arange(192) // 3)]
    assert between.min() > 1.2
    assert structures()["aspirin"].get_chemical_formula() == "C9H8O4"


@pytest.mark.parametrize(("text", "minutes"), [("15min", 15.0), ("90s", 1.5), ("1.5h", 90.0), (" 2 min ", 2.0)])
def test_budget_is_a_number_with_a_unit(text, minutes):
    assert math.isclose(parse_budget(text), minutes)


@pytest.mark.parametrize("text", ["15", "min", "-3min", "0s", "fifteen minutes", "15 m", "1e400h", ""])
def test_other_budgets_are_refused(text):
    with pytest.raises(InputError, match=r"`budget` must be a number above zero with the unit s, min or h.*got"):
        parse_budget(text)


def test_models_are_named_or_all():
    assert parse_models("all") == [*MODELS, "spherenet-published"]
    assert parse_models("painn, schnet,painn") == ["schnet", "painn"]


def test_command_names_what_is_wrong(settings, tmp_path, monkeypatch, capsys):
    files = ["--data", str(settings.data), "--test", str(settings.test), "-o", str(tmp_path / "out")]
    message = failure(monkeypatch, capsys, "compare", *files, "--models", "painn,schnett")
    assert "`models`" in message
    assert "got 'schnett' (did you mean 'schnet'?)" in message
    assert "got 'soon'" in failure(monkeypatch, capsys, "compare", *files, "--budget", "soon")
    assert "`preset`" in failure(monkeypatch, capsys, "compare", *files, "--preset", "tiny")
    files[1] = str(tmp_path / "absent.xyz")
    assert "`data.train` must be a file that exists" in failure(monkeypatch, capsys, "compare", *files)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("failures", [{}, {"painn": "InputError: diverged"}])
def test_command_passes_its_options_on_and_prints_the_table(settings, tmp_path, monkeypatch, capsys, failures):
    asked = []

    def compare(settings, models, folder, console):
        asked.append((settings, models))
        (folder / "comparison.md").write_text("| the table |\n")
        return failures

    monkeypatch.setattr(comparison, "compare", compare)
    files = ["--data", str(settings.data), "--test", str(settings.test), "-o", str(tmp_path)]
    options = ["--models", "painn", "--budget", "90s", "--valid", "7", "--seed", "3", "--threads", "2", "--compile"]
    monkeypatch.setattr("sys.argv", ["ggnn-ff", "compare", *files, *options])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code or 0) == len(failures)
    assert "| the table |" in capsys.readouterr().out
    expected = {"budget_minutes": 1.5, "n_valid": 7, "seed": 3, "threads": 2, "compile": True, "preset": "small"}
    ((given, models),) = asked
    assert models == ["painn"]
    assert {key: getattr(given, key) for key in expected} == expected
