"""Each potential that ships: complete, as good as it says, and in the wheel."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import shared_data

from ggnn_ff.data.readers import read_frames
from ggnn_ff.export import TORCHSCRIPT, load_potential, shipped_potentials
from ggnn_ff.training.evaluation import evaluate_frames

ROOT = Path(__file__).parent.parent
NAMES = sorted(shipped_potentials())


def test_ethanol_ships() -> None:
    assert "ethanol-pbe" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_part_is_there(name: str) -> None:
    folder = shipped_potentials()[name]
    for part in ("weights.safetensors", "potential.json", TORCHSCRIPT, "recipe.yaml", "README.md", "evidence.json"):
        assert (folder / part).stat().st_size > 0, part


@pytest.mark.parametrize("name", NAMES)
def test_torchscript_and_weights_agree(name: str) -> None:
    folder = shipped_potentials()[name]
    scripted, eager = (load_potential(path, dtype="float64") for path in (folder / TORCHSCRIPT, folder))
    atoms = scripted.contract.example.atoms()
    one, other = scripted.evaluate(atoms), eager.evaluate(atoms)
    assert abs(float(one.energy[0] - other.energy[0])) < 1e-9
    assert np.abs((one.forces - other.forces).numpy()).max() < 1e-9


def test_ethanol_pbe_is_as_good_as_it_says_on_the_rmd17_test_frames() -> None:
    frames = read_frames(shared_data("rmd17_ethanol", "test.xyz"))
    loaded = load_potential("ethanol-pbe")
    errors = evaluate_frames(loaded.module, frames, loaded.contract.cutoff).errors(frames)
    stated = loaded.contract.test_errors
    assert stated is not None
    assert errors.sha256 == stated.sha256
    assert errors.n_frames == stated.n_frames == 1000
    assert errors.forces_mae_mev_per_angstrom == pytest.approx(stated.forces_mae_mev_per_angstrom, rel=1e-3)
    assert errors.energy_mae_mev == pytest.approx(stated.energy_mae_mev, rel=1e-2)
    assert errors.forces_mae_mev_per_angstrom <= 9.0
    assert errors.energy_mae_mev <= 1.8


def test_evidence_of_ethanol_pbe_meets_the_mark() -> None:
    evidence = json.loads((shipped_potentials()["ethanol-pbe"] / "evidence.json").read_text(encoding="utf8"))
    contract = load_potential("ethanol-pbe").contract
    assert evidence["contract_sha256"] == contract.identity
    for host in ("ase", "openmm"):
        run = evidence["nve"][host]
        assert run["picoseconds"] == 100.0
        assert abs(run["drift_mev_per_atom_per_ps"]) < 0.01
        assert run["broken_bond"] is None
        assert 3.0 < run["fluctuation_ratio_when_the_time_step_is_halved"] < 5.0


def test_the_wheel_brings_the_potentials(tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    subprocess.run([uv, "build", "--wheel", "-o", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    shutil.unpack_archive(wheel, site, format="zip")
    code = (
        "import ggnn_ff, sys; from ase.build import molecule; a = molecule('CH3CH2OH');"
        "a.calc = ggnn_ff.GGNNCalculator('ethanol-pbe'); a.get_forces();"
        f"assert ggnn_ff.__file__.startswith({str(site)!r}), ggnn_ff.__file__"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(site)}, check=True)
