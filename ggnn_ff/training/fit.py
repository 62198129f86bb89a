"""Training from a configuration to a folder with a potential."""

from pathlib import Path
from typing import cast

import lightning
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from ggnn_ff.contract import TrainingData
from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.data.reference_energies import (
    check_reference_energies,
    least_squares_reference_energies,
    reference_energies_from_atoms,
)
from ggnn_ff.data.splits import Split
from ggnn_ff.errors import InputError
from ggnn_ff.export import CONTRACT, DTYPES, make_contract, write_potential
from ggnn_ff.files import write_atomically
from ggnn_ff.forces import EnergyForces
from ggnn_ff.models import architecture
from ggnn_ff.potential import Potential
from ggnn_ff.training.batches import Batch, GraphDataset, SeededBatches
from ggnn_ff.training.checkpoints import CheckpointFiles, KeepCheckpoints, read_checkpoint
from ggnn_ff.training.config import TrainingConfig
from ggnn_ff.training.evaluation import evaluate_frames
from ggnn_ff.training.module import TrainingModule
from ggnn_ff.training.progress import TrainingProgress
from ggnn_ff.training.split import load_split
from ggnn_ff.training.surroundings import quiet_lightning, torch_state_kept


def fit(config: TrainingConfig, *, progress: bool = True) -> Path:
    """Trains, or goes on with an interrupted training, and writes the potential.

    The folder `config.output` receives the configuration, logs (CSV, TensorBoard), checkpoints after each validation,
    and at the end `weights.safetensors` and `potential.json` with the averaged weights of the best validation.

    Args:
        config: what to train on, what, and how.
        progress: show a progress bar.

    Returns:
        `config.output`.

    Raises:
        InputError: data that cannot be used, or a folder that holds a run of another configuration.
    """
    split = load_split(config.data)
    folder = config.output
    _claim(folder, config)
    with torch_state_kept(config.run.seed, config.run.threads):
        potential, forces_rms = build_potential(config, split.train)
        module = TrainingModule(potential, config, forces_rms)
        best = train(module, config, split, progress=progress)
        return _finish(potential, read_checkpoint(best)["state_dict"], config, split)


def _finish(potential: Potential, weights: dict[str, Tensor], config: TrainingConfig, split: Split) -> Path:
    """Writes the durable form with the weights of a `TrainingModule`, and measured errors; returns the folder."""
    folder = config.output
    potential = potential.cpu()
    potential.load_state_dict({name.removeprefix("model.potential."): tensor for name, tensor in weights.items()})
    for parameter in potential.parameters():
        parameter.requires_grad_(False)
    errors = None
    if len(split.test):
        errors = evaluate_frames(EnergyForces(potential).eval(), split.test, config.model.cutoff).errors(split.test)
    hyperparameters = architecture(config.model.name).hyperparameters(**config.model.hyperparameters)
    contract = make_contract(
        potential,
        config.model.name,
        hyperparameters.model_dump(),
        split.valid.atoms(0),
        elements=split.train.elements,
        level_of_theory=split.train.level_of_theory,
        training_data=TrainingData(
            name=split.train.source,
            n_train=len(split.train),
            n_valid=len(split.valid),
            sha256=split.train.sha256,
        ),
        test_errors=errors,
    )
    write_potential(folder, potential, contract)
    return folder


def build_potential(config: TrainingConfig, frames: LabelledFrames) -> tuple[Potential, float]:
    """An untrained potential whose scale and shift come from the training frames, and the forces' RMS.

    The shift of an element is its reference energy (isolated atoms, or least squares); the scale of every element is
    the RMS of the forces, in eV for a length of 1 angstrom. With isolated atoms the mean of what remains is
    the first value of the readout's bias.
    """
    hyperparameters = architecture(config.model.name).hyperparameters(**config.model.hyperparameters)
    potential = Potential(config.model.name, hyperparameters, config.model.cutoff, DTYPES[config.run.dtype])
    forces_rms = float(np.sqrt((frames.forces**2).mean()))
    if not forces_rms > 0.0:
        raise InputError("the forces of the training frames must not all be zero; check the file's labels")
    if config.data.isolated_atoms is not None:
        reference = reference_energies_from_atoms(config.data.isolated_atoms)
        check_reference_energies(reference, frames)
    else:
        reference = least_squares_reference_energies(frames)
    potential.scale.fill_(forces_rms)
    for number, energy in reference.items():
        potential.shift[number] = energy
    remainder = float(frames.energy.sum() - potential.shift.numpy()[frames.numbers].sum())
    bias = cast(Tensor, potential.readout[-1].bias)
    torch.nn.init.constant_(bias, remainder / len(frames.numbers) / forces_rms)
    return potential, forces_rms


def train(module: TrainingModule, config: TrainingConfig, split: Split, *, progress: bool) -> Path:
    """Runs Lightning; returns the checkpoint with the best validation loss."""
    settings, run = config.optimizer, config.run
    train_set, valid_set = (GraphDataset(f, config.model.cutoff) for f in (split.train, split.valid))
    batches = SeededBatches(len(train_set), settings.batch_size, run.seed)
    train_loader: DataLoader[Batch] = DataLoader(train_set, batch_sampler=batches, collate_fn=train_set.collate)  # type: ignore[arg-type]
    valid_loader: DataLoader[Batch] = DataLoader(valid_set, batch_size=50, collate_fn=valid_set.collate)  # type: ignore[arg-type]
    keep = KeepCheckpoints(config.output / "checkpoints")
    callbacks: list[Callback] = [keep, EMAWeightAveraging(use_buffers=False, decay=settings.ema_decay)]
    if settings.early_stopping_patience is not None:
        callbacks.append(EarlyStopping("valid_loss", patience=settings.early_stopping_patience))
    if progress:
        callbacks.append(TrainingProgress())
    with quiet_lightning():
        trainer = lightning.Trainer(
            accelerator=run.accelerator,
            devices=run.devices,
            strategy=run.strategy,
            max_epochs=settings.epochs,
            gradient_clip_val=settings.gradient_clip,
            check_val_every_n_epoch=settings.validate_every,
            inference_mode=False,  # validation differentiates the energy
            use_distributed_sampler=False,
            logger=[
                CSVLogger(config.output, name="csv"),
                TensorBoardLogger(config.output, name="tensorboard"),
            ],
            callbacks=callbacks,
            plugins=[CheckpointFiles()],
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1_000_000,  # epochs are logged, single steps are not
            num_sanity_val_steps=0,
            deterministic=True,
        )
        last = keep.last if keep.last.exists() else None
        trainer.fit(module, train_loader, valid_loader, ckpt_path=last, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return keep.best


def _claim(folder: Path, config: TrainingConfig) -> None:
    """Writes the configuration, or makes sure that the one there is the same."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    path = folder / "config.yaml"
    if path.exists() and yaml.safe_load(path.read_text(encoding="utf8")) != yaml.safe_load(text):
        raise InputError(
            f"`output` {folder} holds a run with another configuration ({path}); choose another folder, or delete it"
        )
    write_atomically(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf8")


def is_trained(folder: Path) -> bool:
    """Whether `folder` holds a finished training."""
    return (folder / CONTRACT).exists()
