"""Shared by the tests: where the reference data is, and an untrained potential on disk."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; for molecules threads only wait
os.environ.setdefault("GGNN_FF_COMPILE", "0")  # a minute for each potential; those tests that compile say so

import pytest
from untrained import write_untrained

from ggnn_ff.export import TORCHSCRIPT, export_torchscript


def shared_data(*parts: str) -> Path:
    """A file of the reference data, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("GGNN_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference data absent: {path} (set GGNN_DATA to the folder that holds it)")
    return path


@pytest.fixture(scope="session")
def potential_folder(tmp_path_factory) -> Path:
    """The durable form of a small random PaiNN in float32 for H, C and O."""
    hyperparameters = {"n_features": 16, "n_layers": 2, "n_radial": 6}
    return write_untrained(tmp_path_factory.mktemp("potential"), "painn", hyperparameters)


@pytest.fixture(scope="session")
def potential_file(potential_folder, tmp_path_factory) -> Path:
    """The TorchScript form of `potential_folder`."""
    path = tmp_path_factory.mktemp("torchscript") / TORCHSCRIPT
    export_torchscript(potential_folder, path)
    return path


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory) -> Path:
    """The durable form of a small PaiNN trained on ethanol held by springs, good enough for dynamics at 300 K."""
    from spring_molecule import write_frames

    from ggnn_ff.training.config import make_config
    from ggnn_ff.training.fit import fit

    folder = tmp_path_factory.mktemp("trained")
    config = {
        "output": str(folder / "run"),
        "data": {"train": str(write_frames(folder / "springs.npz", 170)), "n_train": 120, "n_valid": 20, "n_test": 30},
        "model": {"cutoff": 5.0, "hyperparameters": {"n_features": 16, "n_layers": 2, "n_radial": 8}},
        "optimizer": {
            "epochs": 40,
            "learning_rate": 5e-3,
            "schedule": "cosine",
            "ema_decay": 0.9,
            "gradient_clip": 10.0,
        },
        "run": {"threads": 1, "accelerator": "cpu"},
    }
    return fit(make_config(config), progress=False)
