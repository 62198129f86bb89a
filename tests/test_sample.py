"""Sampling labels what it says, survives a kill, and refuses to mix runs."""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.optimize import BFGS

from ggnn_ff.data.engines import engine_calculator, one_thread
from ggnn_ff.data.journal import Journal
from ggnn_ff.data.readers import read_frames
from ggnn_ff.data.sample import sample
from ggnn_ff.data.structures import COMMON_NAMES, find_structure
from ggnn_ff.errors import InputError

pytest.importorskip("tblite", reason="sampling needs the extra `sample`")

SHORT = {"frames": 8, "stride": 5, "equilibration": 10}


def test_sampled_frames_carry_the_energy_and_forces_of_the_engine(tmp_path: Path, capfd: pytest.CaptureFixture):
    seen = []
    npz = sample("ethanol", tmp_path / "ethanol", **SHORT, progress=lambda done, total: seen.append((done, total)))
    assert capfd.readouterr() == ("", "")
    assert seen == [(done, 8) for done in range(1, 9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ethanol.npz", "ethanol.xyz"]
    frames, twin = read_frames(npz), read_frames(tmp_path / "ethanol.xyz")
    assert (len(frames), frames.elements) == (8, ["H", "C", "O"])
    assert frames.level_of_theory == twin.level_of_theory == "GFN2-xTB"
    np.testing.assert_allclose(twin.forces, frames.forces, rtol=0, atol=1e-8)
    for index in (0, 7):
        atoms = Atoms(frames.numbers[frames.rows(index)], frames.positions[frames.rows(index)])
        atoms.calc = engine_calculator()
        assert atoms.get_potential_energy() == pytest.approx(frames.energy[index], abs=1e-9)
        np.testing.assert_allclose(atoms.get_forces(), frames.forces[frames.rows(index)], rtol=0, atol=1e-9)
    assert np.abs(np.diff(frames.positions.reshape(8, -1), axis=0)).max(axis=1).min() > 0.01


def test_sampling_has_the_temperature_asked_for(tmp_path: Path):
    # in equilibrium a harmonic molecule has (3 N - 6) k T / 2 above its minimum
    frames = read_frames(sample("water", tmp_path / "w", frames=300, stride=10, temperature=500.0))
    atoms = Atoms(frames.numbers[:3], frames.positions[:3])
    atoms.calc = engine_calculator()
    BFGS(atoms, logfile=None).run(fmax=1e-3)
    per_mode = (frames.energy.mean() - atoms.get_potential_energy()) / 3
    assert per_mode == pytest.approx(0.5 * 8.617e-5 * 500, rel=0.25)


def test_killed_run_resumes_to_the_same_files(tmp_path: Path):
    whole = sample("water", tmp_path / "whole", **SHORT)
    script = (
        "import os, signal, sys\n"
        "from ggnn_ff.data.sample import sample\n"
        "def kill(done, total):\n"
        "    if done == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sample('water', sys.argv[1], frames=8, stride=5, equilibration=10, progress=kill)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "killed")], check=False)
    assert killed.returncode == -signal.SIGKILL
    journal = tmp_path / "killed.journal"
    assert not (tmp_path / "killed.npz").exists()
    assert len(journal.read_text().splitlines()) == 3 + 3  # settings, relaxed and equilibrated, frames
    with open(journal, "a") as file:
        file.write('{"energy": -1')  # half a record, as a kill may leave it
    done = []
    resumed = sample("water", tmp_path / "killed", **SHORT, progress=lambda n, total: done.append(n))
    assert done == [4, 5, 6, 7, 8]
    assert resumed.read_bytes() == whole.read_bytes()
    assert (tmp_path / "killed.xyz").read_bytes() == (tmp_path / "whole.xyz").read_bytes()
    assert not journal.exists()


def test_an_equilibration_that_was_stopped_goes_on_to_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = sys.modules["ggnn_ff.data.sample"]
    monkeypatch.setattr(module, "_EQUILIBRATION_PART", 4)
    whole = sample("water", tmp_path / "whole", **SHORT)
    check, checked = module._check_whole, []

    def stop(*arguments) -> None:
        checked.append(check(*arguments))
        if len(checked) == 3:  # of parts of 4, 4 and 2 steps
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_check_whole", stop)
    with pytest.raises(KeyboardInterrupt):
        sample("water", tmp_path / "stopped", **SHORT)
    records = [json.loads(line) for line in (tmp_path / "stopped.journal").read_text().splitlines()]
    assert [record["equilibrated"] for record in records[2:]] == [4, 8]
    assert sample("water", tmp_path / "stopped", **SHORT).read_bytes() == whole.read_bytes()
    assert len(checked) == 3 + 1 + SHORT["frames"]


def test_seeds_differ_and_one_seed_does_not(tmp_path: Path):
    first, again, other = (
        read_frames(sample("water", tmp_path / name, seed=seed, **SHORT))
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    np.testing.assert_array_equal(first.positions, again.positions)
    assert np.abs(first.positions - other.positions).max() > 0.01


def test_finished_output_is_kept_and_other_settings_are_refused(tmp_path: Path):
    npz = sample("water", tmp_path / "water.npz", **SHORT)
    before = npz.stat().st_mtime_ns
    (tmp_path / "water.xyz").unlink()
    assert sample("water", tmp_path / "water", **SHORT) == npz
    assert npz.stat().st_mtime_ns == before
    assert (tmp_path / "water.xyz").exists()
    with pytest.raises(InputError, match=r"`temperature` was 500.0 and is now 300.0"):
        sample("water", tmp_path / "water", temperature=300.0, **SHORT)
    with pytest.raises(InputError, match=r"`structure` was H2O \w+ and is now CH4"):
        sample("methane", tmp_path / "water", **SHORT)


def test_unfinished_run_refuses_other_settings(tmp_path: Path):
    class InterruptedRunError(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        sample("water", tmp_path / "water", **SHORT, progress=interrupt)
    with pytest.raises(InputError, match=r"water.journal was made with other settings: `seed` was 0 and is now 1"):
        sample("water", tmp_path / "water", **SHORT, seed=1)


def test_foreign_files_are_not_overwritten(tmp_path: Path):
    ase.io.write(tmp_path / "water.xyz", molecule("H2O"))
    with pytest.raises(InputError, match="exists and would be overwritten"):
        sample(tmp_path / "water.xyz", tmp_path / "water", **SHORT)
    (tmp_path / "other.journal").write_text("my diary\n")
    with pytest.raises(InputError, match="not a journal"):
        sample("water", tmp_path / "other", **SHORT)


def test_molecule_that_falls_apart_stops_with_its_frames_kept(tmp_path: Path):
    with pytest.raises(InputError, match=r"fell apart.*the bond O0-O1 .*frames until then are in .*partial.npz"):
        sample("H2O2", tmp_path / "hot", frames=200, stride=5, equilibration=0, temperature=6000.0)
    kept = read_frames(tmp_path / "hot.partial.npz")
    assert 0 < len(kept) < 200
    assert (tmp_path / "hot.journal").exists()
    assert not (tmp_path / "hot.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 0}, "`frames` must be positive, got 0"),
        ({"temperature": -1.0}, "`temperature` must be positive"),
        ({"equilibration": -1}, "`equilibration` and `seed`"),
        ({"engine": "gfn2"}, "`engine` must be gfn2-xtb, or .*did you mean 'gfn2-xtb'"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        sample("water", tmp_path / "water", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms("He"), "at least two atoms"),
        (bulk("NaCl", "rocksalt", a=5.64), "must be a molecule"),
        (Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.74]], constraint=FixAtoms([0])), "must have no constraints"),
        (Atoms("OH", positions=[[0, 0, 0], [0, 0, 1]]), "9 electrons, of which 0 cannot be unpaired"),
    ],
)
def test_structures_that_cannot_be_sampled_are_refused(tmp_path: Path, atoms: Atoms, message: str):
    with pytest.raises(InputError, match=message):
        sample(atoms, tmp_path / "out", **SHORT)


def test_structures_are_found_by_name_file_and_smiles(tmp_path: Path):
    assert find_structure("ethanol").get_chemical_formula() == "C2H6O"
    assert find_structure("CH3CHO").get_chemical_formula() == "C2H4O"
    for name in COMMON_NAMES:
        assert len(find_structure(name)) > 2
    ase.io.write(tmp_path / "acid.xyz", molecule("HCOOH"))
    assert find_structure(tmp_path / "acid.xyz").get_chemical_formula() == "CH2O2"
    with pytest.raises(InputError, match="must be a file that exists"):
        find_structure(str(tmp_path / "absent.xyz"))


def test_smiles_become_structures():
    pytest.importorskip("rdkit", reason="SMILES need the extra `smiles`")
    assert find_structure("CC(=O)Oc1ccccc1C(=O)O").get_chemical_formula() == "C9H8O4"
    assert find_structure("CO").get_chemical_formula() == "CO"
    assert find_structure("smiles:CO").get_chemical_formula() == "CH4O"
    assert find_structure("[NH4+]").get_initial_charges().sum() == 1
    with pytest.raises(InputError, match=r"got 'ethanl'.*did you mean 'ethanol'"):
        find_structure("ethanl")


def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(InputError, match=r'pip install "ggnn-ff\[smiles\]"'):
        find_structure("CCO")
    with pytest.raises(InputError, match=r'pip install "ggnn-ff\[sample\]"'):
        engine_calculator()


def test_journal_survives_a_cut_at_any_byte(tmp_path: Path):
    path = tmp_path / "journal"
    settings = {"seed": 1}
    journal = Journal(path, settings)
    records = [{"value": number / 3} for number in range(3)]
    for record in records:
        journal.append(record)
    journal.close()
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        cut = Journal(path, settings)
        kept = len(cut.records)
        assert cut.records == records[:kept]
        assert kept == max(0, content[:length].count(b"\n") - 1)
        for record in records[kept:]:
            cut.append(record)
        cut.close()
        assert path.read_bytes() == content


def test_one_thread_is_asked_for_and_given_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    openmp = ctypes.CDLL("libgomp.so.1")
    before = openmp.omp_get_max_threads()
    openmp.omp_set_num_threads(3)
    with one_thread():
        assert openmp.omp_get_max_threads() == 1
    assert openmp.omp_get_max_threads() == 3
    openmp.omp_set_num_threads(before)

    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", absent)
    with pytest.raises(InputError, match="OMP_NUM_THREADS=1"), one_thread():
        pass


def test_sampling_does_not_depend_on_the_number_of_threads(tmp_path: Path):
    script = (
        "import sys; from ggnn_ff.data.sample import sample\n"
        "sample('ethanol', sys.argv[1], frames=6, stride=10, equilibration=20)"
    )
    contents = []
    for threads in ("1", "2"):
        output = tmp_path / threads
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", script, str(output)], check=True, env=environment)
        contents.append(Path(f"{output}.npz").read_bytes())
        assert json.loads(str(np.load(f"{output}.npz")["settings"]))["frames"] == 6
    assert contents[0] == contents[1]


def test_a_journal_on_a_full_disk_is_named_and_goes_on(tmp_path: Path):
    path, limits = tmp_path / "journal", resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal(path, {"seed": 1})
    journal.append({"value": 1})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
        with pytest.raises(OSError, match=r"could not write .*journal: .*run again to go on"):
            journal.append({"value": list(range(100))})
        journal.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again = Journal(path, {"seed": 1})
    with pytest.raises(InputError, match="another process writes to"):
        Journal(path, {"seed": 1})
    again.close()
    assert again.records == [{"value": 1}]
