"""What is made once for this machine: where it is kept, and what it depends on."""

import os
import platform
import shutil
from pathlib import Path

import torch


def cache_folder() -> Path:
    """GGNN_FF_CACHE, or `ggnn-ff` in the user's cache folder."""
    if chosen := os.environ.get("GGNN_FF_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "ggnn-ff"


def compiler() -> str:
    """The C++ compiler: CXX, or g++."""
    return os.environ.get("CXX", "g++")


def why_not_compile() -> str | None:
    """Why nothing can be compiled here, or None."""
    if shutil.which(compiler()) is None:
        return f"'{compiler()}' is not installed; install g++ (Debian: apt install g++), or set CXX"
    return None


def machine() -> list[str]:
    """What the compiler optimises for."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf8", errors="replace").splitlines() if information.exists() else []
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return [platform.machine(), platform.system(), torch.backends.cpu.get_cpu_capability(), *processor]
