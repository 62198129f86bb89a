"""New labels are what they are said to be, survive a kill, and refuse what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from typer.testing import CliRunner
from untrained import write_untrained

from ggnn_ff.cli import app
from ggnn_ff.contract import tell_of_contract
from ggnn_ff.data.engines import engine_calculator
from ggnn_ff.data.readers import read_frames
from ggnn_ff.data.structures import find_structure
from ggnn_ff.data.write import write_md17_npz
from ggnn_ff.errors import InputError
from ggnn_ff.export import load_potential
from ggnn_ff.hosts.ase import GGNNCalculator
from ggnn_ff.label import label

pytest.importorskip("tblite", reason="labels need the extra `sample`")

DIFFERENCE = "PBE minus GFN2-xTB"


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGNN_FF_COMPILE", "0")


def _structures(path: Path, number: int = 3) -> Path:
    frames = []
    for seed in range(number):
        atoms = find_structure("ethanol")
        atoms.rattle(0.05, seed=seed)
        frames.append(atoms)
    write(path, frames)
    return path


def _correction(folder: Path, seed: int, level_of_theory: str = DIFFERENCE) -> Path:
    settings = {"n_features": 8 + seed, "n_layers": 1}
    return write_untrained(folder / f"correction{seed}", "painn", settings, level_of_theory=level_of_theory)


def test_labels_are_the_engine_s(tmp_path: Path):
    seen = []
    frames = _structures(tmp_path / "frames.xyz")
    label([frames, frames], tmp_path / "new.xyz", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames.xyz", "new.xyz"]
    new = read_frames(tmp_path / "new.xyz")
    assert (len(new), new.level_of_theory) == (6, "GFN2-xTB")
    atoms = new.atoms(4)
    atoms.calc = engine_calculator()
    assert atoms.get_potential_energy() == pytest.approx(new.energy[4], abs=1e-6)
    np.testing.assert_allclose(atoms.get_forces(), new.forces[new.rows(4)], rtol=0, atol=1e-6)


def test_an_npz_of_the_md17_family_is_labelled_anew(tmp_path: Path):
    label([_structures(tmp_path / "frames.xyz", 2)], tmp_path / "new.xyz")
    write_md17_npz(tmp_path / "new.npz", read_frames(tmp_path / "new.xyz"))
    again = label([tmp_path / "new.npz"], tmp_path / "again.xyz")
    expected = read_frames(tmp_path / "new.xyz")
    np.testing.assert_allclose(again.energy, expected.energy, rtol=0, atol=1e-6)
    arrays = {"R": expected.positions.reshape(2, -1, 3), "z": expected.numbers[:9]}
    labels = {"E": expected.energy, "F": expected.forces.reshape(2, -1, 3)}  # in eV, which it does not say
    np.savez(tmp_path / "ev.npz", **arrays, **labels)
    in_ev = label([tmp_path / "ev.npz"], tmp_path / "ev.xyz", energy_unit="eV")
    np.testing.assert_allclose(in_ev.energy, expected.energy, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="`energy_unit` is of the labels"):
        label([tmp_path / "new.xyz"], tmp_path / "other.xyz", energy_unit="eV")


def test_constraints_take_nothing_from_the_forces(tmp_path: Path):
    atoms = find_structure("ethanol")
    atoms.rattle(0.05, seed=0)
    write(tmp_path / "free.traj", atoms)
    atoms.set_constraint(FixAtoms([0]))
    write(tmp_path / "fixed.traj", atoms)
    free, fixed = (label([tmp_path / f"{name}.traj"], tmp_path / f"{name}.xyz").forces for name in ("free", "fixed"))
    np.testing.assert_allclose(fixed, free, rtol=0, atol=1e-6)


def test_charges_and_unpaired_electrons_stay_with_the_frames(tmp_path: Path):
    cation, radical = molecule("H2O"), molecule("CH3")
    cation.set_initial_charges([2.0, 0.0, 0.0])
    radical.set_initial_magnetic_moments([1.0, 0.0, 0.0, 0.0])
    write(tmp_path / "frames.xyz", [cation, radical])
    new = label([tmp_path / "frames.xyz"], tmp_path / "new.xyz")
    neutral = molecule("H2O", calculator=engine_calculator())
    assert new.energy[0] > neutral.get_potential_energy() + 10.0
    nothing = label([tmp_path / "new.xyz"], tmp_path / "difference.xyz", difference=True)
    np.testing.assert_allclose(nothing.energy, 0.0, rtol=0, atol=1e-6)
    np.testing.assert_allclose(nothing.forces, 0.0, rtol=0, atol=1e-6)
    kept = nothing.select(np.array([1, 0])).atoms(0)
    assert kept.get_initial_magnetic_moments().tolist() == [1.0, 0.0, 0.0, 0.0]


def labelled_ion(folder: Path, ion: Atoms) -> Path:
    """Ethanol and `ion`, with labels."""
    frames = []
    for atoms in (find_structure("ethanol"), ion.copy()):
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((len(atoms), 3)))
        frames.append(atoms)
    write(folder / "ion.xyz", frames)
    return folder / "ion.xyz"


@pytest.mark.parametrize(
    ("name", "value", "column"), [("charge", 1, "initial_charges"), ("spin", 3, "initial_magmoms")]
)
def test_a_charge_that_the_atoms_do_not_have_is_not_ignored(tmp_path: Path, name: str, value: int, column: str):
    atoms = find_structure("ethanol")
    atoms.info[name] = value
    write(tmp_path / "ion.xyz", [find_structure("ethanol"), atoms])
    with pytest.raises(
        InputError, match=rf"frame 1 of all: .* says {name}={value}, but its atoms .* the column {column}"
    ):
        label([tmp_path / "ion.xyz"], tmp_path / "new.xyz")
    with pytest.raises(InputError, match=f"frame 1 of all: .* says {name}={value}"):
        label([labelled_ion(tmp_path, atoms)], tmp_path / "new.xyz", difference=True)
    assert [path.name for path in tmp_path.iterdir()] == ["ion.xyz"]  # no journal: mended, the call begins anew
    atoms.set_initial_charges([1.0] + [0.0] * 8)
    atoms.set_initial_magnetic_moments([2.0] + [0.0] * 8)
    if name == "spin":
        atoms.set_initial_charges([0.0] * 9)
        write(tmp_path / "ion.xyz", atoms)
        assert len(label([tmp_path / "ion.xyz"], tmp_path / "new.xyz")) == 1


def test_an_npz_keeps_charges_and_unpaired_electrons(tmp_path: Path):
    oxygen = molecule("O2")
    write(tmp_path / "oxygen.xyz", oxygen)
    labelled = label([tmp_path / "oxygen.xyz"], tmp_path / "triplet.xyz")
    assert labelled.magnetic_moments is not None
    write_md17_npz(tmp_path / "triplet.npz", labelled)
    again = read_frames(tmp_path / "triplet.npz")
    np.testing.assert_array_equal(again.magnetic_moments, labelled.magnetic_moments)
    assert again.charges is None


def test_another_suffix_than_that_of_what_is_written_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"`output` must end in .xyz or .extxyz"):
        label([_structures(tmp_path / "frames.xyz")], tmp_path / "new.npz")


def test_a_difference_and_the_engine_make_the_labels_again(tmp_path: Path):
    engine = label([_structures(tmp_path / "frames.xyz")], tmp_path / "engine.xyz")
    there = tmp_path / "corrected.xyz"
    corrections = [_correction(tmp_path, seed) for seed in (0, 1)]
    corrected = label([tmp_path / "frames.xyz"], there, corrections=corrections)
    assert corrected.level_of_theory == read_frames(there).level_of_theory == "PBE, estimated from GFN2-xTB"
    difference = label([there], tmp_path / "difference.xyz", difference=True)
    assert difference.level_of_theory == "PBE, estimated from GFN2-xTB minus GFN2-xTB"
    np.testing.assert_allclose(difference.energy, corrected.energy - engine.energy, rtol=0, atol=1e-6)
    for index in range(3):
        both = [load_potential(path).evaluate(engine.atoms(index)) for path in corrections]
        mean = np.mean([one.forces.numpy() for one in both], axis=0)
        np.testing.assert_allclose(difference.forces[difference.rows(index)], mean, rtol=0, atol=1e-5)
        assert difference.energy[index] == pytest.approx(np.mean([float(one.energy[0]) for one in both]), abs=1e-4)


def test_a_potential_of_a_difference_says_what_it_is_for(tmp_path: Path, capsys: pytest.CaptureFixture):
    correction = load_potential(_correction(tmp_path, 0))
    tell_of_contract(correction.source, correction.contract)
    expected = (
        f"{correction.source} is of a difference, {DIFFERENCE}, and describes no motion by itself; add it to GFN2-xTB"
    )
    assert expected in capsys.readouterr().err


def test_the_sum_in_ase_says_what_corrected_labels_say(tmp_path: Path):
    correction = _correction(tmp_path, 0)
    corrected = label([_structures(tmp_path / "frames.xyz", 1)], tmp_path / "new.xyz", corrections=[correction])
    atoms = corrected.atoms(0)
    atoms.calc = SumCalculator([engine_calculator(), GGNNCalculator(correction)])
    assert atoms.get_potential_energy() == pytest.approx(corrected.energy[0], abs=1e-6)
    np.testing.assert_allclose(atoms.get_forces(), corrected.forces, rtol=0, atol=1e-6)


def test_a_killed_call_goes_on(tmp_path: Path):
    frames = _structures(tmp_path / "frames.xyz")
    label([frames], tmp_path / "whole.xyz")

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label([frames], tmp_path / "killed.xyz", progress=kill)
    journal = tmp_path / "killed.xyz.journal"
    assert len(journal.read_text().splitlines()) == 1 + 2
    with pytest.raises(InputError, match=r"made with other settings: .*`difference` was False"):
        label([tmp_path / "whole.xyz"], tmp_path / "killed.xyz", difference=True)
    done = []
    label([frames], tmp_path / "killed.xyz", progress=lambda number, total: done.append(number))
    assert done == [3]
    assert (tmp_path / "killed.xyz").read_bytes() == (tmp_path / "whole.xyz").read_bytes()
    assert not journal.exists()


def test_what_does_not_fit_is_refused(tmp_path: Path):
    frames, new = _structures(tmp_path / "frames.xyz", 1), tmp_path / "new.xyz"
    with pytest.raises(InputError, match=r"`corrections` must all be trained on differences .* level of theory 'PBE'"):
        label([frames], new, corrections=[_correction(tmp_path, 0, "PBE")])
    both = [_correction(tmp_path, 0), _correction(tmp_path, 1, "PBE0 minus GFN2-xTB")]
    with pytest.raises(InputError, match="differences of one method"):
        label([frames], new, corrections=both)
    with pytest.raises(InputError, match="`corrections` must be absent with `difference`"):
        label([frames], new, corrections=both[:1], difference=True)
    with pytest.raises(InputError, match="`level_of_theory` is of the labels in the files"):
        label([frames], new, level_of_theory="PBE")
    with pytest.raises(InputError, match="energy"):
        label([frames], new, difference=True)
    with pytest.raises(InputError, match="`paths` must name at least one file"):
        label([], new)
    radical = tmp_path / "radical.xyz"
    write(radical, find_structure("ethanol")[:-1])
    with pytest.raises(InputError, match="electrons"):
        label([radical], new)
    assert not new.exists()


def test_an_output_is_not_overwritten(tmp_path: Path):
    frames = _structures(tmp_path / "frames.xyz", 1)
    before = frames.read_bytes()
    with pytest.raises(InputError, match=r"`output`: .*frames.xyz exists and would be overwritten"):
        label([frames], frames)
    assert frames.read_bytes() == before


class _Failing(LennardJones):
    def calculate(self, *args, **kwargs):
        raise CalculationFailed("no convergence")


@pytest.mark.parametrize("difference", [False, True])
def test_frames_that_the_engine_fails_for_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: bool
):
    frames = tmp_path / f"frames{difference}.xyz"
    label([_structures(tmp_path / "frames.xyz")], frames)
    expected = label([frames], tmp_path / "whole.xyz", difference=difference).select(np.array([0, 2]))
    made = iter([engine_calculator(), _Failing(), engine_calculator()])
    monkeypatch.setattr("ggnn_ff.label.engine_calculator", lambda engine: next(made))
    labelled = label([frames], tmp_path / "new.xyz", difference=difference)
    assert labelled.level_of_theory == expected.level_of_theory
    for name in ("positions", "energy", "forces"):
        np.testing.assert_allclose(getattr(labelled, name), getattr(expected, name), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(read_frames(tmp_path / "new.xyz").positions, labelled.positions)
    assert not (tmp_path / "new.xyz.journal").exists()


def test_a_frame_that_failed_is_named_and_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def kill(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    made = iter([engine_calculator(), _Failing(), engine_calculator()])
    monkeypatch.setattr("ggnn_ff.label.engine_calculator", lambda engine: next(made))
    said = []
    monkeypatch.setattr("ggnn_ff.label.tell", said.append)
    frames = _structures(tmp_path / "frames.xyz")
    with pytest.raises(KeyboardInterrupt):
        label([frames], tmp_path / "new.xyz", progress=kill)
    assert len(label([frames], tmp_path / "new.xyz")) == 2
    assert said == ["left out 1 of 3 frames, for which GFN2-xTB failed: 1 (frame 1: no convergence)"]


def test_an_engine_that_fails_from_the_first_frame_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ggnn_ff.label.engine_calculator", lambda engine: _Failing())
    with pytest.raises(InputError, match=r"GFN2-xTB failed for frame 0 of all \(no convergence\) before it had done"):
        label([_structures(tmp_path / "frames.xyz", 2)], tmp_path / "new.xyz")


def test_the_journal_names_what_the_labels_depend_on(tmp_path: Path):
    frames = _structures(tmp_path / "frames.xyz", 1)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label([frames], tmp_path / "new.xyz", corrections=[_correction(tmp_path, 0)], progress=stop)
    settings = json.loads((tmp_path / "new.xyz.journal").read_text().splitlines()[0])
    assert settings["corrections"] == [load_potential(tmp_path / "correction0").contract.identity]
    assert settings["engine"].startswith("gfn2-xtb (tblite ")


def test_the_command_says_what_it_wrote(tmp_path: Path):
    frames, new = _structures(tmp_path / "frames.xyz", 2), tmp_path / "new.xyz"
    arguments = ["label", str(frames), "-o", str(new), "--correction", str(_correction(tmp_path, 0))]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "2 frames of PBE, estimated from GFN2-xTB in" in result.output
    assert len(read_frames(new)) == 2
