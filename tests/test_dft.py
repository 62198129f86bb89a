"""Labels of density functional theory: those of PySCF, those of the reference data, and errors that say what to do."""

import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed
from ase.io import read, write
from conftest import shared_data
from typer.testing import CliRunner

from ggnn_ff.cli import app
from ggnn_ff.data.engines import engine_calculator, engine_version
from ggnn_ff.data.readers import read_frames
from ggnn_ff.errors import InputError
from ggnn_ff.label import label
from ggnn_ff.subjects import calculator_subject

pyscf = pytest.importorskip("pyscf", reason="density functional theory needs the extra `dft`")


def _water() -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=0)
    return atoms


def test_energy_and_forces_are_those_of_pyscf_with_its_own_settings():
    from pyscf import dft, gto

    atoms = _water()
    atoms.calc = engine_calculator("PBE/def2-SVP")
    one = gto.M(atom=list(zip(atoms.symbols, atoms.positions, strict=True)), basis="def2-svp", verbose=0)
    field = dft.RKS(one, xc="pbe")  # without density fitting, with a finer grid
    assert atoms.get_potential_energy() == pytest.approx(field.kernel() * units.Hartree, abs=0.01)
    forces = -field.nuc_grad_method().kernel() * units.Hartree / units.Bohr
    np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=0.003)


def test_forces_are_the_gradient_of_the_energy():
    atoms = _water()
    atoms.calc = engine_calculator("PBE/def2-SVP")
    forces = atoms.get_forces()
    energies = []
    for shift in (0.005, -0.005):
        moved = atoms.copy()
        moved.positions[0, 2] += shift
        moved.calc = engine_calculator("PBE/def2-SVP")
        energies.append(moved.get_potential_energy())
    assert (energies[1] - energies[0]) / 0.01 == pytest.approx(forces[0, 2], abs=0.005)  # up to the grid


def test_labels_of_the_reference_data_are_found_again():
    frame = read_frames(shared_data("rmd17_ethanol", "train.xyz")).atoms(0)
    frame.calc = engine_calculator("PBE/def2-SVP")
    reference = read(shared_data("rmd17_ethanol", "train.xyz"), 0)
    assert frame.get_potential_energy() == pytest.approx(reference.get_potential_energy(), abs=2e-3)
    assert np.abs(frame.get_forces() - reference.get_forces()).mean() < 5e-4


def test_charge_unpaired_electrons_and_core_potentials_are_taken_into_account():
    energies = {}
    for name, charge, unpaired in (("anion", -1, 0), ("radical", 0, 1)):
        atoms = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]])
        atoms.set_initial_charges([charge, 0])
        atoms.set_initial_magnetic_moments([unpaired, 0])
        atoms.calc = engine_calculator("PBE/STO-3G")
        energies[name] = atoms.get_potential_energy()
    assert abs(energies["anion"] - energies["radical"]) > 1.0
    atoms = Atoms("HI", [[0, 0, 0], [0, 0, 1.61]])
    atoms.calc = engine_calculator("PBE/def2-SVP")
    assert -300 * units.Hartree < atoms.get_potential_energy() < -290 * units.Hartree  # 28 electrons are in the core


def test_frames_are_labelled_from_the_command_line(tmp_path: Path):
    write(tmp_path / "frames.xyz", [_water()])
    arguments = ["label", str(tmp_path / "frames.xyz"), "--engine", "PBE/def2-SVP", "-o", str(tmp_path / "new.xyz")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    new = read_frames(tmp_path / "new.xyz")
    assert (len(new), new.level_of_theory) == (1, "PBE/def2-SVP")
    assert engine_version("PBE/def2-SVP") == f"pyscf {pyscf.__version__}"
    assert calculator_subject("PBE/def2-SVP").name == "PBE/def2-SVP"


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("PBEE/def2-SVP", r"`engine`: PySCF has no functional 'PBEE'.*a slash.*got PBEE/def2-SVP"),
        ("PBE/def2-SVPP", r"(?s)`engine`: PySCF has no such basis set.*def2-SVPP"),
        ("PBE/", r"`engine` must be gfn2-xtb, or a density functional and a basis set.*got 'PBE/'"),
        ("PBE-D3BJ/STO-3G", r"`engine`: PBE-D3BJ/STO-3G cannot be calculated.*pyscf-dispersion"),
    ],
)
def test_what_pyscf_does_not_have_is_said(engine: str, message: str):
    atoms = _water()
    with pytest.raises(InputError, match=message):
        engine_calculator(engine).get_potential_energy(atoms)


def test_a_name_that_was_wrong_can_be_corrected(tmp_path: Path):
    write(tmp_path / "frames.xyz", [_water()])
    with pytest.raises(InputError, match=r"frame 0 of all: .*no such basis set"):
        label([tmp_path / "frames.xyz"], tmp_path / "new.xyz", engine="PBE/STO-3H")
    assert len(label([tmp_path / "frames.xyz"], tmp_path / "new.xyz", engine="PBE/STO-3G")) == 1


def test_a_periodic_structure_is_refused():
    atoms = _water()
    atoms.set_cell([5.0, 5.0, 5.0])
    atoms.pbc = True
    with pytest.raises(InputError, match="must be a molecule for PySCF"):
        engine_calculator("PBE/STO-3G").get_potential_energy(atoms)


def test_a_density_that_does_not_converge_is_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pyscf.scf.hf.SCF.max_cycle", 1)
    with pytest.raises(CalculationFailed, match="did not converge in 1 cycles"):
        engine_calculator("PBE/STO-3G").get_potential_energy(_water())
    write(tmp_path / "frames.xyz", [_water()])
    with pytest.raises(InputError, match="PBE/STO-3G failed for frame 0"):
        label([tmp_path / "frames.xyz"], tmp_path / "new.xyz", engine="PBE/STO-3G")


def test_a_missing_pyscf_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyscf", None)
    with pytest.raises(InputError, match=r'pip install "ggnn-ff\[dft\]"'):
        engine_calculator("PBE/def2-SVP")
