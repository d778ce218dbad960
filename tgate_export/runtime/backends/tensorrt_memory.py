"""Buffers on the GPU that plans read and write in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from tgate_export.runtime.backends.base import Execute, Memory
from tgate_export.runtime.backends.bindings import View
from tgate_export.runtime.backends.cuda import Block, Cuda
from tgate_export.runtime.backends.tensorrt_engine import Engine
from tgate_export.runtime.plan import BufferSpec, Slot


class DeviceMemory(Memory):
    """One block for each tensor that launches are bound to, and one for all rows of a buffer.

    A launch that reads row `i` is queued after a copy of the row to the bound block, so that it
    has the same addresses at every step, and 256-byte alignment whatever the row's size.
    """

    def __init__(
        self,
        cuda: Cuda,
        buffers: Mapping[str, BufferSpec],
        engines: Mapping[str, Engine],
        activations: Block,
        predecessor: DeviceMemory | None = None,
    ) -> None:
        self.engines: Mapping[str, Engine] = (
            {**predecessor.engines, **engines} if predecessor else engines
        )
        self.runs: dict[tuple[str, frozenset[tuple[str, int]]], Execute] = (
            predecessor.runs if predecessor else {}
        )
        self.activations = activations  # what was captured writes there
        self._cuda = cuda
        self._specs = dict(buffers)
        self._bound: dict[str, Block] = predecessor._bound if predecessor else {}
        self._rows: dict[str, Block] = {}
        for name, spec in buffers.items():
            if spec.rows is not None:
                self._rows[name] = self._allocate(name, spec.rows * _row_bytes(spec))
            if predecessor is None:
                self._bound[name] = self._allocate(name, _row_bytes(spec))
        for block in (*self._bound.values(), *self._rows.values()):
            cuda.fill_zero(block)

    def _allocate(self, name: str, size: int) -> Block:
        return self._cuda.allocate(size, f"buffer {name!r}")

    def serves(self, buffers: Mapping[str, BufferSpec], engines: Mapping[str, Engine]) -> bool:
        """Whether launches would be bound to the same addresses, whatever the number of steps."""
        return {name: (spec.dtype, spec.shape) for name, spec in buffers.items()} == {
            name: (spec.dtype, spec.shape) for name, spec in self._specs.items()
        } and all(self.engines.get(graph) is engine for graph, engine in engines.items())

    @property
    def bytes(self) -> int:
        """Size of all buffers."""
        return sum(block.bytes for block in (*self._bound.values(), *self._rows.values()))

    def view(self, slot: Slot) -> View:
        """Return what a launch is bound to for a slot."""
        spec = self._specs[slot.buffer]
        return View(spec.dtype, spec.shape, self._bound[slot.buffer].address)

    def staging_copy(self, slot: Slot) -> Callable[[], None] | None:
        """Return what queues the copy of a row to where launches read it."""
        if slot.row is None:
            return None
        target = self._bound[slot.buffer].address
        size = _row_bytes(self._specs[slot.buffer])
        return partial(self._cuda.copy, target, self._address(slot), size)

    def _address(self, slot: Slot) -> int:
        if slot.row is None:
            return self._bound[slot.buffer].address
        size = _row_bytes(self._specs[slot.buffer])
        return self._rows[slot.buffer].address + slot.row * size

    def write(self, slot: Slot, value: np.ndarray) -> None:
        """See `Memory.write`."""
        spec = self._specs[slot.buffer]
        if value.shape != spec.shape or value.dtype != spec.dtype:
            raise ValueError(
                f"buffer {slot.buffer!r} holds {spec.dtype} {list(spec.shape)}, "
                f"not {value.dtype} {list(value.shape)}"
            )
        self._cuda.upload(self._address(slot), np.ascontiguousarray(value))

    def read(self, slot: Slot) -> np.ndarray:
        """See `Memory.read`."""
        spec = self._specs[slot.buffer]
        value = np.empty(spec.shape, spec.dtype)
        self._cuda.download(value, self._address(slot))
        return value

    def write_rows(self, slot: Slot, rows: Mapping[int, np.ndarray]) -> None:
        """See `Memory.write_rows`."""
        spec = self._specs[slot.buffer]
        for row, value in rows.items():
            if value.shape != spec.shape[1:] or value.dtype != spec.dtype:
                raise ValueError(
                    f"a row of buffer {slot.buffer!r} holds {spec.dtype} {list(spec.shape[1:])}, "
                    f"not {value.dtype} {list(value.shape)}"
                )
            self._cuda.upload(self._address(slot) + row * value.nbytes, np.ascontiguousarray(value))

    def read_rows(self, slot: Slot, rows: Sequence[int]) -> list[np.ndarray]:
        """See `Memory.read_rows`."""
        spec = self._specs[slot.buffer]
        values = [np.empty(spec.shape[1:], spec.dtype) for _ in rows]
        for row, value in zip(rows, values, strict=True):
            self._cuda.download(value, self._address(slot) + row * value.nbytes)
        return values


def _row_bytes(spec: BufferSpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
