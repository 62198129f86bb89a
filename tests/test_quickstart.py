"""The quickstart from end to end, with less of everything."""

import json
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("tblite", reason="needs the extra `sample`")
pytest.importorskip("openmmtorch", reason="needs the extra `openmm`", exc_type=ImportError)
quickstart = pytest.importorskip("ggnn_ff.quickstart", reason="needs the extras `train` and `openmm`")

SMALL = {
    "FRAMES": 30,
    "TRAIN": 20,
    "VALID": 5,
    "TEST": 5,
    "EPOCHS": 2,
    "MD_STEPS": 160,
    "TIMESTEP": 0.1,
    "MD_TEMPERATURE": 20.0,
}


def refuse(constant: str) -> float:
    raise AssertionError(f"report.json is not JSON: {constant}")


def run(folder: Path) -> dict:
    """The report; the table must have no empty figures."""
    with open(folder / "printed.txt", "w", encoding="utf8") as file:
        quickstart.run_quickstart(folder, 0, Console(width=120, file=file))
    printed = (folder / "printed.txt").read_text(encoding="utf8")
    assert "time per step" in printed
    assert "nan" not in printed
    return json.loads((folder / "report.json").read_text(), parse_constant=refuse)


def test_quickstart_reports_and_can_be_called_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(quickstart, name, value)
    sample = quickstart.sample
    monkeypatch.setattr(quickstart, "sample", lambda *a, **k: sample(*a, **k, equilibration=20, stride=2))
    first, again = run(tmp_path), run(tmp_path)
    assert set(first["dynamics"]) == {"ASE", "OpenMM", "GFN2-xTB in ASE"}
    for name, one in first["dynamics"].items():
        assert one["milliseconds_per_step"] > 0
        assert again["dynamics"][name] == one
    assert again["test_errors"] == first["test_errors"]
    differences = [host["largest_force_difference_ev_per_angstrom"] for host in first["same_frame_float64"].values()]
    assert max(differences) < 1e-9
    for name in ("learning_curve", "force_parity", "energies", "distance_distribution"):
        assert (tmp_path / "plots" / f"{name}.png").stat().st_size > 10_000
