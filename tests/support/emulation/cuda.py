"""The part of `cuda.bindings.runtime` that the runtime uses, on host memory.

What a GPU does late happens late here too: a stream only queues, until somebody waits. A missing
wait shows as an old value, memory that was freed or never written as NaN.
"""

# The library's names.
# ruff: noqa: N801, N802, N803, N815

from __future__ import annotations

import ctypes
import enum
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

POISON = 0xFF  # every float of these bytes is NaN
Operation = Callable[[], None]


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorNotReady = 600
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


OK = cudaError_t.cudaSuccess


@dataclass
class Stream:
    queued: list[Operation] = field(default_factory=list)
    captured: list[Operation] | None = None
    broken: bool = False

    def put(self, operation: Operation) -> None:
        (self.queued if self.captured is None else self.captured).append(operation)

    def drain(self) -> None:
        while self.queued:
            self.queued.pop(0)()


class CudaEmulation:
    """Stands for the module; `calls` counts what was called, by name.

    Attributes:
        memory_limit: bytes that may be allocated.
        live: size of every block, by address.
    """

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaDeviceAttr = cudaDeviceAttr
    cudaStreamNonBlocking = 1

    def __init__(self) -> None:
        self.driver, self.version, self.devices = 13020, 13050, 1
        self.compute_capability = (8, 9)
        self.memory_limit = 1 << 28
        self.live: dict[int, int] = {}
        self.calls: dict[str, int] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Operation]] = {}
        self.events: dict[int, float | None] = {}
        self.clock = 0.0
        self._handles = 0
        self._arrays: list[np.ndarray] = []  # also of freed blocks: reading them must be safe

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("cuda") or not inspect.ismethod(value):
            return value

        @functools.wraps(value)
        def counted(*arguments: Any) -> tuple[Any, ...]:
            self.calls[name] = self.calls.get(name, 0) + 1
            result: tuple[Any, ...] = value(*arguments)
            return result

        return counted

    def _handle(self) -> int:
        self._handles += 1
        return self._handles

    def capturing(self) -> bool:
        return any(stream.captured is not None for stream in self.streams.values())

    def block_of(self, address: int, size: int) -> None:
        """Fail unless these bytes lie in one block that is allocated."""
        inside = any(
            start <= address and address + size <= start + have for start, have in self.live.items()
        )
        assert inside, f"{size} bytes at {address:#x} are not allocated"

    def view(self, address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return allocated memory as an array."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.block_of(address, size)
        raw = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(raw, dtype=dtype).reshape(shape)

    # The device

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return OK, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return OK, self.version

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (OK, self.devices) if self.devices else (cudaError_t.cudaErrorNoDevice, None)

    def cudaGetErrorString(self, error: cudaError_t) -> tuple[Any, ...]:
        return OK, error.name.encode()

    def cudaDeviceGetAttribute(self, attr: cudaDeviceAttr, device: int) -> tuple[Any, ...]:
        assert device == 0
        major = attr == cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
        return OK, self.compute_capability[0 if major else 1]

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return OK, self.memory_limit - sum(self.live.values()), self.memory_limit

    # Memory

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate(size)

    def _allocate(self, size: int) -> tuple[Any, ...]:
        if self.capturing():
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        if sum(self.live.values()) + size > self.memory_limit:
            return cudaError_t.cudaErrorMemoryAllocation, None
        array = np.full(size + 512, POISON, np.uint8)
        self._arrays.append(array)
        address = -(-array.ctypes.data // 256) * 256
        self.live[address] = size
        return OK, address

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        for stream in self.streams.values():  # as the real one, it waits
            stream.drain()
        ctypes.memset(devPtr, POISON, self.live.pop(devPtr))
        return (OK,)

    def cudaMallocAsync(self, size: int, hStream: int) -> tuple[Any, ...]:
        assert hStream in self.streams
        return self._allocate(size)

    def cudaFreeAsync(self, devPtr: int, hStream: int) -> tuple[Any, ...]:
        self.streams[hStream].put(
            lambda: ctypes.memset(devPtr, POISON, self.live.pop(devPtr)) and None
        )
        return (OK,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> tuple[Any, ...]:
        self.block_of(devPtr, count)
        self.streams[stream].put(lambda: ctypes.memset(devPtr, value, count) and None)
        return (OK,)

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: int
    ) -> tuple[Any, ...]:
        source: Any = src
        if kind == cudaMemcpyKind.cudaMemcpyHostToDevice:
            source = ctypes.string_at(src, count)  # pageable memory is read before it returns
        else:
            self.block_of(src, count)
        if kind != cudaMemcpyKind.cudaMemcpyDeviceToHost:
            self.block_of(dst, count)
        self.streams[stream].put(lambda: ctypes.memmove(dst, source, count) and None)
        return (OK,)

    # Streams and events

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        self.streams[handle := self._handle()] = Stream()
        return OK, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self.streams.pop(stream).drain()
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        if self.streams[stream].captured is not None:
            self.streams[stream].broken = True
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self.streams[stream].drain()
        return (OK,)

    def cudaEventCreate(self) -> tuple[Any, ...]:
        self.events[handle := self._handle()] = None
        return OK, handle

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        del self.events[event]
        return (OK,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        def happen() -> None:
            if event in self.events:
                self.events[event] = self.clock

        self.streams[stream].put(happen)
        return (OK,)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Any, ...]:
        first, last = self.events[start], self.events[end]
        if first is None or last is None:
            return cudaError_t.cudaErrorNotReady, None
        return OK, last - first

    # Graphs

    def cudaStreamBeginCapture(self, stream: int, mode: cudaStreamCaptureMode) -> tuple[Any, ...]:
        assert mode == cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.streams[stream].captured = []
        self.streams[stream].broken = False
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        found = self.streams[stream]
        operations, found.captured = found.captured, None
        if found.broken or operations is None:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        self.graphs[handle := self._handle()] = operations
        return OK, handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        self.graphs[handle := self._handle()] = list(self.graphs[graph])
        return OK, handle

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> tuple[Any, ...]:
        for operation in self.graphs[graphExec]:
            self.streams[stream].put(operation)
        return (OK,)

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        del self.graphs[graph]
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec: int) -> tuple[Any, ...]:
        del self.graphs[graphExec]
        return (OK,)
