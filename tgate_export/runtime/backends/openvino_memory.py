"""Buffers that OpenVINO reads and writes in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tgate_export.runtime.backends.host_memory import HostMemory
from tgate_export.runtime.plan import BufferSpec


class OvMemory(HostMemory):
    """Tensors by buffer that share the memory of numpy arrays."""

    def __init__(self, ov: Any, buffers: Mapping[str, BufferSpec]) -> None:
        super().__init__(buffers)
        self.tensors = {
            name: ov.Tensor(array, shared_memory=True) for name, array in self.arrays.items()
        }
