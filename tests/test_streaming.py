"""Long trajectories: the fast reader reads what ASE reads, files beyond memory lie on disk and leave nothing there."""

import gc

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import find_mic
from ase.io.extxyz import write_extxyz

from ggnn_ff.errors import InputError
from ggnn_ff.stability import blocks, extxyz, trajectory
from ggnn_ff.stability.ase_traj import read_uniform_traj
from ggnn_ff.stability.extxyz import read_uniform
from ggnn_ff.stability.report import check, check_trajectory
from ggnn_ff.stability.structure import shortest_images
from ggnn_ff.stability.trajectory import read_trajectory

N_FRAMES = 40
COLUMNS = ["symbols", "positions", "momenta"]


def made(n_frames=N_FRAMES, cell=None):
    """Water that shakes, as `ggnn-ff md` writes it; a cell may change."""
    random = np.random.default_rng(0)
    frames = []
    for step in range(n_frames):
        atoms = molecule("H2O")
        if cell is not None:
            atoms.set_cell(np.array(cell) * (1 + 0.001 * step))
            atoms.pbc = [True, True, False]
        atoms.positions += 0.02 * random.normal(size=(3, 3))
        atoms.set_momenta(random.normal(size=(3, 3)))
        atoms.calc = SinglePointCalculator(atoms, energy=-2000.0 + random.normal())
        atoms.info = {"step": step, "time_fs": 0.5 * step}
        frames.append(atoms)
    return frames


def write(path, frames):
    with open(path, "w") as file:
        write_extxyz(file, frames, columns=COLUMNS)
    return path


def assert_equal(found, expected):
    for name in ("numbers", "masses", "positions", "cell", "pbc", "times_fs", "momenta"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(found.energies.potential, expected.energies.potential)
    np.testing.assert_allclose(found.energies.kinetic, expected.energies.kinetic, rtol=1e-12)
    assert found.notes == expected.notes


def without_fast_reader(monkeypatch, path):
    with monkeypatch.context() as patch:
        patch.setattr(trajectory, "read_uniform", lambda path: None)
        return read_trajectory(path)


@pytest.mark.parametrize("cell", [None, [[9.0, 0, 0], [1.0, 8.0, 0], [0, 0, 7.0]]])
@pytest.mark.parametrize("block", [1, 700, 10**6])
def test_fast_reader_reads_what_ase_reads(tmp_path, monkeypatch, cell, block):
    path = write(tmp_path / "run.xyz", made(cell=cell))
    monkeypatch.setattr(extxyz, "_BLOCK_BYTES", block)
    found, cut = read_uniform(path)
    assert not cut
    assert_equal(found, without_fast_reader(monkeypatch, path))
    np.testing.assert_allclose(found.positions, [frame.positions for frame in made(cell=cell)], atol=1e-8)


@pytest.mark.parametrize("in_memory", [0, 10**9])
@pytest.mark.parametrize("tail", ["3", "3\nProperties=species:S:1", "3\ncomment\nO 0.0 0.0 0.0\nH 1.0", "\n\n"])
def test_half_written_end_is_left_out(tmp_path, monkeypatch, in_memory, tail):
    monkeypatch.setattr(blocks, "LARGEST_IN_MEMORY", in_memory)
    whole = read_trajectory(write(tmp_path / "run.xyz", made()))
    with open(tmp_path / "run.xyz", "a") as file:
        file.write(tail)
    found = read_trajectory(tmp_path / "run.xyz")
    np.testing.assert_array_equal(found.positions, whole.positions)
    assert len(found.notes) == bool(tail.strip())
    assert without_fast_reader(monkeypatch, tmp_path / "run.xyz").notes == found.notes


@pytest.mark.parametrize("cell", [None, [[9.0, 0, 0], [1.0, 8.0, 0], [0, 0, 7.0]]])
@pytest.mark.parametrize("in_one", [1, 7, 10**6])
def test_fast_reader_of_traj_files_reads_what_ase_reads(tmp_path, monkeypatch, cell, in_one):
    frames = made(cell=cell)
    for atoms in frames:
        atoms.set_masses([16.0, 2.0, 2.0])
        atoms.set_tags([1, 2, 3])
    ase.io.write(tmp_path / "run.traj", frames)
    monkeypatch.setattr(blocks, "CHUNK_VALUES", 9 * in_one)
    found = read_uniform_traj(tmp_path / "run.traj")
    with monkeypatch.context() as patch:
        patch.setattr(trajectory, "read_uniform_traj", lambda path: None)
        expected = read_trajectory(tmp_path / "run.traj")
    assert_equal(found, expected)
    np.testing.assert_array_equal(found.positions, [frame.positions for frame in frames])
    assert_equal(read_trajectory(tmp_path / "run.traj"), expected)


def test_traj_files_of_several_layouts(tmp_path):
    """What only some frames have is left out; other atoms are left to ASE, who refuses them; so is a cut file."""
    frames = made()
    frames[7].calc = None
    frames[8].info = {}
    del frames[9].arrays["momenta"]
    ase.io.write(tmp_path / "some.traj", frames)
    found = read_uniform_traj(tmp_path / "some.traj")
    assert len(found) == N_FRAMES
    assert (found.energies, found.times_fs, found.momenta) == (None, None, None)
    ase.io.write(tmp_path / "other.traj", [*made(), molecule("CH4")])
    assert read_uniform_traj(tmp_path / "other.traj") is None
    with pytest.raises(InputError, match="frame 40 is CH4"):
        read_trajectory(tmp_path / "other.traj")
    ase.io.write(tmp_path / "periodic.traj", [*made(), made(cell=np.eye(3) * 9.0)[0]])  # writes the header again
    assert read_uniform_traj(tmp_path / "periodic.traj") is None
    assert len(read_trajectory(tmp_path / "periodic.traj", frame_interval_fs=0.5)) == N_FRAMES + 1
    data = (tmp_path / "some.traj").read_bytes()
    (tmp_path / "cut.traj").write_bytes(data[: len(data) // 2])
    assert read_uniform_traj(tmp_path / "cut.traj") is None


def other_columns(lines):
    return [line.replace(":momenta:R:3", ":velo:R:3") for line in lines]


def other_atoms(lines):
    return [*lines[:-1], "C" + lines[-1][1:]]


def other_comment(lines):
    lines[-4] = lines[-4].replace("step=", "note=hot step=")
    return lines


def without_energy(lines):
    return [*lines[:-4], " ".join(word for word in lines[-4].split() if "energy" not in word) + "\n", *lines[-3:]]


@pytest.mark.parametrize("change", [other_columns, other_atoms, other_comment, without_energy])
def test_other_layouts_are_left_to_ase(tmp_path, change):
    lines = write(tmp_path / "run.xyz", made()).read_text().splitlines(keepends=True)
    (tmp_path / "run.xyz").write_text("".join(change(lines)))
    assert read_uniform(tmp_path / "run.xyz") is None


def test_what_only_some_frames_have_is_left_out(tmp_path):
    frames = made()
    frames[7].calc = None
    frames[8].info = {}
    del frames[9].arrays["momenta"]
    ase.io.write(tmp_path / "run.xyz", frames, format="extxyz")
    found = read_trajectory(tmp_path / "run.xyz")
    assert len(found) == N_FRAMES
    assert (found.energies, found.times_fs, found.momenta) == (None, None, None)


@pytest.mark.parametrize("name", ["run.xyz", "run.traj"])
def test_large_arrays_lie_in_files_that_go_away(tmp_path, monkeypatch, name):
    frames = made()
    path = tmp_path / name
    if name.endswith("xyz"):
        write(path, frames)
    else:
        ase.io.write(path, frames)
    small = read_trajectory(path, frame_interval_fs=0.5)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(blocks.tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(blocks, "LARGEST_IN_MEMORY", 1000)
    made_files = []
    real = blocks.tempfile.TemporaryFile
    monkeypatch.setattr(blocks.tempfile, "TemporaryFile", lambda: made_files.append(real()) or made_files[-1])
    large = read_trajectory(path, frame_interval_fs=0.5)
    assert_equal(large, small)
    assert len(made_files) >= 2
    assert not list(temporary.iterdir())  # they have no names even now
    assert check(large).verdicts == check(small).verdicts
    before = large.positions[3].copy()
    large.positions[3] += 1.0  # in memory only
    np.testing.assert_array_equal(large.positions[3], before + 1.0)
    made_files.clear()
    del large
    gc.collect()
    assert not list(temporary.iterdir())


def test_verdicts_do_not_depend_on_how_much_is_held_at_once(tmp_path, monkeypatch):
    write(tmp_path / "run.xyz", made(60))
    whole = check_trajectory(tmp_path / "run.xyz", reference=tmp_path / "run.xyz").verdicts
    monkeypatch.setattr(blocks, "CHUNK_VALUES", 20)
    parts = check_trajectory(tmp_path / "run.xyz", reference=tmp_path / "run.xyz").verdicts
    for found, expected in zip(parts, whole, strict=True):
        assert (found.name, found.passed) == (expected.name, expected.passed)
        if expected.value is None:
            assert found.value is None
        else:
            assert found.value == pytest.approx(expected.value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, True, False)])
def test_shortest_images_are_those_of_ase(pbc):
    vectors = np.random.default_rng(0).normal(size=(2000, 3)) * 9.0
    for cell in (np.diag([5.0, 6.0, 7.0]), np.array([[5.0, 0, 0], [4.0, 5.0, 0], [-3.0, 2.0, 6.0]])):
        found = np.linalg.norm(shortest_images(vectors, cell, np.array(pbc)), axis=1)
        np.testing.assert_allclose(found, find_mic(vectors, cell, pbc)[1], atol=1e-12)


def test_rows_of_any_number_make_one_array(monkeypatch):
    for in_memory in (0, 10**9):
        monkeypatch.setattr(blocks, "LARGEST_IN_MEMORY", in_memory)
        rows = blocks.Rows(2)
        for count in (0, 3, 1):
            rows.extend(np.full((count, 2), count, dtype=np.float32))
        np.testing.assert_array_equal(rows.array(), [[3, 3], [3, 3], [3, 3], [1, 1]])
    assert blocks.Rows(3, 3).array().shape == (0, 3, 3)
