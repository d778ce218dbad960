"""Buffers in the host's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tgate_export.runtime.backends.base import Memory, Row
from tgate_export.runtime.plan import BufferSpec


class HostMemory(Memory):
    """Numpy arrays by buffer, which engines read and write in place.

    Attributes:
        arrays: zeros at first.
    """

    def __init__(self, buffers: Mapping[str, BufferSpec]) -> None:
        self.arrays = {name: np.zeros(spec.shape, spec.dtype) for name, spec in buffers.items()}

    def write(self, buffer: str, value: np.ndarray) -> None:
        """See `Memory.write`."""
        np.copyto(self.arrays[buffer], value, casting="no")

    def read(self, buffer: str) -> np.ndarray:
        """See `Memory.read`."""
        return self.arrays[buffer].copy()

    def write_rows(self, buffer: str, rows: Mapping[int, Row]) -> None:
        """See `Memory.write_rows`."""
        array = self.arrays[buffer]
        for row, value in rows.items():
            np.copyto(array[row, ...], np.asarray(value), casting="no")

    def read_rows(self, buffer: str, rows: Sequence[int]) -> list[np.ndarray]:
        """See `Memory.read_rows`."""
        return [self.arrays[buffer][row].copy() for row in rows]
