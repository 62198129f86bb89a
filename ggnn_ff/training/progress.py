"""One line of progress: epochs or minutes, time left, validation errors."""

from typing import Any

import lightning
from lightning.pytorch.callbacks import Timer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class TrainingProgress(lightning.Callback):
    """A bar that counts epochs, or the minutes of a budget, and shows the latest errors on the validation frames."""

    def __init__(self, budget_minutes: float | None) -> None:
        self.budget_minutes = budget_minutes

    def _done(self, trainer: lightning.Trainer) -> float:
        """Epochs, or minutes if there is a budget of them."""
        if self.budget_minutes is None:
            return trainer.current_epoch
        (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, Timer))  # type: ignore[attr-defined]
        return round(timer.time_elapsed() / 60.0, 1)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Shows the bar."""
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs" if self.budget_minutes is None else "minutes"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            disable=not trainer.is_global_zero,
        )
        total = trainer.max_epochs if self.budget_minutes is None else self.budget_minutes
        self.task = self.bar.add_task("", total=total, completed=self._done(trainer))  # type: ignore[arg-type]
        self.bar.start()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """One epoch further."""
        m: dict[str, Any] = trainer.callback_metrics
        text = ""
        if "valid_forces_mae_mev_per_angstrom" in m:
            text = (
                f"valid: energy {float(m['valid_energy_mae_mev']):.1f} meV, "
                f"forces {float(m['valid_forces_mae_mev_per_angstrom']):.1f} meV/angstrom"
            )
        done = self._done(trainer) + (1 if self.budget_minutes is None else 0)
        self.bar.update(self.task, completed=done, description=text)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leaves the finished bar on the screen."""
        self.bar.stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Gives the terminal back."""
        if hasattr(self, "bar"):
            self.bar.stop()
