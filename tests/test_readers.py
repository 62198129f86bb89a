"""Every layout is read to the same numbers, and what cannot be right is refused with a message to act on."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import shared_data

from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.data.plausibility import question_units
from ggnn_ff.data.readers import read_frames
from ggnn_ff.data.write import write_extxyz, write_md17_npz
from ggnn_ff.errors import InputError
from ggnn_ff.units import ENERGY_UNITS, LENGTH_UNITS

KCAL = ENERGY_UNITS["kcal/mol"]


def vibrating_methane(n_frames: int = 40) -> LabelledFrames:
    """Methane with harmonic C-H bonds of 30 eV/angstrom^2: labels whose units can be told."""
    rest = molecule("CH4").positions
    positions = rest + np.random.default_rng(0).normal(scale=0.03, size=(n_frames, 5, 3))
    vectors = positions[:, 1:] - positions[:, :1]
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    pull = -30.0 * (lengths - 1.09) * vectors / lengths
    forces = np.concatenate([-pull.sum(axis=1, keepdims=True), pull], axis=1)
    return LabelledFrames(
        numbers=np.tile([6, 1, 1, 1, 1], n_frames),
        positions=positions.reshape(-1, 3),
        forces=forces.reshape(-1, 3),
        n_atoms=np.full(n_frames, 5),
        energy=15.0 * ((lengths - 1.09) ** 2).sum(axis=(1, 2)) - 1100.0,
        cell=np.zeros((n_frames, 3, 3)),
        pbc=np.zeros((n_frames, 3), dtype=bool),
        level_of_theory="harmonic",
    )


def md17_arrays(frames: LabelledFrames) -> dict[str, np.ndarray]:
    n_frames = len(frames)
    return {
        "R": frames.positions.reshape(n_frames, -1, 3),
        "E": frames.energy[:, None] / KCAL,
        "F": frames.forces.reshape(n_frames, -1, 3) / KCAL,
        "z": frames.numbers[: frames.n_atoms[0]].astype(np.uint8),
    }


def assert_same_frames(one: LabelledFrames, two: LabelledFrames, tolerance: float) -> None:
    for name in ("numbers", "n_atoms", "pbc"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for name in ("positions", "forces", "energy", "cell"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=0, atol=tolerance)


@pytest.mark.parametrize("column", [True, False])
def test_md17_layout_is_read_whatever_the_suffix(tmp_path: Path, column: bool):
    frames = vibrating_methane()
    arrays = md17_arrays(frames)
    if not column:
        arrays["E"] = arrays["E"][:, 0]
    path = tmp_path / "data.bin"
    with open(path, "wb") as file:
        np.savez(file, name=np.array("methane"), theory=np.array(b"CCSD"), md5=np.array("0"), **arrays)
    read = read_frames(path)
    assert_same_frames(read, frames, 1e-12)
    assert read.level_of_theory == "CCSD"
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read.source == "data.bin"


def test_rmd17_layout_is_read(tmp_path: Path):
    frames = vibrating_methane()
    arrays = md17_arrays(frames)
    np.savez(
        tmp_path / "rmd17.npz",
        coords=arrays["R"],
        energies=arrays["E"][:, 0],
        forces=arrays["F"],
        nuclear_charges=arrays["z"],
        old_indices=np.arange(len(frames)),
        old_energies=arrays["E"],
        old_forces=arrays["F"],
    )
    read = read_frames(tmp_path / "rmd17.npz", level_of_theory="PBE/def2-SVP")
    assert_same_frames(read, frames, 1e-12)
    assert read.level_of_theory == "PBE/def2-SVP"


def test_extxyz_is_read_and_unused_cells_are_dropped(tmp_path: Path):
    frames = vibrating_methane()
    structures = [frames.atoms(index) for index in range(len(frames))]
    for atoms in structures:
        atoms.cell = [50.0, 50.0, 50.0]
        atoms.info["level_of_theory"] = "harmonic"
    ase.io.write(tmp_path / "data.txt", structures, format="extxyz")
    read = read_frames(tmp_path / "data.txt")
    assert_same_frames(read, frames, 1e-8)
    assert read.level_of_theory == "harmonic"


def test_other_formats_of_ase_and_periodic_cells_are_read(tmp_path: Path):
    frames = vibrating_methane()
    structures = [frames.atoms(index) for index in range(len(frames))]
    for atoms in structures:
        atoms.cell = [[9.0, 0.0, 0.0], [1.0, 9.0, 0.0], [0.0, 0.0, 20.0]]
        atoms.pbc = [True, True, False]
        results = atoms.calc.results
        atoms.calc = SinglePointCalculator(atoms, energy=results["energy"], forces=results["forces"])
    ase.io.write(tmp_path / "data.traj", structures)
    read = read_frames(tmp_path / "data.traj")
    np.testing.assert_allclose(read.forces, frames.forces, rtol=0, atol=1e-12)
    np.testing.assert_allclose(read.cell[3], structures[3].cell.array, rtol=0, atol=0)
    np.testing.assert_array_equal(read.pbc, np.tile([True, True, False], (len(frames), 1)))


def test_written_files_are_read_back(tmp_path: Path):
    frames = vibrating_methane()
    write_md17_npz(tmp_path / "out.npz", frames, settings="by hand")
    write_extxyz(tmp_path / "out.xyz", frames)
    assert_same_frames(read_frames(tmp_path / "out.npz"), frames, 1e-12)
    assert_same_frames(read_frames(tmp_path / "out.xyz"), frames, 1e-8)
    assert read_frames(tmp_path / "out.npz").level_of_theory == "harmonic"
    assert read_frames(tmp_path / "out.xyz").level_of_theory == "harmonic"


def test_units_in_the_file_and_units_stated_are_used(tmp_path: Path):
    frames = vibrating_methane()
    arrays = md17_arrays(frames)
    bohr, hartree = LENGTH_UNITS["bohr"], ENERGY_UNITS["hartree"]
    arrays["R"] = arrays["R"] / bohr
    arrays["E"] = arrays["E"] * KCAL / hartree
    arrays["F"] = arrays["F"] * KCAL / hartree * bohr
    np.savez(tmp_path / "stated.npz", **arrays)
    stated = read_frames(tmp_path / "stated.npz", energy_unit="hartree", length_unit="bohr")
    assert_same_frames(stated, frames, 1e-11)
    np.savez(tmp_path / "told.npz", e_unit=np.array("Hartree"), r_unit=np.array("Bohr"), **arrays)
    assert_same_frames(read_frames(tmp_path / "told.npz"), frames, 1e-11)
    np.savez(tmp_path / "odd.npz", e_unit=np.array("furlong"), **arrays)
    with pytest.raises(InputError, match=r"`e_unit`.*got 'furlong'.*energy_unit="):
        read_frames(tmp_path / "odd.npz")


@pytest.mark.parametrize("energy_unit", ENERGY_UNITS)
@pytest.mark.parametrize("length_unit", LENGTH_UNITS)
def test_wrong_units_are_questioned_and_right_ones_are_not(tmp_path: Path, energy_unit: str, length_unit: str):
    frames = vibrating_methane()
    write_md17_npz(tmp_path / "data.npz", frames)
    if (energy_unit, length_unit) == ("kcal/mol", "angstrom"):
        assert len(read_frames(tmp_path / "data.npz", energy_unit=energy_unit, length_unit=length_unit)) == 40
        return
    remedy = 'length_unit="angstrom"' if length_unit != "angstrom" else 'energy_unit="kcal/mol"'
    with pytest.raises(InputError, match=remedy):
        read_frames(tmp_path / "data.npz", energy_unit=energy_unit, length_unit=length_unit)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (-1.0, "gradients"),
        (1 / 51.42, "hartree/bohr beside positions in angstrom"),
        (1 / 0.00103643, r"meV/angstrom or kJ/mol/nm .* If they are kJ/mol/nm, multiply them .* by 0.00103643"),
    ],
)
def test_gradients_and_mixed_units_are_questioned(tmp_path: Path, factor: float, expected: str):
    frames = vibrating_methane()
    frames.forces[:] *= factor
    write_extxyz(tmp_path / "data.xyz", frames)
    with pytest.raises(InputError, match=expected):
        read_frames(tmp_path / "data.xyz")


def test_differences_of_two_methods_may_have_bonds_of_any_stiffness(tmp_path: Path):
    frames = vibrating_methane()
    frames.forces[:] /= 27.2
    frames.energy[:] /= 27.2
    difference = replace(frames, level_of_theory="CCSD minus GFN2-xTB")
    write_extxyz(tmp_path / "data.xyz", difference)
    np.testing.assert_allclose(read_frames(tmp_path / "data.xyz").forces, frames.forces, atol=1e-6)
    with pytest.raises(InputError, match="hartree"):
        question_units(frames)


@pytest.mark.parametrize("kind", ["argon", "relaxed", "few"])
def test_data_without_clear_evidence_pass(kind: str):
    frames = vibrating_methane(3 if kind == "few" else 40)
    if kind == "argon":
        frames.numbers[:] = 18
        frames.positions[:] *= 3.4
    if kind == "relaxed":
        frames.forces[:] = np.random.default_rng(1).normal(scale=1e-3, size=frames.forces.shape)
    if kind == "few":
        frames.forces[:] *= 23.06
    question_units(frames)


@pytest.mark.parametrize(
    ("factor", "message"), [(1 / 27.2114, "in another unit than the forces"), (23.06, "unit"), (-1.0, "wrong sign")]
)
@pytest.mark.parametrize("parts", [("rmd17_ethanol", "test.xyz"), ("3bpa", "train_300K.xyz")])
def test_energies_that_do_not_go_with_the_forces_are_questioned(parts: tuple[str, str], factor: float, message: str):
    frames = read_frames(shared_data(*parts))
    with pytest.raises(InputError, match=f"`energy`: .*{message}"):
        question_units(replace(frames, energy=frames.energy * factor))


@pytest.mark.parametrize(
    ("parts", "energy_unit"),
    [
        (("rmd17_ethanol", "train.xyz"), "eV"),
        (("rmd17_ethanol", "test.xyz"), "eV"),
        (("3bpa", "train_300K.xyz"), "eV"),
        (("water_pbe0", "train.xyz"), "eV"),
        (("md17_ethanol", "ethanol_first2000.npz"), "kcal/mol"),
    ],
)
def test_real_data_pass_and_are_questioned_in_wrong_units(parts: tuple[str, str], energy_unit: str):
    path = shared_data(*parts)
    frames = read_frames(path)
    for unit, size in ENERGY_UNITS.items():
        if unit != energy_unit:
            scale = size / ENERGY_UNITS[energy_unit]
            wrong = LabelledFrames(
                frames.numbers,
                frames.positions,
                frames.forces * scale,
                frames.n_atoms,
                frames.energy * scale,
                frames.cell,
                frames.pbc,
            )
            with pytest.raises(InputError, match=f'energy_unit="{energy_unit}"'):
                question_units(wrong, energy_unit=unit)
    for unit, size in LENGTH_UNITS.items():
        if unit != "angstrom":
            wrong = LabelledFrames(
                frames.numbers,
                frames.positions * size,
                frames.forces / size,
                frames.n_atoms,
                frames.energy,
                frames.cell * size,
                frames.pbc,
            )
            with pytest.raises(InputError, match='length_unit="angstrom"'):
                question_units(wrong, energy_unit=energy_unit, length_unit=unit)


def test_first_md17_ethanol_frame_has_its_published_values():
    frames = read_frames(shared_data("md17_ethanol", "ethanol_first2000.npz"))
    assert (len(frames), frames.elements) == (2000, ["H", "C", "O"])
    # -97208.40600498 kcal/mol, the total energy of ethanol: -154.9 hartree
    assert frames.energy[0] / ENERGY_UNITS["hartree"] == pytest.approx(-154.912, abs=2e-3)
    assert frames.energy[0] / KCAL == pytest.approx(-97208.40600498, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"R": None}, "lacks `R`.*R, E, F, z.*it has E, F, z"),
        ({"F": None, "z": None}, "lacks `F`, `z`"),
        ({"dipoles": np.zeros(5)}, "unknown key `dipoles`"),
        ({"F": np.zeros((40, 4, 3))}, r"`F`.*must have shape \(40, 5, 3\).*got \(40, 4, 3\)"),
        ({"E": np.zeros(39)}, r"`E`.*must have shape \(40,\).*got \(39,\)"),
        ({"z": np.ones(6, dtype=int)}, r"`z`.*must have shape \(5,\).*got \(6,\)"),
        ({"z": np.zeros(5, dtype=int)}, "atomic numbers must be from 1 to 118, got 0"),
        ({"R": np.zeros((40, 15))}, r"`R`.*must have shape \(frames, atoms, 3\), got \(40, 15\)"),
        ({"R": np.zeros((0, 5, 3))}, "0 frames"),
        ({"E": np.array(["a"] * 40)}, "`E`.*real numbers"),
        ({"z": np.array([6, 1, 1, 1, None], dtype=object)}, "pickled"),
    ],
)
def test_unusable_npz_is_refused(tmp_path: Path, change: dict[str, np.ndarray | None], message: str):
    arrays = {key: array for key, array in (md17_arrays(vibrating_methane()) | change).items() if array is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_frames(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("positions", np.nan, "`positions` must be finite.*atom 2 of frame 7"),
        ("forces", np.inf, "`forces` must be finite.*atom 2 of frame 7"),
        ("energy", np.nan, "`energy` must be finite.*frame 37"),
    ],
)
def test_nan_and_infinity_are_refused_and_located(tmp_path: Path, name: str, value: float, message: str):
    frames = vibrating_methane()
    getattr(frames, name)[37] = value
    write_md17_npz(tmp_path / "bad.npz", frames)
    with pytest.raises(InputError, match=message):
        read_frames(tmp_path / "bad.npz")


def test_missing_empty_truncated_and_foreign_files_are_refused(tmp_path: Path):
    write_md17_npz(tmp_path / "good.npz", vibrating_methane())
    write_extxyz(tmp_path / "good.xyz", vibrating_methane())
    content = (tmp_path / "good.npz").read_bytes()
    lines = (tmp_path / "good.xyz").read_text().splitlines(keepends=True)
    (tmp_path / "empty.npz").touch()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "cut.xyz").write_text("".join(lines[:-2]))
    (tmp_path / "cut_number.xyz").write_text("".join(lines)[:-4])
    (tmp_path / "foreign.npz").write_bytes(b"\x00\x01 not a data set")
    np.save(tmp_path / "array.npy", np.zeros(3))
    expected = {
        "god.npz": "must be a file that exists.*did you mean 'good.npz'",
        "empty.npz": "is empty",
        "cut.npz": "truncated",
        "cut.xyz": "truncated",
        "cut_number.xyz": "does not end in a newline",
        "foreign.npz": "cannot be read",
        "array.npy": "single numpy array",
    }
    for name, message in expected.items():
        with pytest.raises(InputError, match=message):
            read_frames(tmp_path / name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("energy=-1.0", "energy=NA", "`energy` must be one number, got NA in frame 0"),
        ("energy=-1.0", 'energy="1 2 3"', r"`energy` must be one number, got \(3,\) in frame 0"),
        ("forces:R:3", "forces:R:1:more:R:2", "`forces` must be 3 numbers for each of 3 atoms"),
        ("forces:R:3", "forces:R:2:more:R:1", "`forces` must be 3 numbers for each of 3 atoms"),
    ],
)
def test_labels_of_another_shape_are_refused(tmp_path: Path, old: str, new: str, message: str):
    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((3, 3)))
    ase.io.write(tmp_path / "right.xyz", atoms, format="extxyz")
    text = (tmp_path / "right.xyz").read_text()
    assert old in text
    (tmp_path / "wrong.xyz").write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        read_frames(tmp_path / "wrong.xyz")


def test_npz_of_text_is_refused(tmp_path: Path):
    write_md17_npz(tmp_path / "good.npz", vibrating_methane())
    with zipfile.ZipFile(tmp_path / "good.npz") as good, zipfile.ZipFile(tmp_path / "text.npz", "w") as bad:
        for name in good.namelist():
            bad.writestr(*(("E", "twelve") if name == "E.npy" else (name, good.read(name))))
    with pytest.raises(InputError, match=r"`E` in .* must hold real numbers, got no array"):
        read_frames(tmp_path / "text.npz")


def test_extxyz_without_labels_is_refused(tmp_path: Path):
    atoms = molecule("H2O")
    atoms.info["REF_energy"] = -1.0
    ase.io.write(tmp_path / "bare.xyz", [atoms], format="extxyz")
    with pytest.raises(InputError, match=r"frame 0 .*no energy and no forces.*It has REF_energy"):
        read_frames(tmp_path / "bare.xyz")


def test_misspelt_units_name_the_nearest(tmp_path: Path):
    with pytest.raises(InputError, match=r"`energy_unit` must be one of .*got 'kcal'.*did you mean 'kcal/mol'"):
        read_frames(tmp_path / "any", energy_unit="kcal")
    with pytest.raises(InputError, match=r"`length_unit` .*got 'Angstrom'.*did you mean 'angstrom'"):
        read_frames(tmp_path / "any", length_unit="Angstrom")


def test_a_file_of_quite_another_name_is_not_suggested(tmp_path: Path):
    (tmp_path / "top.xyz").touch()
    with pytest.raises(InputError) as error:
        read_frames(tmp_path / "nope.npz")
    assert "did you mean" not in str(error.value)
