"""The loss and the optimizer, as Lightning wants them."""

import math
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor

from ggnn_ff.errors import InputError
from ggnn_ff.forces import EnergyForces, Prediction
from ggnn_ff.layers import CUSP
from ggnn_ff.potential import Potential
from ggnn_ff.training.batches import Batch
from ggnn_ff.training.compiled import CompiledLoss
from ggnn_ff.training.config import LossConfig, TrainingConfig
from ggnn_ff.training.muon import Muon
from ggnn_ff.training.vector import OneVector

SMALLEST_ERROR = 1e-6
"""In units of the forces' RMS: an error below it counts like it."""


def energy_forces_loss(prediction: Prediction, batch: Batch, loss: LossConfig, forces_rms: float) -> Tensor:
    """The loss of `LossConfig`, of errors in units of `forces_rms` (eV, and eV/angstrom)."""
    energy_error = (prediction.energy - batch.energy) / forces_rms  # (S,)
    forces_error = (prediction.forces - batch.forces) / forces_rms  # (N, 3)
    n_atoms = torch.zeros_like(batch.energy).index_add(0, batch.batch, torch.ones_like(batch.positions[:, 0]))
    if loss.error == "norms":
        energy_terms, forces_terms = _norms(energy_error.unsqueeze(1)) / n_atoms.sqrt(), _norms(forces_error)
    else:
        energy_terms, forces_terms = energy_error.square() / n_atoms, forces_error.square()
    return loss.energy_weight * energy_terms.mean() + loss.forces_weight * forces_terms.mean()


def _norms(vectors: Tensor) -> Tensor:
    """Norms of (n, k) vectors, with a derivative at zero."""
    return (vectors.square().sum(1) + SMALLEST_ERROR**2).sqrt()


class TrainingModule(lightning.LightningModule):
    """Trains a potential on energies and forces."""

    def __init__(self, potential: Potential, config: TrainingConfig, forces_rms: float) -> None:
        super().__init__()
        self.model = OneVector(EnergyForces(potential))
        self.config = config
        self.forces_rms = forces_rms
        self._compiled: CompiledLoss | None = None
        self._losses: list[Tensor] = []  # of the batches of this epoch
        self._threads = self._threads_of_steps = 1

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The loss of one batch."""
        if self.config.run.compile:
            if self._compiled is None:
                self._compiled = CompiledLoss(self.model, self._loss)
            loss = self._compiled(batch)
        else:
            loss = self._loss(self.model(*batch.inputs), batch)
        self._losses.append(loss.detach())
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Scales the gradient to the largest norm that is allowed, and leaves out one that is not finite.

        A single one would turn all weights into NaN; the mean loss of its epoch shows that it came.
        """
        gradient = self.model.weights.grad
        assert gradient is not None
        assert gradient_clip_val is not None
        norm = torch.linalg.vector_norm(gradient)
        gradient.mul_((gradient_clip_val / (norm + 1e-6)).clamp(max=1.0))
        gradient.masked_fill_(~norm.isfinite(), 0.0)  # without asking the device

    def on_train_epoch_end(self) -> None:
        """Logs the mean loss of the epoch."""
        self.log("train_loss", torch.stack(self._losses).mean(), sync_dist=True)
        self._losses.clear()

    def _loss(self, prediction: Prediction, batch: Batch) -> Tensor:
        return energy_forces_loss(prediction, batch, self.config.loss, self.forces_rms)

    def on_fit_start(self) -> None:
        """Notes the threads there are, which Lightning has shared out among its processes by now."""
        self._threads = torch.get_num_threads()

    def on_fit_end(self) -> None:
        """Gives all threads to what comes after."""
        torch.set_num_threads(self._threads)

    def on_validation_start(self) -> None:
        """Gives validation, which is not compiled, all threads; a compiled loss leaves few to the rest of a step."""
        self._threads_of_steps = torch.get_num_threads()
        torch.set_num_threads(self._threads)

    def on_validation_end(self) -> None:
        """As it was."""
        torch.set_num_threads(self._threads_of_steps)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Logs the loss and the mean absolute errors (meV and meV/angstrom), with the averaged weights."""
        with torch.enable_grad():
            prediction = self.model(*batch.inputs)
        energy_error, forces_error = prediction.energy - batch.energy, prediction.forces - batch.forces
        columns = {
            "valid_loss": self._loss(prediction, batch),
            "valid_energy_mae_mev": 1e3 * energy_error.abs().mean(),
            "valid_forces_mae_mev_per_angstrom": 1e3 * forces_error.abs().mean(),
        }
        self.log_dict(columns, on_epoch=True, batch_size=batch.n_structures, sync_dist=True, prog_bar=False)

    def on_validation_epoch_end(self) -> None:
        """Logs how long the training has taken so far."""
        self.log("minutes", self._seconds() / 60.0, sync_dist=True)

    def _seconds(self) -> float:
        """Time of training, over all starts."""
        (timer,) = (callback for callback in self.trainer.callbacks if isinstance(callback, Timer))  # type: ignore[attr-defined]
        return timer.time_elapsed()

    def _annealed(self, budget_minutes: float) -> float:
        """A cosine over the budget from one to `smallest_learning_rate` / `learning_rate`, the same in each process."""
        settings = self.config.optimizer
        smallest = settings.smallest_learning_rate / settings.learning_rate
        progress = min(self.trainer.strategy.broadcast(self._seconds()) / (60.0 * budget_minutes), 1.0)
        return smallest + (1.0 - smallest) * 0.5 * (1.0 + math.cos(math.pi * progress))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the weights do not show: a preset may change from one version to the next."""
        checkpoint["hyperparameters"] = self.config.model.chosen().model_dump()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses what cannot be gone on from.

        Raises:
            InputError: the checkpoint is of a version that kept each weight by itself, or had other hyper-parameters.
        """
        now = self.config.model.chosen().model_dump()
        before = checkpoint.get("hyperparameters", now | {name: CUSP for name in now if name == "softening"})
        if "model.weights" not in checkpoint["state_dict"] or now != before:
            raise InputError(
                f"`output` {self.config.output} has a training of an older version, which this one cannot go on with; "
                "delete the folder to train from the start, or finish with the version that began it"
            )

    def configure_optimizers(self) -> Any:
        """The optimizer with the configured schedule."""
        settings = self.config.optimizer
        rate, decay, amsgrad = settings.learning_rate, settings.weight_decay, settings.amsgrad
        optimizer: torch.optim.Optimizer
        if settings.method == "muon":
            optimizer = Muon(self.model, lr=rate, weight_decay=decay, amsgrad=amsgrad)
        else:
            parameters = self.model.parameters()
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, amsgrad=amsgrad, fused=True)
        budget = self.config.run.budget_minutes
        if settings.schedule == "cosine" and budget is not None:
            by_time = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: self._annealed(budget))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": by_time, "interval": "step"}}
        if settings.schedule == "cosine":
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
                optimizer, T_max=settings.epochs, eta_min=settings.smallest_learning_rate
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "epoch"}}
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            factor=settings.plateau_factor,
            patience=settings.plateau_patience,
            min_lr=settings.smallest_learning_rate,
        )
        scheduler = {
            "scheduler": plateau,
            "monitor": "valid_loss",
            "interval": "epoch",
            "frequency": settings.validate_every,
        }
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps the cosine; `KeepCheckpoints` steps the plateau, since a checkpoint has to hold the outcome."""
        if metric is None:
            scheduler.step()
