"""What a training shares with the program that calls it, and must leave as it found it."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_DETERMINISTIC: Any = torch.utils.deterministic  # a module that is an object, which type checkers do not look into
_THREADS = "OMP_NUM_THREADS"  # where it is not set, Lightning chooses the threads of each of several processes
_VARIABLES = (_THREADS, "CUBLAS_WORKSPACE_CONFIG")  # the latter is set by Lightning for deterministic results


@contextmanager
def torch_state_kept(seed: int, threads: int | None) -> Iterator[None]:
    """Random numbers from `seed` and a number of threads, within; torch's global state as it was, after."""
    before_threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = _DETERMINISTIC.fill_uninitialized_memory
    benchmark = torch.backends.cudnn.benchmark
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's: weights are made there
            if threads is not None:
                torch.set_num_threads(threads)
                os.environ[_THREADS] = str(threads)
            # Lightning asks for deterministic results; torch then fills all new memory first, 5 % of a step.
            _DETERMINISTIC.fill_uninitialized_memory = False
            yield
    finally:
        torch.set_num_threads(before_threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        _DETERMINISTIC.fill_uninitialized_memory = filled
        torch.backends.cudnn.benchmark = benchmark
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


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
