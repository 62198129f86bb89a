"""Potentials on disk: what comes back, what is refused, and what a failure leaves behind."""

import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from safetensors.torch import load_file, save_file

import ggnn_ff
from ggnn_ff import export
from ggnn_ff.errors import InputError
from ggnn_ff.export import CONTRACT, WEIGHTS, export_torchscript, load_potential, write_potential
from ggnn_ff.graph import from_atoms
from ggnn_ff.models import MODELS
from ggnn_ff.neighbors import neighbor_list
from ggnn_ff.potential import Potential, set_dtype


def frame():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=3)
    return atoms


@pytest.fixture
def copy(potential_folder, tmp_path) -> Path:
    """A durable form that a test may damage."""
    return shutil.copytree(potential_folder, tmp_path / "run")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewrite_contract(folder: Path, change) -> None:
    contract = json.loads((folder / CONTRACT).read_text())
    change(contract)
    (folder / CONTRACT).write_text(json.dumps(contract))


# --- round trip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "energy_limit", "forces_limit"), [("float64", 1e-11, 1e-11), (None, 1e-5, 1e-5)])
def test_file_and_folder_agree(potential_folder, potential_file, dtype, energy_limit, forces_limit):
    eager, scripted = load_potential(potential_folder, dtype=dtype), load_potential(potential_file, dtype=dtype)
    assert eager.contract == scripted.contract
    assert eager.dtype == scripted.dtype == (dtype or "float32")
    one, other = eager.evaluate(frame()), scripted.evaluate(frame())
    np.testing.assert_allclose(one.energy, other.energy, rtol=0, atol=energy_limit)
    np.testing.assert_allclose(one.forces, other.forces, rtol=0, atol=forces_limit)


def test_written_again_is_the_same(potential_folder, tmp_path):
    loaded = load_potential(potential_folder)
    write_potential(tmp_path, loaded.module.potential, loaded.contract)
    assert content(tmp_path) == content(potential_folder)


def test_dtype_is_that_of_the_features(potential_folder):
    in_float32, in_float64 = load_potential(potential_folder), load_potential(potential_folder, dtype="float64")
    one, other = in_float32.evaluate(frame()), in_float64.evaluate(frame())
    assert one.energy.dtype == one.forces.dtype == torch.float64
    assert 0 < abs(float(one.energy - other.energy)) < 1e-4
    assert 0 < float((one.forces - other.forces).abs().max()) < 1e-4


def test_evaluation_keeps_no_gradient(potential_folder, potential_file):
    for source in (potential_folder, potential_file):
        loaded = load_potential(source)
        assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
        assert not any(tensor.requires_grad for tensor in loaded.evaluate(frame()))


def test_certificate_is_that_of_a_conservative_symmetric_potential(potential_folder):
    certificate = load_potential(potential_folder).contract.certificate
    assert 0 < certificate.finite_difference_relative_error < 1e-8
    assert certificate.rotation_energy_error_ev < 1e-11
    assert certificate.rotation_forces_error_ev_per_angstrom < 1e-11
    assert certificate.permutation_forces_error_ev_per_angstrom < 1e-11


def test_torchscript_runs_with_torch_alone(potential_file, tmp_path):
    structure = from_atoms(frame())
    edge_index, shifts = neighbor_list(structure, 4.0)
    np.savez(
        tmp_path / "graph.npz",
        positions=structure.positions,
        numbers=structure.numbers,
        cell=structure.cell,
        edge_index=edge_index,
        shifts=shifts,
        batch=structure.batch,
    )
    program = """
        import sys
        for name in ("ggnn_ff", "ase", "vesin_torch", "e3nn", "pydantic", "safetensors"):
            sys.modules[name] = None
        import json, numpy, torch
        module = torch.jit.load(sys.argv[1])
        extra = {"potential.json": ""}
        torch.jit.load(sys.argv[1], _extra_files=extra)
        graph = numpy.load(sys.argv[2])
        keys = ("positions", "numbers", "cell", "edge_index", "shifts", "batch")
        answer = module(*(torch.from_numpy(graph[key]) for key in keys), 1)
        cutoff = json.loads(extra["potential.json"])["cutoff"]
        print(json.dumps([cutoff, answer.energy.tolist(), answer.forces.tolist(), answer.stress.tolist()]))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(potential_file), str(tmp_path / "graph.npz")]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    cutoff, energy, forces, stress = json.loads(output)
    expected = load_potential(potential_file).evaluate(frame())
    assert cutoff == 4.0
    np.testing.assert_allclose(energy, expected.energy, rtol=0, atol=1e-5)
    np.testing.assert_allclose(forces, expected.forces, rtol=0, atol=1e-5)
    assert np.all(np.array(stress) == 0)


# --- what is refused ----------------------------------------------------------------------------------------------

FIELDS = [
    "format_version",
    "package_version",
    "architecture",
    "hyperparameters",
    "elements",
    "cutoff",
    "dtype",
    "length_unit",
    "energy_unit",
    "level_of_theory",
    "training_data",
    "test_errors",
    "example",
    "certificate",
]


def test_fields_are_those_of_the_contract(potential_folder):
    assert set(FIELDS) == set(json.loads((potential_folder / CONTRACT).read_text()))


@pytest.mark.parametrize("field", FIELDS)
def test_missing_field_is_named(copy, field):
    rewrite_contract(copy, lambda contract: contract.pop(field))
    with pytest.raises(
        InputError, match=rf"incomplete or foreign contract and is refused:\n  `{field}`: Field required"
    ):
        load_potential(copy)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 2, "a newer ggnn-ff is needed for 2"),
        ("architecture", "transformer", "known architectures are .*painn"),
        ("elements", ["H", "Cx"], r"not chemical symbols: \['Cx'\]"),
        ("elements", [], "`elements`"),
        ("cutoff", -4.0, "`cutoff`"),
        ("cutoff", 1e9, "`cutoff`"),
        ("dtype", "float16", "`dtype`"),
        ("length_unit", "bohr", "`length_unit`"),
        ("energy_unit", "kcal/mol", "`energy_unit`"),
        ("remark", "mine", "`remark`: Extra inputs are not permitted"),
    ],
)
def test_wrong_field_is_named(copy, field, value, message):
    rewrite_contract(copy, lambda contract: contract.update({field: value}))
    with pytest.raises(InputError, match=message):
        load_potential(copy)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("positions", [[0.0, 0.0, 0.0]], r"`positions` must have the shape \(9, 3\)"),
        ("forces", [[0.0, 0.0]] * 9, r"`forces` must have the shape \(9, 3\)"),
        ("numbers", [200] * 9, "`numbers` must be atomic numbers"),
        ("pbc", [False], "`pbc` three values"),
    ],
)
def test_wrong_example_is_named(copy, field, value, message):
    rewrite_contract(copy, lambda contract: contract["example"].update({field: value}))
    with pytest.raises(InputError, match=message):
        load_potential(copy)


def test_missing_field_inside_a_torchscript_file_is_named(potential_file, tmp_path):
    extra = {CONTRACT: ""}
    module = torch.jit.load(str(potential_file), _extra_files=extra)
    contract = json.loads(extra[CONTRACT])
    del contract["cutoff"]
    path = tmp_path / "short.pt"
    torch.jit.save(module, str(path), _extra_files={CONTRACT: json.dumps(contract)})
    with pytest.raises(
        InputError, match=r"short.pt has an incomplete or foreign contract.*\n  `cutoff`: Field required"
    ):
        load_potential(path)


class Attack:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(potential_file: Path, path: Path, trap: Path) -> None:
    path.write_bytes(pickle.dumps(Attack(trap)))


def saved_by_torch(potential_file: Path, path: Path, trap: Path) -> None:
    torch.save({"weights": Attack(trap)}, path)


def saved_by_old_torch(potential_file: Path, path: Path, trap: Path) -> None:
    torch.save({"weights": Attack(trap)}, path, _use_new_zipfile_serialization=False)


def truncated(potential_file: Path, path: Path, trap: Path) -> None:
    path.write_bytes(potential_file.read_bytes()[: potential_file.stat().st_size // 2])


def cut_at_the_end(potential_file: Path, path: Path, trap: Path) -> None:
    path.write_bytes(potential_file.read_bytes()[:-10])


def random_bytes(potential_file: Path, path: Path, trap: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def empty(potential_file: Path, path: Path, trap: Path) -> None:
    path.touch()


def text(potential_file: Path, path: Path, trap: Path) -> None:
    path.write_text("9\n\nC 0 0 0\n")


@pytest.mark.parametrize(
    "make", [pickled, saved_by_torch, saved_by_old_torch, truncated, cut_at_the_end, random_bytes, empty, text]
)
def test_a_file_that_is_not_a_potential_is_refused_and_not_unpickled(potential_file, tmp_path, make):
    path, trap = tmp_path / "received.pt", tmp_path / "trap"
    make(potential_file, path, trap)
    with pytest.raises(InputError, match=r"received.pt is not a TorchScript file or is truncated .*ggnn-ff export"):
        load_potential(path)
    assert names(tmp_path) == {"received.pt"}


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Attack(tmp_path / "trap")))
    assert names(tmp_path) == {"trap"}


def test_torchscript_without_contract_is_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 1)), str(path))
    with pytest.raises(InputError, match=r"carries no contract; it was not written by `ggnn-ff export`"):
        load_potential(path)


def test_another_module_with_the_contract_is_refused(potential_folder, tmp_path):
    path = tmp_path / "other.pt"
    extra = {CONTRACT: (potential_folder / CONTRACT).read_text()}
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 1)), str(path), _extra_files=extra)
    with pytest.raises(InputError, match=r"other.pt cannot be evaluated; it is not a potential or is damaged"):
        load_potential(path)


@pytest.mark.parametrize("name", [WEIGHTS, CONTRACT])
def test_folder_without_a_part_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"must hold {name}, which is missing; has the training finished"):
        load_potential(copy)


@pytest.mark.parametrize("keep", [0, 6, 200, -100])
def test_damaged_weights_are_refused(copy, keep):
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:keep])
    with pytest.raises(InputError, match=rf"{WEIGHTS} does not fit its contract; it is damaged or foreign"):
        load_potential(copy)


def test_weights_of_another_size_are_refused(copy):
    rewrite_contract(copy, lambda contract: contract["hyperparameters"].update(n_features=32))
    with pytest.raises(InputError, match=r"(?s)does not fit its contract.*size mismatch"):
        load_potential(copy)


def test_unknown_hyperparameter_is_refused(copy):
    rewrite_contract(copy, lambda contract: contract["hyperparameters"].update(n_heads=8))
    with pytest.raises(InputError, match=r"is refused:\n  `hyperparameters.n_heads`: Extra inputs"):
        load_potential(copy)


def test_truncated_contract_is_refused(copy):
    (copy / CONTRACT).write_text((copy / CONTRACT).read_text()[:300])
    with pytest.raises(
        InputError, match=rf"{CONTRACT} holds no readable contract .* it is truncated or not a potential"
    ):
        load_potential(copy)


@pytest.mark.parametrize("name", ["scale", "readout.2.weight", "representation.embedding.weight"])
@pytest.mark.parametrize("value", [1.02, float("nan")])
def test_tampered_weights_are_found(copy, name, value):
    weights = load_file(copy / WEIGHTS)
    weights[name] *= value
    save_file(weights, copy / WEIGHTS)
    with pytest.raises(InputError, match="does not reproduce the example in its contract"):
        load_potential(copy)


def test_unknown_name_suggests_the_nearest(monkeypatch, potential_folder):
    monkeypatch.setattr(export, "shipped_potentials", lambda: {"ethanol-pbe": potential_folder})
    with pytest.raises(InputError, match=r"got 'ethanol-pbe0' \(did you mean 'ethanol-pbe'\?\)"):
        load_potential("ethanol-pbe0")
    assert load_potential("ethanol-pbe").contract.elements == ["H", "C", "O"]


@pytest.mark.parametrize("dtype", ["double", "float16", torch.float64])
def test_unknown_dtype_is_refused(potential_folder, dtype):
    with pytest.raises(InputError, match=r"`dtype` must be 'float32' or 'float64' \(a string\), got"):
        load_potential(potential_folder, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_unusable_device_is_refused(potential_folder, device):
    with pytest.raises(InputError, match=f"`device` must be usable by torch, got '{device}'"):
        load_potential(potential_folder, device=device)


@pytest.mark.parametrize(("name", "came"), [("nope", "does not exist"), ("potential.pt", "is a file")])
def test_export_of_what_is_no_folder_says_so(potential_file, tmp_path, name, came):
    shutil.copy(potential_file, tmp_path / "potential.pt")
    with pytest.raises(InputError, match=rf"must be the folder of a training, got .*{name}, which {came}; give that"):
        export_torchscript(tmp_path / name, tmp_path / "new.pt")
    assert names(tmp_path) == {"potential.pt"}


def test_a_potential_is_checked_in_the_dtype_it_is_handed_out_in(potential_folder, monkeypatch):
    def wrong(potential, dtype):
        set_dtype(potential, dtype)
        potential.shift += 0.001

    monkeypatch.setattr(export, "set_dtype", wrong)
    assert load_potential(potential_folder).dtype == "float32"
    with pytest.raises(InputError, match=r"does not reproduce the example in its contract, in float64 on cpu \("):
        load_potential(potential_folder, dtype="float64")


# --- what a failure leaves ----------------------------------------------------------------------------------------


def other_potential(folder: Path) -> tuple[Potential, object]:
    """With weights that differ from those in `folder`."""
    contract = load_potential(folder).contract
    settings = MODELS["painn"].hyperparameters(**contract.hyperparameters)
    return Potential("painn", settings, contract.cutoff, contract.elements, torch.float32), contract


@pytest.mark.parametrize("fails_at", [1, 2])
def test_full_disk_leaves_the_older_potential(copy, monkeypatch, fails_at):
    """Whether the first or the second of the two files does not fit."""
    before, calls, write_bytes = content(copy), [], Path.write_bytes
    potential, contract = other_potential(copy)

    def full(path: Path, data: bytes) -> int:
        calls.append(path)
        if len(calls) < fails_at:
            return write_bytes(path, data)
        write_bytes(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=rf"could not write {copy}/.*: No space left on device; .* unchanged") as error:
        write_potential(copy, potential, contract)
    monkeypatch.undo()
    assert error.value.errno == errno.ENOSPC
    assert len(calls) == fails_at
    assert content(copy) == before


@pytest.mark.parametrize("action", ["write", "export"])
def test_file_too_large_leaves_the_older_potential(copy, action):
    """A limit that the operating system keeps: what TorchScript's own writer answers with an abort."""
    export_torchscript(copy, copy / "potential.pt")
    before = content(copy)
    program = f"""
        import resource, sys
        from pathlib import Path
        from ggnn_ff.export import export_torchscript, load_potential, write_potential
        folder = Path(sys.argv[1])
        loaded = load_potential(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            if {action == "write"}:
                write_potential(folder, loaded.module.potential, loaded.contract)
            else:
                export_torchscript(folder, folder / "potential.pt")
        except OSError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "File too large; what was there before is unchanged" in done.stdout
    assert content(copy) == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_files_have_the_mode_that_the_umask_leaves(potential_folder, tmp_path):
    loaded = load_potential(potential_folder)
    before = os.umask(0o027)
    try:
        write_potential(tmp_path / "new", loaded.module.potential, loaded.contract)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {0o640}


def test_writing_leaves_the_umask_of_the_process_alone(potential_folder, tmp_path, monkeypatch):
    loaded = load_potential(potential_folder)
    calls = []
    monkeypatch.setattr(os, "umask", calls.append)  # other threads would make files in between
    write_potential(tmp_path / "new", loaded.module.potential, loaded.contract)
    assert not calls


def test_a_disagreeing_torchscript_form_is_not_written(copy, monkeypatch, tmp_path):
    output = tmp_path / "potential.pt"
    output.write_text("older")
    script = torch.jit.script

    def wrong(module):
        with torch.no_grad():
            module.potential.shift += 0.001
        return script(module)

    monkeypatch.setattr(torch.jit, "script", wrong)
    with pytest.raises(InputError, match=r"the TorchScript form of .* does not reproduce the example"):
        export_torchscript(copy, output)
    assert output.read_text() == "older"
    assert names(tmp_path) == {"potential.pt", "run"}


def torch_state() -> tuple:
    return (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),  # noqa: NPY002
        str(np.geterr()),
    )


@pytest.mark.parametrize(
    "mode", [torch.enable_grad, torch.no_grad, torch.inference_mode], ids=["grad", "no_grad", "inference"]
)
def test_loading_and_evaluating_work_in_any_mode_and_change_no_global_state(potential_folder, potential_file, mode):
    with mode():
        before = torch_state()
        for source in (potential_folder, potential_file):
            for dtype in ("float32", "float64"):
                load_potential(source, dtype=dtype).evaluate(frame())
                atoms = frame()
                atoms.calc = ggnn_ff.GGNNCalculator(source, dtype=dtype)
                atoms.get_forces()
                assert torch_state() == before
