"""What a training shares with the program that calls it, and must leave as it found it."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # set by Lightning for deterministic results


@contextmanager
def torch_state_kept(seed: int, threads: int | None) -> Iterator[None]:
    """Random numbers from `seed` and a number of threads, within; torch's global state as it was, after."""
    before_threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, cublas = torch.backends.cudnn.benchmark, os.environ.get(_CUBLAS)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's: weights are made there
            if threads is not None:
                torch.set_num_threads(threads)
            yield
    finally:
        torch.set_num_threads(before_threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        os.environ.pop(_CUBLAS, None)
        if cublas is not None:
            os.environ[_CUBLAS] = cublas


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keeps back what Lightning says about choices that are made on purpose here."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    expected = ("does not have many workers", "smaller than the logging interval")
    try:
        with warnings.catch_warnings():
            for message in expected:
                warnings.filterwarnings("ignore", message=f".*{message}.*")
            yield
    finally:
        logger.setLevel(level)
