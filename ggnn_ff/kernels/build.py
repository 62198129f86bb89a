"""Compiles a C++ file of this folder, once, and loads its operators."""

import hashlib
import subprocess
import warnings
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from threading import RLock
from typing import Any

import torch

from ggnn_ff.cache import cache_folder, compiler, machine, why_not_compile
from ggnn_ff.errors import InputError
from ggnn_ff.files import write_atomically

FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]

_LOCK = RLock()


def once(function: Callable[..., None]) -> Callable[..., None]:
    """Calls `function` once for the same arguments, also where several threads ask; the others wait."""
    cached = cache(function)

    @wraps(function)
    def locked(*arguments: Any) -> None:
        with _LOCK:
            cached(*arguments)

    return locked


@once
def load_operators(name: str) -> None:
    """Registers the operators in `name`.cpp with torch.

    Raises:
        InputError: the compiler cannot build it.
    """
    source = Path(__file__).with_name(f"{name}.cpp")
    texts = [file.read_text(encoding="utf8") for file in (source, *sorted(source.parent.glob("*.h")))]
    facts = [texts, FLAGS, torch.__version__, machine()]
    path = cache_folder() / f"{name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.so"
    if path.exists():
        try:
            torch.ops.load_library(path)
        except OSError as error:
            warnings.warn(f"{path} cannot be used and is made anew: {error}", stacklevel=2)
            path.unlink()
    if not path.exists():
        if why := why_not_compile():
            raise InputError(f"`compile` must find a C++ compiler: {why}")
        write_atomically(path, lambda temporary: _build(source, temporary))
        torch.ops.load_library(path)


def _build(source: Path, path: Path) -> None:
    from torch.utils import cpp_extension  # looks for CUDA, and says so where there is none

    folders = [f"-I{folder}" for folder in cpp_extension.include_paths()]
    libraries = [f"-L{folder}" for folder in cpp_extension.library_paths()]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = [compiler(), *FLAGS, abi, *folders, str(source), "-o", str(path), *libraries, "-lc10", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"`compile` must build {source.name}, but {command[0]} failed: {done.stderr.strip()[-2000:]}")
