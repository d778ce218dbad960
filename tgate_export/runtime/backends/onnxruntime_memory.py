"""Buffers that ONNX Runtime reads and writes in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tgate_export.runtime.backends.base import Execute, Memory
from tgate_export.runtime.plan import BufferSpec, Slot

# What tells one launch from another: graph, tensor -> buffer, and how many of a batch.
LaunchKey = tuple[str, frozenset[tuple[str, str]], int | None]


class OrtMemory(Memory):
    """OrtValues by slot that share memory with numpy arrays."""

    device = "cpu"

    def __init__(self, ort: Any, buffers: Mapping[str, BufferSpec]) -> None:
        self.specs = dict(buffers)
        self._values: dict[Slot, Any] = {}
        self._arrays: dict[Slot, np.ndarray] = {}
        for name, spec in buffers.items():
            for row in [None] if spec.rows is None else range(spec.rows):
                slot = Slot(name, row)
                self._arrays[slot] = np.zeros(spec.shape, dtype=spec.dtype)
                self._values[slot] = ort.OrtValue.ortvalue_from_numpy(self._arrays[slot], "cpu", 0)

    def value(self, slot: Slot) -> Any:
        """Return what a launch is bound to for a slot."""
        return self._values[slot]

    def write(self, slot: Slot, value: np.ndarray) -> None:
        """See `Memory.write`."""
        np.copyto(self._arrays[slot], value, casting="no")

    def read(self, slot: Slot) -> np.ndarray:
        """See `Memory.read`."""
        return self._arrays[slot].copy()

    def write_rows(self, slot: Slot, rows: Mapping[int, np.ndarray]) -> None:
        """See `Memory.write_rows`."""
        array = self._arrays[slot]
        for row, value in rows.items():
            np.copyto(array[row, ...], value, casting="no")

    def read_rows(self, slot: Slot, rows: Sequence[int]) -> list[np.ndarray]:
        """See `Memory.read_rows`."""
        return [self._arrays[slot][row].copy() for row in rows]


class OrtDeviceMemory(Memory):
    """One OrtValue on the GPU for each tensor that launches are bound to; rows are on the host.

    A launch that reads row `i` copies it over first, so that it has the same addresses at every
    step: a CUDA graph is captured once.
    """

    device = "cuda"

    def __init__(
        self,
        ort: Any,
        buffers: Mapping[str, BufferSpec],
        predecessor: OrtDeviceMemory | None = None,
    ) -> None:
        self.specs = dict(buffers)
        self.runs: dict[LaunchKey, Execute] = predecessor.runs if predecessor else {}
        self._values: dict[str, Any] = predecessor._values if predecessor else {}
        self._rows = {
            name: np.zeros((spec.rows, *spec.shape), spec.dtype)
            for name, spec in buffers.items()
            if spec.rows is not None
        }
        for name, spec in buffers.items():
            zeros = np.zeros(spec.shape, spec.dtype)
            if predecessor:
                self._values[name].update_inplace(zeros)
            else:
                self._values[name] = ort.OrtValue.ortvalue_from_numpy(zeros, self.device, 0)

    def serves(self, buffers: Mapping[str, BufferSpec]) -> bool:
        """Whether launches would be bound to the same addresses, whatever the number of steps."""
        return {name: (spec.dtype, spec.shape) for name, spec in buffers.items()} == {
            name: (spec.dtype, spec.shape) for name, spec in self.specs.items()
        }

    def value(self, slot: Slot) -> Any:
        """Return what a launch is bound to for a slot."""
        return self._values[slot.buffer]

    def copies(self, slots: Iterable[Slot]) -> list[Callable[[], None]]:
        """Return what copies rows to where launches read them."""
        return [
            partial(self._values[slot.buffer].update_inplace, self._rows[slot.buffer][slot.row])
            for slot in slots
            if slot.row is not None
        ]

    def write(self, slot: Slot, value: np.ndarray) -> None:
        """See `Memory.write`."""
        if slot.row is not None:
            np.copyto(self._rows[slot.buffer][slot.row], value, casting="no")
        else:
            self._values[slot.buffer].update_inplace(np.ascontiguousarray(value))

    def read(self, slot: Slot) -> np.ndarray:
        """See `Memory.read`."""
        if slot.row is not None:
            return self._rows[slot.buffer][slot.row].copy()
        array: np.ndarray = self._values[slot.buffer].numpy()
        return array
