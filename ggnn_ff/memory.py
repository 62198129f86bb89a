"""The memory of a step: what it frees stays with the process for the next one."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from malloc.h
_LARGEST = 2**31 - 1  # bytes; mallopt takes no more
_NEVER = -1


def keep_freed_memory() -> None:
    """Tells glibc not to give the temporaries of a step back to the system, only to ask for them again in the next.

    That costs a page fault for every 4 kB. The process never holds more than at its peak. Elsewhere than with glibc,
    and where the environment says how memory is to be kept (`MALLOC_TRIM_THRESHOLD_` or `MALLOC_MMAP_THRESHOLD_`, see
    mallopt(3)), nothing is changed.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, _NEVER)
