"""Checkpoints: after each validation the last state, and the best one, each file written in one step."""

import io
import math
import pickle
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

from ggnn_ff.errors import InputError
from ggnn_ff.files import holding, write_atomically


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors and plain values from a checkpoint on the CPU; nothing in the file is executed.

    Raises:
        InputError: the file is damaged, or holds more than tensors and plain values.
        OSError: it cannot be read.
    """
    content = io.BytesIO(path.read_bytes())
    try:
        return torch.load(content, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, OSError) as error:
        raise InputError(
            f"{path} is not a checkpoint of a training, or is damaged ({type(error).__name__}); delete the folder "
            f"{path.parent} to train from the start"
        ) from error


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning reads and writes the files.

    Its own way writes to the system's temporary folder first; from there a file moves in one step only within a disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes in one step.

        Raises:
            OSError: naming the file, which is left as it was; the disk is full or not writable.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(Path(path), holding(content.getvalue()))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads without unpickling code."""
        return read_checkpoint(Path(path))


class KeepCheckpoints(Checkpoint):
    """Writes `best.ckpt` where a validation gives the lowest loss so far, and `last.ckpt` after every validation.

    A run that goes on from `last.ckpt` must end as if it had never stopped. So what the validation decides is decided
    before the file is written: learning-rate reduction here, early stopping in its own callback, which comes first.
    """

    def __init__(self, folder: Path) -> None:
        self.best, self.last = folder / "best.ckpt", folder / "last.ckpt"
        self.lowest = math.inf
        self.validated = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stops again a run that was killed after the decision to stop early."""
        stops = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]  # type: ignore[attr-defined]
        if any(stop.wait_count >= stop.patience for stop in stops):
            trainer.should_stop = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Notes that this epoch has a validation."""
        self.validated = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Reduces the learning rate if due, and writes.

        Raises:
            InputError: the loss is not finite.
        """
        if not self.validated:
            return
        self.validated = False
        loss = float(trainer.callback_metrics["valid_loss"])
        if not math.isfinite(loss):
            raise InputError(
                f"the validation loss is {loss} after epoch {trainer.current_epoch}: the training diverged; train into "
                "another folder with a lower `optimizer.learning_rate` or `optimizer.gradient_clip`"
            )
        for config in trainer.lr_scheduler_configs:
            if config.reduce_on_plateau:
                config.scheduler.step(loss)  # type: ignore[arg-type]
        if loss < self.lowest:
            self.lowest = loss
            trainer.save_checkpoint(self.best)
        trainer.save_checkpoint(self.last)  # second: after a kill in between, the best is found and written again

    def state_dict(self) -> dict[str, float]:
        """The lowest loss."""
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Goes on from a checkpoint."""
        self.lowest = state_dict["lowest"]
