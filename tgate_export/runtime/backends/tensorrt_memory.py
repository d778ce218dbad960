"""Buffers on the GPU that plans read and write in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tgate_export.runtime.backends.base import BackendError, DeviceRow, Execute, Memory, Row
from tgate_export.runtime.backends.bindings import View
from tgate_export.runtime.backends.cuda import Block, Cuda
from tgate_export.runtime.plan import BufferSpec


class BlockRow(DeviceRow):
    """A row in device memory of its own, which outlives the batch that it was taken from."""

    def __init__(self, cuda: Cuda, block: Block, dtype: str, shape: tuple[int, ...]) -> None:
        self.block = block
        self.dtype = dtype
        self.shape = shape
        self._cuda = cuda

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """See `DeviceRow`."""
        value = np.empty(self.shape, self.dtype)
        self._cuda.download(value, self.block.address)
        return value if dtype is None else value.astype(dtype)


class DeviceMemory(Memory):
    """One block for each buffer, at 256-byte alignment, whatever its size.

    Attributes:
        activations: of the plans that are bound here; what was captured writes there.
        runs: what queues a graph, by its name and the addresses that it is bound to.
    """

    def __init__(self, cuda: Cuda, buffers: Mapping[str, BufferSpec], activations: Block) -> None:
        self.activations = activations
        self.runs: dict[tuple[str, frozenset[tuple[str, int]]], Execute] = {}
        self._cuda = cuda
        self._specs = dict(buffers)
        self._blocks = {name: self._allocate(name, _bytes(spec)) for name, spec in buffers.items()}
        for block in self._blocks.values():
            cuda.fill_zero(block)
        self._staged: dict[str, Block] = {}

    def _allocate(self, name: str, size: int) -> Block:
        return self._cuda.allocate(size, f"buffer {name!r}")

    @property
    def bytes(self) -> int:
        """Size of all buffers, and of what is staged for them."""
        return sum(block.bytes for block in (*self._blocks.values(), *self._staged.values()))

    def view(self, buffer: str) -> View:
        """Return what a launch is bound to for a buffer."""
        spec = self._specs[buffer]
        return View(spec.dtype, spec.shape, self._blocks[buffer].address)

    def stage(self, buffer: str, values: np.ndarray) -> Callable[[int], None]:
        """Keep the contents of every step on the device; see `Memory.stage`."""
        spec = self._specs[buffer]
        self._check(buffer, values, (len(values), *spec.shape))
        block = self._staged.get(buffer)
        if block is None or block.bytes < values.nbytes:
            self._staged.pop(buffer, None)  # free it first
            block = self._staged[buffer] = self._allocate(buffer, values.nbytes)
        self._cuda.upload(block.address, np.ascontiguousarray(values))
        target, size = self._blocks[buffer].address, _bytes(spec)

        def load(step: int) -> None:
            self._cuda.copy(target, block.address + step * size, size)

        return load

    def write(self, buffer: str, value: np.ndarray) -> None:
        """See `Memory.write`."""
        self._check(buffer, value, self._specs[buffer].shape)
        self._cuda.upload(self._blocks[buffer].address, np.ascontiguousarray(value))

    def read(self, buffer: str) -> np.ndarray:
        """See `Memory.read`."""
        spec = self._specs[buffer]
        value = np.empty(spec.shape, spec.dtype)
        self._cuda.download(value, self._blocks[buffer].address)
        return value

    def write_rows(self, buffer: str, rows: Mapping[int, Row]) -> None:
        """Copy rows over, those of the device without the host; see `Memory.write_rows`."""
        _, *shape = self._specs[buffer].shape
        for row, value in rows.items():
            self._check(buffer, value, tuple(shape))
            target, size = self._row(buffer, row)
            if isinstance(value, BlockRow):
                self._cuda.copy(target, value.block.address, size)
            else:
                self._cuda.upload(target, np.ascontiguousarray(np.asarray(value)))

    def read_rows(self, buffer: str, rows: Sequence[int]) -> list[np.ndarray]:
        """See `Memory.read_rows`."""
        spec = self._specs[buffer]
        values = [np.empty(spec.shape[1:], spec.dtype) for _ in rows]
        for row, value in zip(rows, values, strict=True):
            self._cuda.download(value, self._row(buffer, row)[0])
        return values

    def take_rows(self, buffer: str, rows: Sequence[int]) -> list[Row]:
        """Return copies on the device, while it has room for them; see `Memory.take_rows`."""
        spec = self._specs[buffer]
        taken: list[Row] = []
        for row in rows:
            source, size = self._row(buffer, row)
            try:
                block = self._cuda.allocate_in_stream(size, f"a row of buffer {buffer!r}")
            except BackendError:  # the device is full
                taken += self.read_rows(buffer, [row])
                continue
            self._cuda.copy(block.address, source, size)
            taken.append(BlockRow(self._cuda, block, spec.dtype, spec.shape[1:]))
        return taken

    def _row(self, buffer: str, row: int) -> tuple[int, int]:
        """Return the address and the size of a row."""
        spec = self._specs[buffer]
        size = _bytes(spec) // spec.shape[0]
        return self._blocks[buffer].address + row * size, size

    def _check(self, buffer: str, value: Any, shape: tuple[int, ...]) -> None:
        dtype = self._specs[buffer].dtype
        if value.shape != shape or value.dtype != dtype:
            raise ValueError(
                f"buffer {buffer!r} takes {dtype} {list(shape)}, not {value.dtype} "
                f"{list(value.shape)}"
            )


def _bytes(spec: BufferSpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
