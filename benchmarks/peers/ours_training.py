"""Ours, as `ggnn-ff train` trains: architecture, hyper-parameters and batch size as arguments, compiled.

A step is the time from one batch to the next, so that all that Lightning does is in it.
"""

import json
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from server import serve_training

from ggnn_ff.training import fit
from ggnn_ff.training.config import make_config
from ggnn_ff.training.module import TrainingModule

name, hyperparameters, batch_size = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
wanted, done = threading.Semaphore(0), threading.Semaphore(0)


class Waiting(TrainingModule):
    """Does a step when it is wanted."""

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Tells that the last step is over, and waits for the next to be wanted."""
        if self.global_step:
            done.release()
        wanted.acquire()


def make_step(path: str) -> Callable[[], None]:
    """Begins a training in another thread."""
    config = make_config(
        {
            "output": str(Path(tempfile.mkdtemp()) / "training"),
            "data": {"train": path, "n_valid": batch_size},
            "model": {"name": name, "cutoff": 5.0, "hyperparameters": hyperparameters},
            "optimizer": {"batch_size": batch_size, "learning_rate": 1e-2, "amsgrad": True, "validate_every": 1000},
            "run": {"seed": 0, "threads": torch.get_num_threads(), "compile": True},
        }
    )
    fit.TrainingModule = Waiting  # type: ignore[misc]
    threading.Thread(target=fit.fit, args=(config,), kwargs={"progress": False}, daemon=True).start()

    def step() -> None:
        wanted.release()
        if not done.acquire(timeout=900):  # seconds; longer than compilation
            raise RuntimeError("the training has ended, see its messages")

    return step


serve_training(make_step, {"torch": torch.__version__})
