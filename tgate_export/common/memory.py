"""Give memory back between stages that need gigabytes."""

from __future__ import annotations

import ctypes
import gc


def release_memory() -> None:
    """Collect garbage, and return free heap pages to the system.

    The C library keeps what is freed below its highest block, which a model's weights easily are.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)
