"""Each potential that ships: complete, as good as it says, and in the wheel."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from conftest import shared_data

from ggnn_ff.data.readers import read_frames
from ggnn_ff.export import TORCHSCRIPT, load_potential, shipped_potentials
from ggnn_ff.stability.smoothness import random_lines
from ggnn_ff.training.evaluation import evaluate_frames

ROOT = Path(__file__).parent.parent
NAMES = sorted(shipped_potentials())
LARGEST_ERRORS = {"ethanol-pbe": (1.85, 0.28), "ethanol-pbe-fast": (9.0, 1.8)}  # meV/angstrom, meV


def test_it_is_known_how_good_each_must_be() -> None:
    assert set(LARGEST_ERRORS) == set(NAMES)


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


@pytest.mark.parametrize("name", NAMES)
def test_errors_on_the_rmd17_test_frames_are_those_that_are_stated(name: str) -> None:
    frames = read_frames(shared_data("rmd17_ethanol", "test.xyz"))
    loaded = load_potential(name)
    errors = evaluate_frames(loaded.module, frames, loaded.contract.cutoff).errors(frames)
    stated = loaded.contract.test_errors
    assert stated is not None
    assert errors.sha256 == stated.sha256
    assert errors.n_frames == stated.n_frames == 1000
    assert errors.forces_mae_mev_per_angstrom == pytest.approx(stated.forces_mae_mev_per_angstrom, rel=1e-3)
    assert errors.energy_mae_mev == pytest.approx(stated.energy_mae_mev, rel=1e-2)
    forces_limit, energy_limit = LARGEST_ERRORS[name]
    assert errors.forces_mae_mev_per_angstrom <= forces_limit
    assert errors.energy_mae_mev <= energy_limit


@pytest.mark.parametrize("name", NAMES)
def test_forces_of_distorted_structures_are_those_of_molecules(name: str) -> None:
    atoms, loaded = molecule("CH3CH2OH"), load_potential(name)
    for positions in random_lines(atoms.positions, 50).reshape(-1, *atoms.positions.shape):
        forces = loaded.evaluate(Atoms(atoms.numbers, positions)).forces
        assert float(torch.linalg.vector_norm(forces, dim=1).max()) < 60.0  # eV/angstrom


@pytest.mark.parametrize("name", NAMES)
def test_evidence_meets_the_mark(name: str) -> None:
    evidence = json.loads((shipped_potentials()[name] / "evidence.json").read_text(encoding="utf8"))
    contract = load_potential(name).contract
    assert evidence["contract_sha256"] == contract.identity
    for host in ("ase", "openmm"):
        run = evidence["nve"][host]
        assert run["picoseconds"] == 100.0
        assert abs(run["drift_mev_per_atom_per_ps"]) < 0.01
        assert run["broken_bond"] is None
        assert 3.0 < run["fluctuation_ratio_when_the_time_step_is_halved"] < 5.0


@pytest.mark.parametrize("name", NAMES)
def test_every_potential_is_certified(name: str) -> None:
    certification = load_potential(name).contract.certification
    assert certification is not None
    assert certification.passed


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
