"""Classes in C++ by which a host steps a compiled potential without Python, from Python and from TorchScript."""

from pathlib import Path
from typing import Any

import torch

from ggnn_ff.kernels.build import load_operators


def load_package(path: Path, device: torch.device, threads: int) -> Any:
    """A package of AOTInductor; its `run` takes and gives a list of tensors, in so many threads at once.

    Raises:
        InputError: the compiler cannot build the class.
        RuntimeError: `path` is no package, or damaged.
    """
    load_operators("host")
    return torch.classes.ggnn_ff_host.Package(str(path), -1 if device.index is None else device.index, threads)


def make_edges(cutoff: float, skin: float, shortest: float) -> Any:
    """Edges of a structure that moves, as from `SkinNeighborList`; where `find` has none, `list` wants new pairs.

    All take positions (N, 3) and a cell (3, 3), and give edges (2, E) and the offsets of their cells (E, 3), angstrom:
    all that are within the cutoff, and where these are fewer than four, some that are further and add nothing.

    Raises:
        InputError: the compiler cannot build the class.
    """
    load_operators("host")
    return torch.classes.ggnn_ff_host.Edges(cutoff, skin, shortest)
