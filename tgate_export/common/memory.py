"""Give memory back between stages that need gigabytes."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

# What PyTorch and the libraries beside it take, and some: below it nothing is worth a search of
# all objects, which takes a sixth of the time that a small model is built in.
_SMALL_BYTES = 2**30


def resident_bytes() -> int | None:
    """Return the memory of this process that is in use; None where Linux does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def release_memory() -> None:
    """Collect garbage, and return free heap pages to the system, where there is much in use.

    The C library keeps what is freed below its highest block, which a model's weights easily are.
    """
    resident = resident_bytes()
    if resident is not None and resident < _SMALL_BYTES:
        return
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)
