"""Buffers that OpenVINO reads and writes in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tgate_export.runtime.backends.base import Memory
from tgate_export.runtime.plan import BufferSpec, Slot


class OvMemory(Memory):
    """Tensors by slot that share the memory of numpy arrays."""

    def __init__(self, ov: Any, buffers: Mapping[str, BufferSpec]) -> None:
        self.tensors: dict[Slot, Any] = {}
        self._arrays: dict[Slot, np.ndarray] = {}
        for name, spec in buffers.items():
            for row in [None] if spec.rows is None else range(spec.rows):
                array = np.zeros(spec.shape, dtype=spec.dtype)
                self._arrays[Slot(name, row)] = array
                self.tensors[Slot(name, row)] = ov.Tensor(array, shared_memory=True)

    def write(self, slot: Slot, value: np.ndarray) -> None:
        """See `Memory.write`."""
        np.copyto(self._arrays[slot], value, casting="no")

    def read(self, slot: Slot) -> np.ndarray:
        """See `Memory.read`."""
        return self._arrays[slot].copy()
