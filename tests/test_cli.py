"""The command line: what a user sees."""

import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import typer
from ase.build import molecule
from typer.testing import CliRunner

from ggnn_ff import cli, quickstart
from ggnn_ff.export import export_torchscript


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The command as a user starts it."""
    monkeypatch.setattr(sys, "argv", ["ggnn-ff", *arguments])
    cli.main()


def failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that must fail prints, without a traceback and with exit status 2."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("ggnn-ff: error: ")
    assert "Traceback" not in message
    return message


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "run_quickstart", interrupted)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "quickstart")
    assert stop.value.code == 130
    assert "interrupted; run the same command again" in capsys.readouterr().err


@pytest.fixture
def potential(potential_folder: Path, tmp_path: Path) -> str:
    """An exported file."""
    export_torchscript(potential_folder, tmp_path / "potential.pt")
    return str(tmp_path / "potential.pt")


@pytest.mark.parametrize("command", typer.main.get_command(cli.app).commands)
def test_each_command_has_help(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_info_shows_the_contract(potential: str) -> None:
    result = CliRunner().invoke(cli.app, ["info", potential], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for word in ("painn", "level_of_theory", "cutoff", "finite_difference_relative_error"):
        assert word in result.output


def test_export_writes_a_file_that_loads(potential_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "potential.pt"
    result = CliRunner().invoke(cli.app, ["export", str(potential_folder), "-o", str(output)])
    assert result.exit_code == 0
    assert CliRunner().invoke(cli.app, ["info", str(output)]).exit_code == 0


def test_check_fails_with_status_1_when_a_verdict_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    settings = {
        "ensemble": "nve",
        "timestep_fs": 0.5,
        "temperature_K": 300,
        "host": "ase",
        "n_atoms": 9,
        "potential": "",
    }
    (folder / "run.json").write_text(json.dumps(settings))
    atoms = molecule("CH3CH2OH")
    for slope, code in ((0.0, None), (0.1, 1)):  # eV/ps of the whole molecule
        rows = ["step,time_fs,potential_eV,kinetic_eV,total_eV,temperature_K"]
        noise = np.random.default_rng(0).normal(scale=1e-6, size=201)
        for k in range(201):
            total = slope * k * 0.05 + noise[k]
            rows.append(f"{100 * k},{50 * k},{total - 0.3 + 0.01 * np.sin(k)},{0.3 - 0.01 * np.sin(k)},{total},300")
        (folder / "energies.csv").write_text("\n".join(rows) + "\n")
        atoms.info = {"step": 0, "time_fs": 0.0}
        atoms.write(folder / "trajectory.xyz", format="extxyz")
        if code is None:
            run_quietly(monkeypatch, "check", str(folder))
        else:
            with pytest.raises(SystemExit) as stop:
                run(monkeypatch, "check", str(folder))
            assert stop.value.code == code
    assert (folder / "check.json").exists()
    assert (folder / "check.png").stat().st_size > 10_000


def test_check_shows_its_table_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    molecule("H2O").write(tmp_path / "one.xyz")
    run_quietly(monkeypatch, "check", str(tmp_path / "one.xyz"))
    assert "inconclusive: 1 of 9 checks judged" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "check", str(tmp_path / "one.xyz"))
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert "energy drift" in shown.out
    assert "inconclusive" in shown.out
    assert "ggnn-ff[analysis]" in shown.err


def test_every_module_of_an_extra_is_known() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    modules = {"pyyaml": "yaml", "physical-validation": "physical_validation", "torch-sim-atomistic": "torch_sim"}
    for extra, requirements in project["optional-dependencies"].items():
        for requirement in requirements:
            name = re.match(r"[a-z0-9-]+", requirement).group()
            if name not in ("ggnn-ff", "torch"):
                assert cli.EXTRAS[modules.get(name, name)] == extra


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((28, "could not write a.csv: No space left on device"), "could not write a.csv: No space left on device"),
        ((13, "Permission denied", "a.csv"), "a.csv: Permission denied"),
        (("plain",), "plain"),
    ],
)
def test_errors_of_the_system_are_told_without_their_number(
    arguments: tuple, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OSError(*arguments)

    monkeypatch.setattr(cli, "app", fail)
    assert failure(monkeypatch, capsys) == f"ggnn-ff: error: {message}\n"


def test_openmm_on_another_device_is_refused(
    potential: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("-o", str(tmp_path / "md"), "--temperature", "300", "--host", "openmm", "--device", "cuda")
    message = failure(monkeypatch, capsys, "md", potential, "ethanol", *options)
    assert "`device` must be cpu for host 'openmm', got 'cuda'" in message


def run_quietly(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """A command that must succeed."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *arguments)
    assert stop.value.code in (0, None)


def test_misspelt_potential_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = failure(monkeypatch, capsys, "info", "ethanol-bpe")
    assert "did you mean 'ethanol-pbe'?" in message


def test_wrong_setting_of_md_is_named(
    potential: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "md")
    message = failure(monkeypatch, capsys, "md", potential, "ethanol", "-o", output, "--ensemble", "npt")
    assert "`ensemble`" in message
    assert "npt" in message
    message = failure(monkeypatch, capsys, "md", potential, "ethanol", "-o", output)
    assert "--temperature" in message


@pytest.mark.parametrize(("option", "value"), [("--nve", "0"), ("--seeds", "0"), ("--hot-temperature", "nan")])
def test_wrong_setting_of_certify_is_named(
    potential: str,
    option: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("certify", potential, "--structure", "ethanol", "-o", str(tmp_path), option, value)
    message = failure(monkeypatch, capsys, *arguments)
    assert option.strip("-").replace("-", "_") in message


def test_element_the_potential_does_not_know_is_named(
    potential: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = failure(monkeypatch, capsys, "md", potential, "CH3SH", "-o", str(tmp_path / "md"), "--temperature", "300")
    assert "holds S" in message


def test_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for module in [name for name in sys.modules if name.startswith("ggnn_ff.training")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lightning", None)
    config = tmp_path / "config.yaml"
    config.write_text("output: x\ndata: {train: y}\n")
    assert "pip install 'ggnn-ff[train]'" in failure(monkeypatch, capsys, "train", str(config))


def test_misspelt_key_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("output: x\ndata: {train: y, n_vaild: 50}\n")
    message = failure(monkeypatch, capsys, "train", str(config))
    assert "`data.n_vaild`" in message
    assert "did you mean 'n_valid'?" in message
