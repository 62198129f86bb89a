"""Training from a configuration to a folder with a potential."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import lightning
import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from ggnn_ff.contract import TrainingData
from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.data.reference_energies import least_squares_reference_energies
from ggnn_ff.data.splits import Split
from ggnn_ff.domain import describe_frames
from ggnn_ff.errors import InputError
from ggnn_ff.export import DTYPES, LoadedPotential, write_potential
from ggnn_ff.files import lock, unlock
from ggnn_ff.forces import EnergyForces
from ggnn_ff.graph import from_atoms
from ggnn_ff.memory import keep_freed_memory
from ggnn_ff.neighbors import neighbor_list
from ggnn_ff.potential import Potential
from ggnn_ff.training.batches import Batch, GraphDataset, SeededBatches
from ggnn_ff.training.budget import Budget
from ggnn_ff.training.checkpoints import CheckpointFiles, KeepCheckpoints, read_checkpoint
from ggnn_ff.training.config import TrainingConfig
from ggnn_ff.training.contract import make_contract
from ggnn_ff.training.data_files import load_reference_energies, load_split
from ggnn_ff.training.evaluation import evaluate_energies, evaluate_frames, frames_at_once
from ggnn_ff.training.folder import check_folder, claim_folder
from ggnn_ff.training.module import TrainingModule
from ggnn_ff.training.progress import TrainingProgress
from ggnn_ff.training.start import copy_weights, load_start, started_from, tell_of_shared_frames
from ggnn_ff.training.surroundings import quiet_lightning, torch_state_kept
from ggnn_ff.training.vector import OneVector

OUTLIER = 50.0  # median deviations from the median; none of a normal distribution is as far


def fit(config: TrainingConfig, *, progress: bool = True) -> Path:
    """Trains, or goes on with an interrupted training, and writes the potential.

    The folder `config.output` receives the configuration, the hashes of the data, logs (CSV, TensorBoard), checkpoints
    after each validation, and at the end `weights.safetensors` and `potential.json` with the averaged weights of the
    best validation.

    Args:
        config: what to train on, what, and how.
        progress: show a progress bar.

    Returns:
        `config.output`.

    Raises:
        InputError: data or devices that cannot be used, or a folder that holds a run of another configuration or on
            other data, or that another process trains in.
    """
    keep_freed_memory()
    split = load_split(config.data)
    _check_cutoff(split.train, config.model.cutoff)
    with torch_state_kept(config.run.seed, config.run.threads), ExitStack() as held:
        start = load_start(config.model, split.train.elements)
        if start is not None:
            tell_of_shared_frames(start, split)
        potential, forces_rms = build_potential(config, split.train, start)
        keep = KeepCheckpoints(config.output / "checkpoints")
        trainer = make_trainer(config, keep, progress=progress)
        _check_batches(config, len(split.train), trainer.world_size)
        claimed = check_folder(config)
        if trainer.is_global_zero:
            config.output.mkdir(parents=True, exist_ok=True)
            held.callback(unlock, lock(config.output))
            claim_folder(claimed)
        train(trainer, TrainingModule(potential, config, forces_rms), config, split, keep.last)
        if trainer.is_global_zero:
            _finish(potential, read_checkpoint(keep.best)["state_dict"], config, split, start)
        trainer.strategy.barrier("the potential is written")
        return config.output


def _finish(
    potential: Potential,
    weights: dict[str, Tensor],
    config: TrainingConfig,
    split: Split,
    start: LoadedPotential | None,
) -> None:
    """Writes the durable form with the weights of a `TrainingModule`, and measured errors."""
    parts = OneVector(potential).parts(weights["model.weights"])
    potential.load_state_dict({**potential.state_dict(), **parts})
    for parameter in potential.parameters():
        parameter.requires_grad_(False)
    _refit_shift(potential, split.train)
    errors = None
    if len(split.test):
        errors = evaluate_frames(EnergyForces(potential).eval(), split.test, config.model.cutoff).errors(split.test)
    hyperparameters = config.model.chosen()
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
        domain=describe_frames(split.train, split.valid, config.model.cutoff),
        started_from=started_from(start),
    )
    write_potential(config.output, potential, contract)


def _refit_shift(potential: Potential, frames: LabelledFrames) -> None:
    """Adds to the shift the reference energies, by least squares, of what is left of the training energies.

    A loss that is mostly about forces learns the constant of the energy late; here it costs one pass over the frames.
    Frames on which a potential to start from explodes do not count.
    """
    energy = frames.energy - evaluate_energies(potential.eval(), frames)
    deviation = np.abs(energy / frames.n_atoms - np.median(energy / frames.n_atoms))
    kept = np.flatnonzero(deviation <= OUTLIER * np.median(deviation))
    remainder = replace(frames, energy=energy).select(kept)
    for number, energy in least_squares_reference_energies(remainder).items():
        potential.shift[number] += energy


def build_potential(
    config: TrainingConfig, frames: LabelledFrames, start: LoadedPotential | None = None
) -> tuple[Potential, float]:
    """An untrained potential whose scale and shift come from the training frames, and the forces' RMS.

    The scale of an element is the RMS of the force components on its atoms, in eV for a length of 1 angstrom. Its shift
    is its reference energy (isolated atoms, or least squares), and with isolated atoms in addition the mean binding
    energy of an atom, so that what a model has to learn is small. With `start`, from `load_start`, the weights and
    the scale are those of that potential, and the shift is what makes it fit these energies best.
    """
    hyperparameters = config.model.chosen()
    potential = Potential(
        config.model.name, hyperparameters, config.model.cutoff, frames.elements, DTYPES[config.run.dtype]
    )
    forces_rms = float(np.sqrt((frames.forces**2).mean()))
    if not forces_rms > 0.0:
        raise InputError("the forces of the training frames must not all be zero; check the file's labels")
    reference = load_reference_energies(config.data, frames)
    for number, energy in reference.items():
        potential.shift[number] = energy
    if start is not None:
        copy_weights(start, potential)
        _refit_shift(potential, frames)
        return potential.train(), forces_rms
    binding = float(frames.energy.sum() - potential.shift.numpy()[frames.numbers].sum())
    potential.shift[list(reference)] += binding / len(frames.numbers)
    for number in np.unique(frames.numbers):
        rms = float(np.sqrt((frames.forces[frames.numbers == number] ** 2).mean()))
        potential.scale[number] = rms if rms > 0.0 else forces_rms  # an atom that is alone feels no force
    return potential, forces_rms


def make_trainer(config: TrainingConfig, keep: KeepCheckpoints, *, progress: bool) -> lightning.Trainer:
    """Lightning's trainer, on the device and with the strategy that `config.run` names.

    Raises:
        InputError: `run.accelerator`, `run.devices` or `run.strategy` do not exist here, or do not go together.
    """
    settings, run = config.optimizer, config.run
    budget = None if run.budget_minutes is None else timedelta(minutes=run.budget_minutes)
    callbacks: list[Callback] = [
        keep,
        WeightAveraging(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay)),
        Timer(verbose=False) if budget is None else Budget(budget),
    ]
    if settings.early_stopping_patience is not None:
        callbacks.append(EarlyStopping("valid_loss", patience=settings.early_stopping_patience))
    if progress:
        callbacks.append(TrainingProgress(run.budget_minutes))
    with quiet_lightning(), _devices_exist(config):
        return lightning.Trainer(
            accelerator=run.accelerator,
            devices=run.devices,
            strategy=run.strategy,
            max_epochs=settings.epochs if budget is None else -1,
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


@contextmanager
def _devices_exist(config: TrainingConfig) -> Iterator[None]:
    """Says which keys are wrong where Lightning finds no such device or strategy."""
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError, ImportError, RuntimeError) as error:
        keys = ("accelerator", "devices", "strategy")
        blamed = [key for key in keys if key in str(error).lower()] or list(keys)
        given = ", ".join(f"`run.{key}: {getattr(config.run, key)}`" for key in blamed)
        raise InputError(
            f"{given} cannot be used on this machine ({error}); correct it, or leave it out to let it be chosen"
        ) from error


def _check_cutoff(frames: LabelledFrames, cutoff: float) -> None:
    """An atom without neighbours teaches nothing; a cutoff in nm leaves all of them without."""
    for k in range(0, len(frames), max(1, len(frames) // 20)):
        if neighbor_list(from_atoms(frames.atoms(k)), cutoff)[0].shape[1] > 0:
            return
    raise InputError(
        f"`model.cutoff` must reach from an atom to others, in angstrom, got {cutoff:g}, within which no two atoms of "
        f"{frames.source} are; 5 is usual"
    )


def _check_batches(config: TrainingConfig, n_train: int, n_processes: int) -> None:
    """Each process needs a batch of its own, or nothing is learnt."""
    batch_size = config.optimizer.batch_size
    if n_processes > 1 and n_train // batch_size < n_processes:
        raise InputError(
            f"`optimizer.batch_size` must leave a batch for each of the {n_processes} processes, got {n_train} "
            f"training frames in batches of {batch_size}; lower it, or `run.devices`"
        )


def train(trainer: lightning.Trainer, module: TrainingModule, config: TrainingConfig, split: Split, last: Path) -> None:
    """Runs Lightning, from the checkpoint `last` on if there is one."""
    train_set = GraphDataset(split.train, config.model.cutoff, equal_edges=config.run.compile)
    valid_set = GraphDataset(split.valid, config.model.cutoff)
    batches = SeededBatches(len(train_set), config.optimizer.batch_size, config.run.seed)
    train_loader: DataLoader[Batch] = DataLoader(train_set, batch_sampler=batches, collate_fn=train_set.collate)  # type: ignore[arg-type]
    at_once = frames_at_once(split.valid)
    valid_loader: DataLoader[Batch] = DataLoader(valid_set, batch_size=at_once, collate_fn=valid_set.collate)  # type: ignore[arg-type]
    start = last if last.exists() else None
    with quiet_lightning(), _interrupts():
        trainer.fit(module, train_loader, valid_loader, ckpt_path=start, weights_only=True)


@contextmanager
def _interrupts() -> Iterator[None]:
    """Raises KeyboardInterrupt where Lightning would end the program, with signals off: after Ctrl-C, and SIGTERM."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from stop
