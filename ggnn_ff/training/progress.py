"""One line of progress: epochs, time left, validation errors."""

from typing import Any

import lightning
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class TrainingProgress(lightning.Callback):
    """A bar that counts epochs and shows the latest errors on the validation frames."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Shows the bar."""
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            disable=not trainer.is_global_zero,
        )
        self.task = self.bar.add_task("", total=trainer.max_epochs, completed=trainer.current_epoch)
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
        self.bar.update(self.task, completed=trainer.current_epoch + 1, description=text)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leaves the finished bar on the screen."""
        self.bar.stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Gives the terminal back."""
        if hasattr(self, "bar"):
            self.bar.stop()
