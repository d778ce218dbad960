"""Buffers that ONNX Runtime reads and writes in place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tgate_export.runtime.backends.base import Memory, Row
from tgate_export.runtime.backends.host_memory import HostMemory
from tgate_export.runtime.backends.onnxruntime_rows import DeviceCopies, OrtRow
from tgate_export.runtime.plan import BufferSpec


class OrtMemory(HostMemory):
    """Arrays in the host's memory, which launches are bound to by address."""

    device = "cpu"

    def __init__(self, buffers: Mapping[str, BufferSpec]) -> None:
        super().__init__(buffers)
        self.specs = dict(buffers)

    def address(self, buffer: str) -> int:
        """Return where a buffer begins."""
        return self.arrays[buffer].ctypes.data


class OrtDeviceMemory(Memory):
    """One OrtValue on the GPU for each buffer; rows move there, too."""

    device = "cuda"

    def __init__(self, ort: Any, buffers: Mapping[str, BufferSpec], copies: DeviceCopies) -> None:
        self.specs = dict(buffers)
        self._new = ort.OrtValue
        self._copies = copies
        self._values = {
            name: self._on_device(np.zeros(spec.shape, spec.dtype))
            for name, spec in buffers.items()
        }

    def _on_device(self, array: np.ndarray) -> Any:
        return self._new.ortvalue_from_numpy(np.ascontiguousarray(array), self.device, 0)

    def address(self, buffer: str) -> int:
        """Return where a buffer begins."""
        return int(self._values[buffer].data_ptr())

    def write(self, buffer: str, value: np.ndarray) -> None:
        """See `Memory.write`."""
        self._values[buffer].update_inplace(np.ascontiguousarray(value))

    def read(self, buffer: str) -> np.ndarray:
        """See `Memory.read`."""
        array: np.ndarray = self._values[buffer].numpy()
        return array

    def write_rows(self, buffer: str, rows: Mapping[int, Row]) -> None:
        """Copy rows over, those of the device without the host; see `Memory.write_rows`."""
        spec = self.specs[buffer]
        if len(rows) == spec.shape[0] and not any(isinstance(r, OrtRow) for r in rows.values()):
            self.write(buffer, np.stack([np.asarray(rows[row]) for row in range(len(rows))]))
            return
        for row, value in rows.items():
            source = (
                value.value if isinstance(value, OrtRow) else self._on_device(np.asarray(value))
            )
            self._copies.copy(self._row(buffer, row), source.data_ptr(), spec.dtype, spec.shape[1:])

    def read_rows(self, buffer: str, rows: Sequence[int]) -> list[np.ndarray]:
        """See `Memory.read_rows`."""
        return [np.asarray(row) for row in self.take_rows(buffer, rows)]

    def take_rows(self, buffer: str, rows: Sequence[int]) -> list[Row]:
        """Return copies on the device, while it has room for them; see `Memory.take_rows`."""
        _, *shape = self.specs[buffer].shape
        dtype = self.specs[buffer].dtype
        taken: list[Row] = []
        for row in rows:
            try:
                value = self._new.ortvalue_from_shape_and_type(
                    shape, np.dtype(dtype).type, self.device, 0
                )
            except Exception:  # the device is full: onnxruntime raises types of its own
                taken.append(self.read(buffer)[row].copy())
                continue
            self._copies.copy(value.data_ptr(), self._row(buffer, row), dtype, shape)
            taken.append(OrtRow(value))
        return taken

    def _row(self, buffer: str, row: int) -> int:
        """Return the address of a row."""
        spec = self.specs[buffer]
        size = math.prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize
        return self.address(buffer) + row * size
