"""A training that ends when its time is up."""

import math
import sys
from datetime import timedelta

import lightning
from lightning.pytorch.callbacks import Timer

VALIDATIONS = 200
"""How many there are at most, about; more would take their time from the training."""


class Budget(Timer):
    """Ends the training after a time, over all starts, with a validation: only weights that were validated are kept."""

    def __init__(self, duration: timedelta) -> None:
        super().__init__(duration, verbose=False)
        self.seconds, self.validated = duration.total_seconds(), -math.inf

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Decides whether this epoch is validated; in all processes alike."""
        due = trainer.strategy.broadcast(self.time_elapsed() - self.validated >= self.seconds / VALIDATIONS)
        trainer.check_val_every_n_epoch = 1 if due else sys.maxsize

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Notes when."""
        super().on_validation_end(trainer, pl_module)
        self.validated = self.time_elapsed()

    def _check_time_remaining(self, trainer: lightning.Trainer) -> None:
        super()._check_time_remaining(trainer)
        if trainer.should_stop:
            trainer.check_val_every_n_epoch = 1
