"""Give memory back: what Python no longer uses, and what the C library keeps for later."""

from __future__ import annotations

import ctypes
import gc
import sys


def release_memory() -> None:
    """Collect garbage and return freed memory to the system.

    Tensors of some megabytes leave holes in glibc's heaps, which it keeps: gigabytes, after a large
    model was converted layer by layer.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in musl
        if trim is not None:
            trim(0)
