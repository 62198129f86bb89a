"""Training: what it is told, that it learns, what it keeps, and that a kill changes nothing."""

import io
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from killed import fit_killed_at_checkpoint, fit_killed_before_export, fit_killed_in_epoch, run_to_death
from safetensors.torch import load_file
from spring_molecule import labelled_frames, write_frames

from ggnn_ff.contract import Certification, parse_contract
from ggnn_ff.data.readers import read_frames
from ggnn_ff.data.splits import random_split
from ggnn_ff.data.write import write_extxyz, write_md17_npz
from ggnn_ff.domain import NOVELTY_MARGIN, DomainCheck
from ggnn_ff.errors import InputError, tell
from ggnn_ff.export import export_torchscript, load_potential, write_certification
from ggnn_ff.files import lock, unlock
from ggnn_ff.forces import EnergyForces, Prediction
from ggnn_ff.graph import from_atoms
from ggnn_ff.layers import SOFTENING
from ggnn_ff.models import MODELS
from ggnn_ff.training import batches, budget, checkpoints
from ggnn_ff.training import fit as fit_module
from ggnn_ff.training.batches import Batch, GraphDataset, SeededBatches
from ggnn_ff.training.compiled import CompiledLoss, _number_of_parts, largest_divisor, shared_out
from ggnn_ff.training.config import LossConfig, ModelConfig, TrainingConfig, make_config, read_config
from ggnn_ff.training.curve import read_learning_curve
from ggnn_ff.training.data_files import load_split
from ggnn_ff.training.evaluation import evaluate_energies, evaluate_frames, frames_at_once
from ggnn_ff.training.fit import build_potential, fit
from ggnn_ff.training.folder import check_folder
from ggnn_ff.training.module import TrainingModule, energy_forces_loss
from ggnn_ff.training.start import load_start
from ggnn_ff.training.vector import OneVector
from ggnn_ff.units import EV_PER_HARTREE

N_TRAIN, N_VALID, N_TEST = 60, 20, 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("data") / "springs.npz", N_TRAIN + N_VALID + N_TEST)


def small(data, output, epochs=4, run=None, frames=None, **optimizer) -> TrainingConfig:
    return make_config(
        {
            "output": str(output),
            "data": {
                "train": str(data),
                "n_train": N_TRAIN,
                "n_valid": N_VALID,
                "n_test": N_TEST,
                **(frames or {}),
            },
            "model": {"cutoff": 4.0, "hyperparameters": {"n_features": 16, "n_layers": 1, "n_radial": 8}},
            "optimizer": {
                "epochs": epochs,
                "batch_size": 10,
                "learning_rate": 5e-3,
                "gradient_clip": 10.0,
                "ema_decay": 0.9,
                **optimizer,
            },
            "run": {"threads": 1, "accelerator": "cpu", **(run or {})},
        }
    )


def train(config) -> Path:
    return fit(config, progress=False)


def is_trained(folder):
    return (folder / "potential.json").exists()


def weights(folder):
    return load_file(folder / "weights.safetensors")


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def last_checkpoint(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def best_checkpoint(folder):
    return torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)


def learning_rate(folder):
    return last_checkpoint(folder)["optimizer_states"][0]["param_groups"][0]["lr"]


# What it is told


MINIMAL = {"output": "run", "data": {"train": "frames.npz"}}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"optimizer": {"epoch": 3}}, ["`optimizer.epoch` is not a key", "did you mean 'epochs'"]),
        ({"optimiser": {}}, ["`optimiser` is not a key", "did you mean 'optimizer'"]),
        ({"data": {"train": "a.npz", "n_valdi": 3}}, ["`data.n_valdi` is not a key", "did you mean 'n_valid'"]),
        ({"data": {}}, ["`data.train` is required and missing"]),
        ({"optimizer": {"epochs": "many"}}, ["`optimizer.epochs`", "valid integer", "'many'"]),
        ({"optimizer": {"learning_rate": -1.0}}, ["`optimizer.learning_rate`", "greater than 0", "-1.0"]),
        ({"run": {"dtype": "float16"}}, ["`run.dtype`", "'float32' or 'float64'", "'float16'"]),
        ({"model": {"name": "pain"}}, ["`model.name`", "did you mean 'painn'"]),
        (
            {"model": {"hyperparameters": {"n_feature": 64}}},
            ["`model.hyperparameters.n_feature` is not a key", "did you mean 'n_features'"],
        ),
        ({"model": {"hyperparameters": {"n_layers": 0}}}, ["`model.hyperparameters.n_layers`", "got 0"]),
        ({"model": {"cutoff": float("inf")}}, ["`model.cutoff`", "inf"]),
        ({"run": {"budget_minutes": float("inf")}}, ["`run.budget_minutes`", "finite", "inf"]),
        ({"run": {"threads": 100_000}}, ["`run.threads`", "less than or equal to 1024", "100000"]),
        ({"loss": {"energy_weight": 0.0, "forces_weight": 0.0}}, ["`loss.forces_weight` must be above zero"]),
        ({"run": {"seed": -1}}, ["`run.seed`", "greater than or equal to 0", "-1"]),
        ({"data": {"train": "a.npz", "seed": -1}}, ["`data.seed`", "greater than or equal to 0", "-1"]),
        (
            {"optimizer": {"epochs": 10, "validate_every": 3}},
            ["`optimizer.epochs` must be a multiple of `optimizer.validate_every`", "10 and 3"],
        ),
    ],
)
def test_wrong_configuration_names_the_key_and_the_nearest(content, parts):
    with pytest.raises(InputError) as caught:
        make_config({**MINIMAL, **content})
    for part in parts:
        assert part in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert "validation error" not in str(caught.value)


def test_all_wrong_keys_are_named_at_once():
    with pytest.raises(InputError, match=r"(?s)optimizer\.epoch.*run\.sede"):
        make_config({**MINIMAL, "optimizer": {"epoch": 3}, "run": {"sede": 1}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: [", "valid YAML"),
        ("output: 2020-13-45", "valid YAML.*month must be in"),
        ("output: a\nrun: {seed: 1}\nrun: {dtype: float64}", "the key 'run' occurs twice"),
        ("just words", "must hold keys"),
        ("", "must hold keys"),
        (b"\xff\xfe\x00output", "readable YAML"),
        (None, "readable YAML file, got .*config.yaml"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        read_config(path)


def test_paths_are_relative_to_the_configuration(tmp_path):
    content = {"output": "run", "data": {"train": "frames.npz", "test": "/data/test.npz"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    config = read_config(tmp_path / "config.yaml")
    assert config.data.train == tmp_path / "frames.npz"
    assert config.data.test == Path("/data/test.npz")
    assert config.data.valid is None
    assert config.output == Path("run")


@pytest.mark.parametrize(
    ("frames", "key"),
    [
        ({"train": "absent.npz"}, "data.train"),
        ({"valid": "absent.npz", "n_valid": None}, "data.valid"),
        ({"test": "absent.npz", "n_test": None}, "data.test"),
        (
            {"train_indices": "absent.csv", "valid_indices": "absent.csv"}
            | {"n_train": None, "n_valid": None, "n_test": None},
            "data.train_indices",
        ),
        ({"isolated_atoms": "absent.xyz"}, "data.isolated_atoms"),
    ],
)
def test_a_missing_file_is_named_by_its_key(tmp_path, data, frames, key):
    with pytest.raises(InputError, match=rf"^`{key}` must be .*exists, got absent"):
        train(small(data, tmp_path / "run", frames=frames))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["valid", "test"])
def test_frames_with_an_element_that_does_not_train_are_refused(tmp_path, data, name):
    others = labelled_frames(20, seed=5)
    others.numbers[others.numbers == 8] = 16
    write_extxyz(tmp_path / "sulphur.xyz", others)
    frames = {
        "valid": {"n_valid": None, "valid": str(tmp_path / "sulphur.xyz")},
        "test": {"n_test": None, "test": str(tmp_path / "sulphur.xyz")},
    }
    with pytest.raises(InputError, match=r"elements of the training frames only \(H, C, O\), got S in sulphur.xyz"):
        load_split(small(data, tmp_path / "run", frames=frames[name]).data)


def test_sets_of_two_levels_of_theory_are_refused(tmp_path, data):
    for name in ("PBE", "GFN2-xTB"):
        write_extxyz(tmp_path / f"{name}.xyz", replace(labelled_frames(20, seed=len(name)), level_of_theory=name))
    frames = {"n_train": None, "n_valid": 3, "n_test": None, "test": str(tmp_path / "GFN2-xTB.xyz")}
    config = small(tmp_path / "PBE.xyz", tmp_path / "run", frames=frames)
    with pytest.raises(InputError, match="one level of theory, got GFN2-xTB and PBE"):
        load_split(config.data)
    assert len(load_split(config.data.model_copy(update={"level_of_theory": "PBE"})).test) == 20


def test_a_cutoff_that_reaches_no_atom_is_refused_before_training(tmp_path, data):
    config = small(data, tmp_path / "run")
    config = config.model_copy(update={"model": config.model.model_copy(update={"cutoff": 0.5})})
    with pytest.raises(InputError, match=r"`model.cutoff` must reach .*, in angstrom, got 0.5"):
        fit(config, progress=False)
    assert not (tmp_path / "run").exists()


def test_true_is_no_number_in_a_configuration(data, tmp_path):
    given = {"output": str(tmp_path), "data": {"train": str(data), "n_valid": True}, "optimizer": {"epochs": True}}
    with pytest.raises(InputError) as error:
        make_config({**given, "run": {"compile": True}})
    assert "`data.n_valid`: must not be true or false, got True" in str(error.value)
    assert "`optimizer.epochs`: must not be true or false" in str(error.value)
    assert "compile" not in str(error.value)
    with pytest.raises(InputError, match=r"`model.hyperparameters.n_layers` must not be true or false"):
        make_config(
            {"output": str(tmp_path), "data": {"train": str(data)}, "model": {"hyperparameters": {"n_layers": True}}}
        )


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.yaml").write_text("output: ~/runs\ndata: {train: ~/frames.xyz, n_valid: 5}\n")
    config = read_config(tmp_path / "config.yaml")
    assert (config.output, config.data.train) == (tmp_path / "runs", tmp_path / "frames.xyz")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ({"test_indices": "i.csv"}, "`data.test_indices` needs `data.train_indices`"),
        ({"valid_indices": "i.csv", "n_valid": None}, "`data.valid_indices` needs `data.train_indices`"),
        ({"train_indices": "i.csv"}, "`data.train_indices` needs `data.valid_indices`"),
        (
            {"train_indices": "i.csv", "valid_indices": "i.csv"},
            "so `data.n_train`, `data.n_valid`, `data.n_test` must not be given",
        ),
    ],
)
def test_index_files_are_not_left_out_of_account(tmp_path, data, frames, message):
    with pytest.raises(InputError, match=message):
        train(small(data, tmp_path / "run", frames=frames))


def test_isolated_atoms_are_in_the_stated_unit(tmp_path, data):
    (tmp_path / "atoms.xyz").write_text(
        "".join(f"1\nProperties=species:S:1:pos:R:3 energy={k}\n{s} 0 0 0\n" for k, s in ((1.0, "H"), (2.0, "C")))
    )
    frames = read_frames(data)
    frames = replace(frames, numbers=np.where(frames.numbers == 1, 1, 6))
    for unit, factor in (("hartree", EV_PER_HARTREE), (None, 1.0)):
        config = small(data, tmp_path, frames={"isolated_atoms": str(tmp_path / "atoms.xyz"), "energy_unit": unit})
        shift = build_potential(config, frames)[0].shift
        assert float(shift[6] - shift[1]) == pytest.approx(factor)
        assert float(shift[frames.numbers].sum()) == pytest.approx(frames.energy.sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"accelerator": "gpx"}, r"`run\.accelerator: gpx` cannot be used .*Available names are"),
        ({"strategy": "dpp"}, r"`run\.strategy: dpp` cannot be used"),
        ({"devices": 0}, r"`run\.devices: 0` cannot be used"),
    ],
)
def test_devices_that_do_not_exist_are_named_and_claim_no_folder(tmp_path, data, run, message):
    with pytest.raises(InputError, match=message):
        train(small(data, tmp_path / "run", run=run))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(tmp_path, data):
    with pytest.raises(InputError, match=r"`run\.accelerator: cuda` cannot be used"):
        train(small(data, tmp_path / "run", run={"accelerator": "cuda"}))


def test_frames_must_be_left_to_train(tmp_path, data):
    config = small(data, tmp_path / "run", frames={"n_train": None, "n_valid": 10_000, "n_test": None})
    with pytest.raises(InputError, match="must leave frames that train, got 10000 and 0 of"):
        load_split(config.data)


def test_a_schedule_that_would_raise_the_learning_rate_is_refused(tmp_path, data):
    with pytest.raises(InputError, match=r"smallest_learning_rate` must be at most"):
        small(data, tmp_path / "run", learning_rate=1e-7)


def test_large_frames_are_evaluated_in_smaller_batches():
    def frames(n_atoms):
        return SimpleNamespace(n_atoms=np.array([3, n_atoms]))

    assert [frames_at_once(frames(n)) for n in (9, 192, 12_288)] == [25, 10, 1]


def test_energies_alone_are_those_beside_forces(tmp_path, data):
    config = small(data, tmp_path / "run")
    frames = load_split(config.data).train
    potential, _ = build_potential(config, frames)
    both = evaluate_frames(EnergyForces(potential).eval(), frames, config.model.cutoff)
    np.testing.assert_allclose(evaluate_energies(potential, frames), both.energy, rtol=0.0, atol=1e-5)
    assert np.ptp(both.energy) > 1e-3  # they differ


def test_validation_frames_must_be_named(tmp_path, data):
    config = make_config({"output": str(tmp_path / "run"), "data": {"train": str(data), "n_train": 10}})
    with pytest.raises(InputError, match="which frames validate: a file `valid`, a number `n_valid`"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_frames_shared_by_train_and_test_are_refused(tmp_path, data):
    config = small(data, tmp_path / "run", frames={"n_test": None, "test": str(data)})
    with pytest.raises(InputError, match="must not share frames"):
        train(config)


# That it learns


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    config = small(data, tmp_path_factory.mktemp("trained") / "run", epochs=20)
    train(config)
    return config


def test_errors_fall_far_below_those_of_a_constant_predictor(trained):
    frames = load_split(trained.data).test
    constant_forces = 1e3 * np.abs(frames.forces).mean()
    constant_energy = 1e3 * np.abs(frames.energy - np.median(frames.energy)).mean()
    errors = load_potential(trained.output).contract.test_errors
    assert errors.forces_mae_mev_per_angstrom < 0.4 * constant_forces
    assert errors.energy_mae_mev < 0.6 * constant_energy


def test_stated_test_errors_are_those_of_the_durable_form(trained, data):
    loaded = load_potential(trained.output)
    frames = read_frames(data)
    rows = random_split(len(frames), N_TRAIN, N_VALID, N_TEST, 0)[2]
    energy_errors, force_errors = [], []
    for row in rows:
        atoms = frames.atoms(int(row))
        answer = loaded.evaluate(atoms)
        energy_errors.append(float(answer.energy[0]) - frames.energy[row])
        force_errors.append(answer.forces.numpy() - frames.forces[frames.rows(int(row))])
    energy_errors, force_errors = 1e3 * np.array(energy_errors), 1e3 * np.array(force_errors)
    stated = loaded.contract.test_errors
    assert stated.n_frames == N_TEST
    assert stated.energy_mae_mev == pytest.approx(np.abs(energy_errors).mean(), rel=1e-3)
    assert stated.energy_rmse_mev == pytest.approx(np.sqrt((energy_errors**2).mean()), rel=1e-3)
    assert stated.energy_mae_mev_per_atom == pytest.approx(np.abs(energy_errors).mean() / 9, rel=1e-3)
    assert stated.forces_mae_mev_per_angstrom == pytest.approx(np.abs(force_errors).mean(), rel=1e-4)
    assert stated.forces_rmse_mev_per_angstrom == pytest.approx(np.sqrt((force_errors**2).mean()), rel=1e-4)


def test_contract_states_the_training_set(trained, data):
    contract = load_potential(trained.output).contract
    assert contract.training_data.n_train == N_TRAIN
    assert contract.training_data.n_valid == N_VALID
    assert contract.training_data.sha256 == read_frames(data).sha256
    assert contract.level_of_theory == "springs"
    assert contract.elements == ["H", "C", "O"]


def starting_from(trained, output, **keys):
    """One more epoch, from the weights of a trained potential on."""
    config = small(trained.data.train, output, epochs=1, learning_rate=1e-5)
    return config.model_copy(update={"model": config.model.model_copy(update={"start_from": trained.output, **keys})})


@pytest.mark.parametrize("form", ["durable", "torchscript"])
def test_training_may_start_from_another_potential(trained, tmp_path, form):
    config = starting_from(trained, tmp_path / "run")
    start = load_potential(trained.output)
    if form == "torchscript":
        export_torchscript(trained.output, tmp_path / "start.pt")
        config = config.model_copy(
            update={"model": config.model.model_copy(update={"start_from": tmp_path / "start.pt"})}
        )
    frames = load_split(config.data).train
    frames = replace(frames, energy=frames.energy + 7.0)  # another level of theory, with another constant
    potential = build_potential(config, frames, load_start(config.model, frames.elements))[0]
    before, here = start.module.potential.state_dict(), potential.state_dict()
    assert all(torch.equal(before[name], here[name]) for name in here if name != "shift")
    told = evaluate_frames(EnergyForces(potential).eval(), frames, 4.0)
    assert float((told.energy - told.reference_energy).mean()) == pytest.approx(0.0, abs=1e-4)
    errors, expected = load_potential(train(config)).contract.test_errors, start.contract.test_errors
    assert errors.forces_mae_mev_per_angstrom == pytest.approx(expected.forces_mae_mev_per_angstrom, rel=0.02)


def test_frames_on_which_a_start_explodes_do_not_move_the_shift(trained, tmp_path):
    config = starting_from(trained, tmp_path / "run")
    frames = load_split(config.data).train
    exploding = frames.energy.copy()
    exploding[3] += 1e6
    shifts = [
        build_potential(config, replace(frames, energy=energy), load_start(config.model, frames.elements))[0].shift
        for energy in (frames.energy, exploding)
    ]
    torch.testing.assert_close(*shifts, rtol=0, atol=2e-3)


def test_contract_states_what_the_training_started_from(trained, tmp_path, capfd):
    tell.cache_clear()
    contract = load_potential(train(starting_from(trained, tmp_path / "run"))).contract
    assert "from which those that test are taken too" in capfd.readouterr().err
    start = load_potential(trained.output).contract
    assert start.started_from is None
    assert contract.started_from.identity == start.identity
    assert contract.started_from.training_data == start.training_data
    assert contract.started_from.level_of_theory == start.level_of_theory
    assert parse_contract(contract.to_json(), "copy") == contract


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "schnet", "hyperparameters": {}}, r"`model\.name` is schnet, there painn"),
        ({"cutoff": 5.0}, r"`model\.cutoff` is 5\.0, there 4\.0"),
        ({"hyperparameters": {"n_features": 16, "n_layers": 2, "n_radial": 8}}, r"n_layers` is 2, there 1"),
        ({"start_from": Path("absent")}, r"^`model\.start_from`: .*got 'absent'"),
    ],
)
def test_a_start_of_another_kind_is_refused(trained, tmp_path, keys, message):
    with pytest.raises(InputError, match=message):
        train(starting_from(trained, tmp_path / "run", **keys))
    assert not (tmp_path / "run").exists()


def without_softening(folder):
    """A potential of a version that did not know `softening`."""
    path = folder / "potential.json"
    content = json.loads(path.read_text())
    assert content["hyperparameters"].pop("softening") == 1e-4
    path.write_text(json.dumps(content))


def test_training_may_start_from_a_potential_without_softening(trained, tmp_path):
    sizes = {"n_features": 16, "n_layers": 1, "n_radial": 8}
    older = small(trained.data.train, tmp_path / "older", epochs=1)
    older = older.model_copy(update={"model": ModelConfig(cutoff=4.0, hyperparameters={**sizes, "softening": 1e-4})})
    without_softening(train(older))
    keys = {"start_from": older.output, "hyperparameters": {**sizes, "softening": 1e-4}}
    train(starting_from(trained, tmp_path / "run", **keys))
    with pytest.raises(InputError, match=r"softening` is 0\.1, there 0\.0001"):
        train(starting_from(trained, tmp_path / "other", start_from=older.output))


def test_a_training_from_before_softening_is_not_gone_on_with(tmp_path, data):
    config = small(data, tmp_path / "run", epochs=2)
    run_to_death(fit_killed_in_epoch, config, 1, 1)
    for name in ("last", "best"):
        path = config.output / "checkpoints" / f"{name}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint.pop("hyperparameters")["softening"] == SOFTENING
        torch.save(checkpoint, path)
    with pytest.raises(InputError, match="a training of an older version"):
        train(config)


def test_another_start_is_another_run(trained, tmp_path):
    train(starting_from(trained, tmp_path / "run"))
    other = train(small(trained.data.train, tmp_path / "other", epochs=1))
    with pytest.raises(InputError, match=r"start_from"):
        train(starting_from(trained, tmp_path / "run", start_from=other))
    shutil.copytree(trained.output, tmp_path / "start")
    train(starting_from(trained, tmp_path / "again", start_from=tmp_path / "start"))
    shutil.rmtree(tmp_path / "start")
    shutil.copytree(other, tmp_path / "start")
    with pytest.raises(InputError, match=r"start_from"):
        train(starting_from(trained, tmp_path / "again", start_from=tmp_path / "start"))


def test_start_is_relative_to_the_configuration_or_ships(tmp_path):
    (tmp_path / "start").mkdir()
    for name, expected in (("start", tmp_path / "start"), ("ethanol-pbe", Path("ethanol-pbe"))):
        content = {"output": "run", "data": {"train": "data.npz", "n_valid": 1}, "model": {"start_from": name}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
        assert read_config(tmp_path / "config.yaml").model.start_from == expected


def test_contract_describes_the_training_frames(trained):
    domain = load_potential(trained.output).contract.domain
    split = load_split(trained.data)
    assert (domain.n_frames, domain.n_held_out, domain.cutoff) == (N_TRAIN, N_VALID, 4.0)
    shortest = min(split.train.atoms(k).get_distance(0, 1) for k in range(N_TRAIN))  # the only bond of C and C
    assert domain.distances["C-C"][0] == pytest.approx(shortest, abs=1e-4)
    inside = DomainCheck(domain, split.train.numbers[:9])
    novelties = [inside.look(from_atoms(split.valid.atoms(k))).novelty.max() for k in range(N_VALID)]
    assert domain.threshold == pytest.approx(NOVELTY_MARGIN * max(novelties), rel=1e-3)
    assert (trained.output / "potential.json").stat().st_size < 100_000


def test_learning_curve_has_each_validation(trained):
    curve = read_learning_curve(trained.output)
    assert curve.epochs.tolist() == list(range(20))
    valid = curve.panels["force MAE (meV/Å)"]["validation"]
    assert np.isfinite(valid).all()
    assert valid[-1] < 0.5 * valid[0]


def test_labels_of_test_frames_do_not_enter_the_weights(tmp_path, data):
    frames = read_frames(data)
    train_rows, valid_rows, test_rows = random_split(len(frames), N_TRAIN, N_VALID, N_TEST, 0)
    changed = frames.select(np.arange(len(frames)))
    for row in test_rows:
        changed.energy[row] += 1.0
        changed.forces[changed.rows(int(row))] *= 1.01
    write_md17_npz(tmp_path / "changed.npz", changed)
    first = train(small(data, tmp_path / "first", epochs=1))
    second = train(small(tmp_path / "changed.npz", tmp_path / "second", epochs=1))
    assert_same_weights(first, second)
    errors = [load_potential(folder).contract.test_errors.energy_mae_mev for folder in (first, second)]
    assert abs(errors[0] - errors[1]) > 100  # the change was seen, there
    stored = weights(first)  # and scale and shift are those of the training frames
    chosen = frames.select(train_rows)
    for number in (1, 6, 8):
        rms = np.sqrt((chosen.forces[chosen.numbers == number] ** 2).mean())
        assert float(stored["scale"][number]) == pytest.approx(rms, rel=1e-12)
    told = evaluate_frames(load_potential(first).module, chosen, 4.0)
    assert float((told.energy - told.reference_energy).mean()) == pytest.approx(0.0, abs=1e-5)
    other = frames.select(np.concatenate([train_rows, valid_rows]))
    assert np.sqrt((other.forces[other.numbers == 8] ** 2).mean()) != pytest.approx(rms, rel=1e-9)


def test_validation_and_test_frames_may_come_from_files(tmp_path, data):
    valid, test = write_frames(tmp_path / "valid.npz", 10, seed=1), write_frames(tmp_path / "test.npz", 5, seed=2)
    frames = {"n_valid": None, "n_test": None, "valid": str(valid), "test": str(test)}
    contract = load_potential(train(small(data, tmp_path / "run", epochs=1, frames=frames))).contract
    assert (contract.training_data.n_valid, contract.test_errors.n_frames) == (10, 5)


def test_without_test_frames_no_errors_are_stated(tmp_path, data):
    folder = train(small(data, tmp_path / "run", epochs=1, frames={"n_test": None}))
    assert load_potential(folder).contract.test_errors is None


def test_float64_stays_float64(tmp_path, data):
    folder = train(small(data, tmp_path / "run", epochs=1, run={"dtype": "float64"}))
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float64}
    for parameters in last_checkpoint(folder)["optimizer_states"][0]["state"].values():
        assert parameters["exp_avg"].dtype == torch.float64
    assert load_potential(folder).contract.dtype == "float64"


def test_float32_has_float64_scale_and_shift_only(trained):
    kinds = {name: tensor.dtype for name, tensor in weights(trained.output).items()}
    assert {name for name, kind in kinds.items() if kind == torch.float64} == {"scale", "shift"}


def test_one_vector_is_the_model_with_all_its_weights():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.SiLU(), torch.nn.Linear(4, 1, bias=False)).double()
    vector = OneVector(model)
    x = torch.randn(5, 3, dtype=torch.float64)
    assert [name for name, _ in vector.named_parameters()] == ["weights"]
    torch.testing.assert_close(vector(x), model(x))
    with torch.no_grad():
        for parameter in (vector.weights, *model.parameters()):
            parameter.mul_(1.5)
    torch.testing.assert_close(vector(x), model(x))
    model(x).sum().backward()
    vector(x).sum().backward()
    for name, gradient in vector.parts(vector.weights.grad).items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad)


# What it keeps


def test_the_averaged_weights_of_the_best_validation_are_kept(tmp_path, data):
    decay, best = 0.8, 2
    config = small(data, tmp_path / "run", epochs=4, ema_decay=decay)
    steps = N_TRAIN // 10
    history, averages, at_epoch_end = [], [], []
    step = TrainingModule.training_step

    def watched(module, *arguments):
        history.append(module.model.parts(module.model.weights.detach().clone()))
        return step(module, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", watched)
        dictate_losses(patch, lambda epoch: 1.0 + abs(epoch - best))
        train(config)
    current = last_checkpoint(config.output)["current_model_state"]
    module = TrainingModule(build_potential(config, load_split(config.data).train)[0], config, 1.0)
    history.append(module.model.parts(current["model.weights"]))
    for number, after in enumerate(history[1:]):  # the first update copies, the others average
        previous = averages[-1] if averages else after
        averages.append({name: decay * previous[name] + (1 - decay) * after[name] for name in after})
        if (number + 1) % steps == 0:
            at_epoch_end.append(averages[-1])
    stored = weights(config.output)
    for name, expected in at_epoch_end[best].items():
        torch.testing.assert_close(stored[name.removeprefix("potential.")], expected, rtol=1e-4, atol=1e-6)
    name = "readout.0.weight"
    last = history[(best + 1) * steps][f"potential.{name}"]
    assert not torch.allclose(stored[name], last, rtol=1e-4, atol=1e-6)
    potential = build_potential(config, load_split(config.data).train)[0]
    potential.load_state_dict(stored)
    valid = GraphDataset(load_split(config.data).valid, 4.0)
    batch = valid.collate(list(range(len(valid))))
    error = 1e3 * float((EnergyForces(potential).eval()(*batch.inputs).forces - batch.forces).abs().mean())
    shown = read_learning_curve(config.output).panels["force MAE (meV/Å)"]["validation"][best]
    assert error == pytest.approx(shown, rel=1e-3)  # the curve is that of the averaged weights


def test_last_checkpoint_is_of_the_last_validation_even_if_it_was_not_the_best(tmp_path, data):
    config = small(data, tmp_path / "run", frames={"n_train": 10})
    with pytest.MonkeyPatch.context() as patch:
        dictate_losses(patch, lambda epoch: [4.0, 2.0, 3.0, 3.0][epoch])
        train(config)
    assert last_checkpoint(config.output)["epoch"] == 3
    assert best_checkpoint(config.output)["epoch"] == 1


def test_a_resumed_training_knows_how_good_the_best_was(tmp_path, data):
    config = small(data, tmp_path / "run")
    run_to_death(fit_killed_in_epoch, config, 2, 1)
    before = best_checkpoint(config.output)["epoch"]
    with pytest.MonkeyPatch.context() as patch:
        dictate_losses(patch, lambda epoch: 1e9)
        train(config)
    assert last_checkpoint(config.output)["epoch"] == 3
    assert best_checkpoint(config.output)["epoch"] == before


def test_early_stopping_stops(tmp_path, data):
    config = small(data, tmp_path / "run", epochs=50, early_stopping_patience=2, frames={"n_train": 10})
    with pytest.MonkeyPatch.context() as patch:
        never_better(patch)
        train(config)
    assert len(read_learning_curve(config.output).epochs) == 3
    assert is_trained(config.output)


@pytest.mark.parametrize("validate_every", [1, 2])
def test_plateau_lowers_the_learning_rate_after_its_patience_in_validations(tmp_path, data, validate_every):
    config = small(
        data, tmp_path / "run", epochs=5 * validate_every, validate_every=validate_every, plateau_patience=1,
        plateau_factor=0.5, frames={"n_train": 10},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        never_better(patch)
        train(config)
    # validations: best, no, no -> halved, no, no -> halved
    assert learning_rate(config.output) == 5e-3 * 0.25


def test_cosine_ends_at_the_smallest_learning_rate(tmp_path, data):
    config = small(data, tmp_path / "run", schedule="cosine", smallest_learning_rate=1e-5)
    assert learning_rate(train(config)) == pytest.approx(1e-5)


def dictate_losses(patch, loss_after):
    """Validations see the loss that is dictated for their epoch."""
    step = TrainingModule.validation_step

    def dictated(module, *arguments):
        log = module.log_dict

        def log_other(columns, **options):
            log({**columns, "valid_loss": torch.tensor(float(loss_after(module.current_epoch)))}, **options)

        module.log_dict = log_other
        step(module, *arguments)
        del module.log_dict

    patch.setattr(TrainingModule, "validation_step", dictated)


def never_better(patch):
    dictate_losses(patch, lambda epoch: 1.0)


def test_a_diverged_training_says_so(tmp_path, data):
    config = small(data, tmp_path / "run", frames={"n_train": 10})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.math, "isfinite", lambda value: False)
        with pytest.raises(InputError, match=r"diverged; .*lower `optimizer\.learning_rate`"):
            train(config)
    assert not is_trained(config.output)


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [([3.0, 4.0], [1.2, 1.6]), ([0.3, 0.4], [0.3, 0.4]), ([math.inf, 1.0], [0.0, 0.0]), ([math.nan, 1.0], [0.0, 0.0])],
)
def test_gradients_are_clipped_and_left_out_where_they_are_not_finite(gradient, expected):
    weights = SimpleNamespace(grad=torch.tensor(gradient))
    module = SimpleNamespace(model=SimpleNamespace(weights=weights))
    TrainingModule.configure_gradient_clipping(module, None, gradient_clip_val=2.0)
    torch.testing.assert_close(weights.grad, torch.tensor(expected))


def test_one_loss_that_is_not_finite_does_not_end_a_training(tmp_path, data, monkeypatch):
    step = TrainingModule.training_step

    def broken_once(module, batch, batch_index):
        return step(module, batch, batch_index) * (math.nan if module.global_step == 1 else 1.0)

    monkeypatch.setattr(TrainingModule, "training_step", broken_once)
    config = small(data, tmp_path / "run", epochs=2)
    train(config)
    assert all(weights.isfinite().all() for weights in load_potential(config.output).module.parameters())


def test_the_caller_finds_torch_as_it_was(tmp_path, data):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    threads = torch.get_num_threads()
    expected = torch.rand(3)
    torch.manual_seed(5)
    environment = dict(os.environ)
    run, frames = {"threads": threads + 1}, {"n_train": 10}
    train(small(data, tmp_path / "run", epochs=1, run=run, frames=frames))
    assert torch.equal(torch.rand(3), expected)
    assert np.random.rand() == np.random.RandomState(5).rand()  # noqa: NPY002
    assert random.random() == random.Random(5).random()
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert dict(os.environ) == environment


# That the same is the same


def test_batches_depend_on_seed_and_epoch_only():
    def order(seed, epoch, before=()):
        sampler = SeededBatches(23, 5, seed)
        for earlier in before:
            sampler.set_epoch(earlier)
            list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 7) == order(1, 7, before=range(7))
    assert order(1, 7) != order(1, 8)
    assert order(1, 7) != order(2, 7)
    used = [index for batch in order(1, 7) for index in batch]
    assert [len(batch) for batch in order(1, 7)] == [5] * 4 == [5] * len(SeededBatches(23, 5, 1))
    assert len(set(used)) == 20
    assert set(used) <= set(range(23))


def test_each_process_has_its_own_batches(monkeypatch):
    def of_process(rank, n_processes):
        monkeypatch.setattr(batches, "_processes", lambda: (rank, n_processes))
        mine = SeededBatches(23, 5, 1)
        mine.set_epoch(3)
        taken = list(mine)
        assert len(taken) == len(mine)
        return taken

    alone = of_process(0, 1)
    first, second = of_process(0, 2), of_process(1, 2)
    assert [batch for pair in zip(first, second, strict=True) for batch in pair] == alone
    assert [len(of_process(rank, 3)) for rank in range(3)] == [1, 1, 1]  # equally many, or one would wait for ever


def test_small_sets_make_one_batch():
    assert [sorted(batch) for batch in SeededBatches(3, 10, 0)] == [[0, 1, 2]]


def test_a_batch_is_its_structures_side_by_side():
    frames = labelled_frames(4)
    dataset = GraphDataset(frames, 3.0)
    batch = dataset.collate([2, 0])
    assert batch.n_structures == 2
    assert batch.batch.tolist() == [0] * 9 + [1] * 9
    for place, index in enumerate([2, 0]):
        rows = slice(9 * place, 9 * (place + 1))
        assert np.array_equal(batch.forces[rows], frames.forces[frames.rows(index)])
        assert float(batch.energy[place]) == frames.energy[index]
        single = dataset.collate([index])
        mine = batch.batch[batch.edge_index[0]] == place
        assert torch.equal(batch.edge_index[:, mine] - 9 * place, single.edge_index)


@pytest.mark.parametrize(
    ("run", "optimizer"),
    [
        ({}, {"schedule": "plateau", "plateau_patience": 1, "learning_rate": 3e-2}),
        ({}, {"schedule": "cosine"}),
        ({}, {"schedule": "plateau", "plateau_patience": 1, "learning_rate": 3e-2, "validate_every": 2}),
        ({"dtype": "float64"}, {"schedule": "plateau", "plateau_patience": 1, "early_stopping_patience": 4}),
        ({}, {"method": "muon", "schedule": "cosine", "amsgrad": True}),
    ],
    ids=["plateau", "cosine", "every-2", "float64", "muon"],
)
def test_a_killed_training_ends_like_an_uninterrupted_one(tmp_path, data, run, optimizer):
    whole = small(data, tmp_path / "whole", epochs=8, run=run, **optimizer)
    killed = small(data, tmp_path / "killed", epochs=8, run=run, **optimizer)
    train(whole)
    run_to_death(fit_killed_in_epoch, killed, 3, 2)
    assert (tmp_path / "killed" / "checkpoints" / "last.ckpt").exists()
    assert not is_trained(killed.output)
    run_to_death(fit_killed_in_epoch, killed, 6, 4)
    train(killed)
    assert_same_weights(whole.output, killed.output)
    first, second = last_checkpoint(whole.output), last_checkpoint(killed.output)
    assert first["epoch"] == second["epoch"] == 7
    assert learning_rate(whole.output) == learning_rate(killed.output)
    for name, tensor in first["current_model_state"].items():
        assert torch.equal(tensor, second["current_model_state"][name]), name
    curves = [read_learning_curve(config.output) for config in (whole, killed)]
    assert curves[0].epochs.tolist() == curves[1].epochs.tolist()
    for label, panel in curves[0].panels.items():
        for name, values in panel.items():
            np.testing.assert_array_equal(values, curves[1].panels[label][name], err_msg=f"{label} {name}")
    contracts = [load_potential(config.output).contract for config in (whole, killed)]
    assert contracts[0] == contracts[1]


@pytest.mark.parametrize("number", [0, 1, 4, 5])
def test_a_kill_between_two_checkpoint_files_changes_nothing(tmp_path, data, number, unbroken):
    killed = small(data, tmp_path / "killed")
    run_to_death(fit_killed_at_checkpoint, killed, number)
    train(killed)
    assert_same_weights(unbroken, killed.output)


def test_a_kill_before_the_potential_is_written_changes_nothing(tmp_path, data, unbroken):
    killed = small(data, tmp_path / "killed")
    run_to_death(fit_killed_before_export, killed)
    assert not is_trained(killed.output)
    train(killed)
    assert_same_weights(unbroken, killed.output)


def test_a_kill_after_the_decision_to_stop_early_stops_again(tmp_path, data):
    settings = {"epochs": 9, "learning_rate": 1e-1, "ema_decay": 0.0, "early_stopping_patience": 1}
    whole, killed = small(data, tmp_path / "whole", **settings), small(data, tmp_path / "killed", **settings)
    train(whole)
    stopped_after = last_checkpoint(whole.output)["epoch"]
    assert stopped_after < 8
    run_to_death(fit_killed_before_export, killed)
    train(killed)
    assert last_checkpoint(killed.output)["epoch"] == stopped_after
    assert_same_weights(whole.output, killed.output)


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    return train(small(data, tmp_path_factory.mktemp("unbroken") / "run"))


def test_a_finished_training_run_again_is_the_same(tmp_path, data, unbroken):
    copy = tmp_path / "run"
    config = small(data, copy)
    train(config)
    certified = Certification(date="2026-01-01", package_version="1", structure="C2H6O", passed=True, figures=[])
    write_certification(copy, certified)
    before = (copy / "potential.json").read_bytes()
    train(config)
    assert (copy / "potential.json").read_bytes() == before
    assert load_potential(copy).contract.certification == certified
    assert_same_weights(unbroken, copy)


def test_another_seed_gives_other_weights(tmp_path, data, unbroken):
    other = train(small(data, tmp_path / "run", run={"seed": 1}))
    assert not torch.equal(weights(other)["readout.0.weight"], weights(unbroken)["readout.0.weight"])


def test_a_folder_with_another_configuration_is_refused(data, unbroken):
    with pytest.raises(
        InputError, match=r"another configuration: `optimizer\.learning_rate` was 0\.005 and is now 0\.001;"
    ):
        train(small(data, unbroken, learning_rate=1e-3))


def test_a_key_that_an_older_version_did_not_know_had_its_default(tmp_path, data, unbroken):
    copy = Path(shutil.copytree(unbroken, tmp_path / "run"))
    known = yaml.safe_load((copy / "config.yaml").read_text())
    del known["optimizer"]["amsgrad"]
    (copy / "config.yaml").write_text(yaml.safe_dump(known))
    check_folder(small(data, copy))
    with pytest.raises(InputError, match=r"`optimizer\.amsgrad` was False and is now True"):
        check_folder(small(data, copy, amsgrad=True))


def test_where_it_runs_may_change(tmp_path, data, unbroken):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    (folder / "potential.json").unlink()
    train(small(data, folder, run={"accelerator": "auto", "devices": 1, "threads": 2}))
    assert_same_weights(unbroken, folder)


@pytest.mark.parametrize("content", ["output: [", "just words", ""])
@pytest.mark.parametrize("name", ["config.yaml", "data.json"])
def test_a_damaged_record_of_a_run_is_refused(tmp_path, data, unbroken, name, content):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name} is damaged.*choose another folder, or delete it"):
        train(small(data, folder))


def with_files(tmp_path, output):
    """A configuration that names files of every kind, all in `tmp_path`."""
    write_frames(tmp_path / "train.npz", 40)
    write_frames(tmp_path / "test.npz", 5, seed=2)
    for name, indices in (("train_indices", range(20)), ("valid_indices", range(20, 40))):
        (tmp_path / f"{name}.csv").write_text("\n".join(map(str, indices)))
    (tmp_path / "atoms.xyz").write_text(
        "".join(f"1\nProperties=species:S:1:pos:R:3 energy=-1.0\n{symbol} 0 0 0\n" for symbol in "HCO")
    )
    frames = {
        "train_indices": str(tmp_path / "train_indices.csv"),
        "valid_indices": str(tmp_path / "valid_indices.csv"),
        "test": str(tmp_path / "test.npz"),
        "isolated_atoms": str(tmp_path / "atoms.xyz"),
    }
    drawn = {"n_train": None, "n_valid": None, "n_test": None}
    return small(tmp_path / "train.npz", output, epochs=1, frames=frames | drawn)


def test_a_run_on_data_that_changed_is_refused(tmp_path):
    config = with_files(tmp_path, tmp_path / "run")
    train(config)
    changes = {
        "train.npz": lambda path: write_frames(path, 40, seed=5),
        "test.npz": lambda path: write_frames(path, 5, seed=6),
        "train_indices.csv": lambda path: path.write_text("\n".join(map(str, range(19)))),
        "valid_indices.csv": lambda path: path.write_text("\n".join(map(str, range(21, 40)))),
        "atoms.xyz": lambda path: path.write_text(path.read_text().replace("-1.0", "-2.0")),
    }
    for name, change in changes.items():
        path = tmp_path / name
        before = path.read_bytes()
        change(path)
        with pytest.raises(InputError, match=rf"^`data\.\w+` {path} changed since the run in `output` .* began"):
            train(config)
        path.write_bytes(before)
    train(config)


def test_a_run_goes_on_where_its_data_has_moved(tmp_path, data, unbroken):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    moved = Path(shutil.copy(data, tmp_path / "moved.npz"))
    train(small(moved, folder))
    assert_same_weights(unbroken, folder)
    assert "moved.npz" in (folder / "config.yaml").read_text()


def test_a_run_of_an_older_version_without_a_record_of_its_data_goes_on(tmp_path, data, unbroken):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    (folder / "data.json").unlink()
    (folder / "potential.json").unlink()
    train(small(data, folder))
    assert_same_weights(unbroken, folder)
    assert (folder / "data.json").read_bytes() == (unbroken / "data.json").read_bytes()


# Damaged files and full disks


def spoiled_run(tmp_path, data, unbroken, content):
    """A run of which `content` took the place of the last checkpoint."""
    config = small(data, tmp_path / "run")
    shutil.copytree(unbroken / "checkpoints", tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(content)
    return config


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_a_malicious_checkpoint_is_not_executed(tmp_path, data, unbroken, kind):
    canary = tmp_path / "executed"
    evil = tmp_path / "evil"
    if kind == "zip":
        torch.save({"state_dict": Malicious(canary)}, evil)
    else:
        evil.write_bytes(pickle.dumps(Malicious(canary), protocol=2))
    config = spoiled_run(tmp_path, data, unbroken, evil.read_bytes())
    with pytest.raises(InputError, match=r"last\.ckpt is not a checkpoint of a training, or is damaged"):
        train(config)
    assert not canary.exists()
    if kind == "pickle":
        pickle.loads(evil.read_bytes())  # the test can fail: unpickled, it is executed
        assert canary.exists()


@pytest.mark.parametrize("kept", [0, 1000, -100])
def test_a_truncated_checkpoint_is_named(tmp_path, data, unbroken, kept):
    whole = (unbroken / "checkpoints" / "last.ckpt").read_bytes()
    config = spoiled_run(tmp_path, data, unbroken, whole[:kept])
    with pytest.raises(InputError, match=r"last\.ckpt .* damaged .*delete the folder"):
        train(config)


def test_a_checkpoint_of_an_older_version_is_refused(tmp_path, data, unbroken):
    checkpoint = last_checkpoint(unbroken)
    for key in ("state_dict", "current_model_state"):
        checkpoint[key] = {"model.potential.embedding.weight": torch.zeros(2)}
    content = io.BytesIO()
    torch.save(checkpoint, content)
    with pytest.raises(InputError, match=r"`output` .* a training of an older version"):
        train(spoiled_run(tmp_path, data, unbroken, content.getvalue()))


def test_a_full_disk_names_the_file_and_leaves_the_older_checkpoint(tmp_path, data, unbroken):
    config = small(data, tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    start = TrainingModule.training_step

    def fill_the_disk(module, *arguments):
        if module.current_epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
        return start(module, *arguments)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingModule, "training_step", fill_the_disk)
            with pytest.raises(OSError, match=r"could not write .*best\.ckpt: .*unchanged"):
                train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert last_checkpoint(config.output)["epoch"] == 1
    assert sorted(path.name for path in (config.output / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    train(config)
    assert_same_weights(unbroken, config.output)


# Several processes


def command_line(folder, config):
    """`ggnn-ff train` in a process of its own, which starts the others."""
    (folder / f"{config.output.name}.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [Path(sys.executable).with_name("ggnn-ff"), "train", str(folder / f"{config.output.name}.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_two_processes_train_what_one_with_batches_twice_as_large_does(tmp_path, data, compiled):
    if compiled and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("needs a C++ compiler")
    run = {"devices": 2, "strategy": "ddp", "compile": compiled}
    one, two = small(data, tmp_path / "one", batch_size=20), small(data, tmp_path / "two", batch_size=10, run=run)
    one, two = (c.model_copy(update={"model": c.model.model_copy(update={"cutoff": 8.0})}) for c in (one, two))
    command_line(tmp_path, two)
    train(one)
    first, second = weights(one.output), weights(two.output)
    start = build_potential(one, load_split(one.data).train)[0].state_dict()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-5)
    name = "readout.0.weight"
    assert float((first[name] - start[name]).abs().max()) > 1e-3  # the test can fail
    assert load_potential(two.output).contract.test_errors.n_frames == N_TEST
    assert [path.name for path in (two.output / "csv").iterdir()] == ["version_0"]
    curves = [read_learning_curve(config.output).panels["loss"] for config in (one, two)]
    for name in ("train", "validation"):
        np.testing.assert_allclose(curves[0][name], curves[1][name], rtol=1e-3)


def test_fewer_batches_than_processes_are_refused(data, tmp_path):
    config = small(data, tmp_path / "run", frames={"n_train": 15}, run={"devices": 2, "strategy": "ddp"})
    with pytest.raises(InputError, match=r"`optimizer\.batch_size` must leave a batch for each of the 2 processes"):
        train(config)
    assert not (tmp_path / "run").exists()


# The compiled loss


@pytest.mark.parametrize("error", ["squares", "norms"])
def test_losses_are_what_their_formulas_say_and_have_a_slope_at_zero(error):
    frames, forces_rms = labelled_frames(3), 0.7
    batch = GraphDataset(frames, 5.0).collate([0, 1, 2])
    n_atoms = len(frames.positions) // 3
    wrong = np.random.default_rng(0).normal(size=frames.forces.shape)
    perfect = Prediction(batch.energy, torch.empty(0), batch.forces, torch.empty(0))
    off = perfect._replace(
        energy=batch.energy + torch.tensor([0.5, -2.0, 1.0]), forces=batch.forces + torch.from_numpy(wrong)
    )
    settings = LossConfig(error=error, energy_weight=0.1, forces_weight=3.0)
    loss = energy_forces_loss(off, batch, settings, forces_rms)
    if error == "squares":
        expected = (0.1 * np.mean([0.25, 4.0, 1.0]) / n_atoms + 3.0 * np.mean(wrong**2)) / forces_rms**2
    else:
        expected = 0.1 * np.mean([0.5, 2.0, 1.0]) / np.sqrt(n_atoms) + 3.0 * np.linalg.norm(wrong, axis=1).mean()
        expected /= forces_rms
    assert float(loss) == pytest.approx(expected, rel=1e-9)
    forces = batch.forces.clone().requires_grad_(True)
    energy_forces_loss(perfect._replace(forces=forces), batch, settings, forces_rms).backward()
    assert bool((forces.grad == 0.0).all())


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.parametrize(("name", "cutoff"), [*((name, 8.0) for name in MODELS), ("painn", 2.5)])
@pytest.mark.timeout(1200)
def test_compiled_loss_has_the_value_and_gradient_of_the_eager_one(tmp_path, name, cutoff):
    frames = labelled_frames(12)
    config = make_config(
        {
            "output": str(tmp_path),
            "data": {"train": "unused.npz"},
            "model": {"name": name, "cutoff": cutoff, "preset": "small"},  # as `ggnn-ff compare` trains it
            "run": {"dtype": "float64"},
        }
    )
    potential, forces_rms = build_potential(config, frames)
    module = TrainingModule(potential, config, forces_rms)
    module.model.train()
    # For angles the cutoff is larger than the molecule: equally many of them in each frame.
    dataset = GraphDataset(frames, config.model.cutoff, equal_edges=True)
    compiled = CompiledLoss(module.model, module._loss)
    for indices in ([0, 1, 2, 3], [7, 4, 11, 5]):
        batch = dataset.collate(indices)
        results = []
        for function in (compiled, lambda given: module._loss(module.model(*given.inputs), given)):
            module.zero_grad()
            loss = function(batch)
            loss.backward()
            gradients = module.model.parts(module.model.weights.grad.clone())
            results.append([loss.detach(), *gradients.values()])
        for first, second in zip(*results, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)
        assert any(bool(gradient.abs().max() > 1e-3) for gradient in results[0][1:])
    with pytest.raises(InputError, match=r"batches of one shape.*run\.compile: false"):
        compiled(dataset.collate([0, 1, 2]))


def gradient_of(loss, module):
    module.zero_grad()
    loss.backward()
    return loss.detach(), module.model.weights.grad.clone()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.usefixtures("two_threads")
@pytest.mark.timeout(1200)
def test_compiled_loss_on_two_threads_has_the_value_and_gradient_of_the_eager_one(tmp_path):
    frames = labelled_frames(12)
    content = {"output": str(tmp_path), "data": {"train": "unused.npz"}, "run": {"dtype": "float64"}}
    config = make_config({**content, "model": {"name": "mace", "cutoff": 2.5, "preset": "small"}})
    potential, forces_rms = build_potential(config, frames)
    module = TrainingModule(potential, config, forces_rms)
    dataset = GraphDataset(frames, 2.5, equal_edges=True)  # numbers of neighbours differ
    compiled = CompiledLoss(module.model, module._loss)
    for indices in ([0, 1, 2, 3, 4, 5], [7, 4, 11, 5, 0, 1]):
        batch = dataset.collate(indices)
        shared = gradient_of(compiled(batch), module)
        whole = gradient_of(module._loss(module.model(*batch.inputs), batch), module)
        torch.testing.assert_close(shared, whole, rtol=1e-9, atol=1e-12)
    assert compiled.n_parts == 2
    with pytest.raises(InputError, match=r"batches of one shape"):
        compiled(dataset.collate([0, 1, 2, 3, 4, 5, 6]))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.timeout(1200)
def test_two_threads_train_what_one_does(tmp_path, data):
    one, two = (
        small(data, tmp_path / str(threads), method="muon", run={"compile": True, "threads": threads}).model_copy(
            update={"model": ModelConfig(cutoff=8.0, hyperparameters={"n_features": 16, "n_layers": 1})}
        )
        for threads in (1, 2)
    )
    first, second = weights(train(one)), weights(train(two))
    start = build_potential(one, load_split(one.data).train)[0].state_dict()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-4)
    name = "representation.messages.0.phi.0.weight"
    assert float((first[name] - start[name]).abs().max()) > 1e-3  # the test can fail


@pytest.mark.usefixtures("two_threads")
def test_threads_share_a_batch_and_its_loss_is_the_mean(monkeypatch):
    seen, both = [], threading.Barrier(2, timeout=30.0)

    def graph(self, part):
        def loss_and_gradient(weights, *tensors):  # the mean energy times the sum of the weights
            if threading.current_thread() is not threading.main_thread():
                both.wait()  # at the same time
            seen.append((threading.current_thread().name, torch.get_num_threads(), len(tensors[6])))
            return tensors[6].mean() * weights.sum(), tensors[6].mean() * torch.ones_like(weights)

        return loss_and_gradient, False

    monkeypatch.setattr(CompiledLoss, "_compile", graph)
    batch = GraphDataset(labelled_frames(12), 2.5, equal_edges=True).collate([3, 1, 4, 0, 5, 9])
    model = OneVector(torch.nn.Linear(2, 1).double())
    compiled = CompiledLoss(model, lambda prediction, batch: prediction.energy)
    compiled(batch)
    seen.clear()
    loss = compiled(batch)
    loss.backward()
    torch.testing.assert_close(loss.detach(), batch.energy.mean() * model.weights.detach().sum(), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(model.weights.grad, batch.energy.mean().expand(3), rtol=1e-12, atol=0.0)
    assert sorted(seen) == [("loss_0", 1, 3), ("loss_1", 1, 3)]
    assert torch.get_num_threads() == 1  # for all else


@pytest.mark.usefixtures("two_threads")
def test_validation_has_all_threads_where_steps_leave_few_to_the_rest(tmp_path, data, monkeypatch):
    seen = []
    step, validation = TrainingModule.training_step, TrainingModule.validation_step

    def sharing(self, *arguments):
        torch.set_num_threads(1)  # as a compiled loss does
        return step(self, *arguments)

    def recording(self, *arguments):
        seen.append(torch.get_num_threads())
        return validation(self, *arguments)

    monkeypatch.setattr(TrainingModule, "training_step", sharing)
    monkeypatch.setattr(TrainingModule, "validation_step", recording)
    monkeypatch.setattr(
        TrainingModule, "on_train_epoch_end", lambda self: seen.append(-torch.get_num_threads()) or self._losses.clear()
    )
    refit = fit_module._refit_shift
    monkeypatch.setattr(
        fit_module, "_refit_shift", lambda *given: seen.append(torch.get_num_threads()) or refit(*given)
    )
    train(small(data, tmp_path / "run", epochs=2, run={"threads": 2}))
    assert seen == [2, -1, 2, -1, 2]  # the last is what comes after the training


@pytest.mark.parametrize(("number", "limit", "divisor"), [(6, 2, 2), (5, 2, 1), (10, 16, 10), (6, 4, 3), (1, 1, 1)])
def test_parts_of_a_batch_are_equal_and_at_most_as_many_as_threads(number, limit, divisor):
    assert largest_divisor(number, limit) == divisor


@pytest.mark.parametrize(
    ("n_structures", "threads", "told"), [(5, 2, True), (10, 4, True), (6, 2, False), (3, 8, False)]
)
def test_threads_without_a_part_of_a_batch_are_told_of(capsys, n_structures, threads, told):
    n_parts = _number_of_parts(n_structures, threads)
    assert n_parts == {5: 1, 10: 2, 6: 2, 3: 3}[n_structures]
    assert (f"batch size that {threads} divides" in capsys.readouterr().err) == told


def test_parts_of_a_batch_are_batches():
    dataset = GraphDataset(labelled_frames(6), 2.5)  # with different numbers of edges
    first, second = shared_out(dataset.collate([0, 5, 2, 3]), 2)
    for part, indices in ((first, [0, 5]), (second, [2, 3])):
        for shared, expected in zip(part, dataset.collate(indices), strict=True):
            assert torch.equal(torch.as_tensor(shared), torch.as_tensor(expected))


@pytest.mark.parametrize("name", MODELS)
def test_edges_that_make_frames_equal_change_neither_loss_nor_gradient(tmp_path, name):
    frames = labelled_frames(6)
    content = {"output": str(tmp_path), "data": {"train": "unused.npz"}, "run": {"dtype": "float64"}}
    config = make_config({**content, "model": {"name": name, "cutoff": 2.5, "preset": "small"}})
    module = TrainingModule(*build_potential(config, frames)[:1], config, 1.0)
    plain, equal = (GraphDataset(frames, 2.5, equal_edges=padded) for padded in (False, True))
    counts = [edges.shape[1] for edges in plain.edges]
    assert min(counts) < max(counts)  # there is something to make equal
    assert {edges.shape[1] for edges in equal.edges} == {max(counts)}
    results = []
    for dataset in (plain, equal):
        batch = dataset.collate([0, 1, 2, 3, 4, 5])
        module.zero_grad()
        loss = module._loss(module.model(*batch.inputs), batch)
        loss.backward()
        gradients = [torch.zeros(()) if p.grad is None else p.grad.clone() for p in module.parameters()]
        results.append([loss.detach(), *gradients])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def test_compiled_loss_refuses_a_batch_with_another_number_of_angles(monkeypatch):
    """A chain and a star of four atoms have equally many edges, but not equally many triplets."""
    monkeypatch.setattr(CompiledLoss, "_compile", lambda self, batch: (lambda *tensors: (torch.zeros(()), None), True))
    compiled = CompiledLoss(OneVector(torch.nn.Linear(1, 1)), lambda prediction, batch: prediction.energy)
    nothing = torch.zeros(0)
    chain, star = (
        Batch(torch.zeros(4, 3), nothing, nothing, torch.tensor(edges), nothing, nothing, 1, nothing, nothing)
        for edges in ([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]], [[0, 0, 0, 1, 2, 3], [1, 2, 3, 0, 0, 0]])
    )
    compiled(chain)
    compiled(chain)
    with pytest.raises(InputError, match=r"pairs of edges, for each thread\)"):
        compiled(star)


def test_each_epoch_of_a_training_has_another_order_of_batches(tmp_path, data, monkeypatch):
    seen = []
    original = SeededBatches.__iter__

    def recording(self):
        order = list(original(self))
        seen.append((self.epoch, order))
        return iter(order)

    monkeypatch.setattr(SeededBatches, "__iter__", recording)
    train(small(data, tmp_path / "run", epochs=3))
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    assert len({str(order) for _, order in seen}) == 3


# A budget of time


def by_the_clock(data, output, seconds, **optimizer):
    return small(data, output, run={"budget_minutes": seconds / 60}, schedule="cosine", **optimizer)


def test_budget_ends_the_training_and_anneals_over_it(tmp_path, data):
    folder = train(by_the_clock(data, tmp_path / "run", 4.0, epochs=1))
    minutes = read_learning_curve(folder).minutes
    seconds = 60 * minutes[np.isfinite(minutes)]
    assert len(seconds) > 1  # `epochs` does not count
    assert (np.diff(seconds) > 0).all()
    assert 4.0 <= seconds[-1] < 15.0
    assert learning_rate(folder) < 1e-4  # from 5e-3; time passes between the last look at the clock and the end
    assert last_checkpoint(folder)["callbacks"]["Budget"]["time_elapsed"]["train"] >= 4.0


def test_interrupted_training_goes_on_with_the_rest_of_its_budget(tmp_path, data):
    config = by_the_clock(data, tmp_path / "run", 6.0)
    run_to_death(fit_killed_in_epoch, config, 2, 1)
    spent = last_checkpoint(config.output)["callbacks"]["Budget"]["time_elapsed"]["train"]
    assert 0.0 < spent < 6.0
    assert learning_rate(config.output) < 5e-3
    began = time.monotonic()
    train(config)
    assert is_trained(config.output)
    minutes = read_learning_curve(config.output).minutes
    assert 60 * minutes[-1] >= 6.0
    assert 60 * minutes[-1] <= spent + time.monotonic() - began  # the clock went on, not anew
    assert learning_rate(config.output) < 1e-4


@pytest.fixture
def heeding_interrupts():
    """A program in the background of a shell has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("heeding_interrupts")
def test_training_that_is_told_to_end_says_so_and_goes_on(tmp_path, data, monkeypatch, number):
    config = small(data, tmp_path / "run", epochs=2)
    step = TrainingModule.training_step

    def told(self, *arguments):
        os.kill(os.getpid(), number)  # as batch systems do, or people; Lightning ends after this step
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", told)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not is_trained(config.output)
    held = lock(config.output)
    with pytest.raises(InputError, match="another process writes to"):
        train(config)
    unlock(held)
    train(config)
    assert is_trained(config.output)


def test_training_that_was_killed_when_its_budget_was_spent_does_not_go_on(tmp_path, data):
    config = by_the_clock(data, tmp_path / "run", 2.0)
    run_to_death(fit_killed_before_export, config)
    before = last_checkpoint(config.output)["global_step"]
    train(config)
    assert is_trained(config.output)
    assert last_checkpoint(config.output)["global_step"] == before


def test_few_epochs_of_a_budget_are_validated_and_the_last_is(tmp_path, data, monkeypatch):
    monkeypatch.setattr(budget, "VALIDATIONS", 3)
    folder = train(by_the_clock(data, tmp_path / "run", 4.0))
    curve = read_learning_curve(folder)
    validated = np.isfinite(curve.minutes)
    assert validated[0]
    assert validated[-1]
    assert 3 <= validated.sum() <= 5 < len(curve.epochs)
    assert 60 * curve.minutes[-1] >= 4.0


def test_budget_needs_a_validation_in_each_epoch():
    with pytest.raises(InputError, match=r"`optimizer.validate_every` must be 1 with `run.budget_minutes`.* got 2"):
        make_config({**MINIMAL, "optimizer": {"validate_every": 2}, "run": {"budget_minutes": 1}})
