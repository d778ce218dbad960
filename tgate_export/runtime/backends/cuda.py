"""The CUDA runtime, as thin as it can be: checked calls, and objects that free themselves.

Every call goes through `Cuda.check`, which turns an error code into a `BackendError`. Objects are
freed when nothing refers to them any more; at the end of the process the driver does it.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from tgate_export.common.hints import Argument
from tgate_export.common.install import pip_install
from tgate_export.runtime.backends.base import BackendError

ELSEWHERE = (", or use ", Argument("backend", "onnxruntime:cpu"))


def has_driver() -> bool:
    """Whether there is an NVIDIA driver with a GPU; without cuda-bindings."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


class Cuda:
    """One GPU, and the stream on which everything of ours runs, in order."""

    def __init__(self, extra: str) -> None:
        """Probe the machine.

        Args:
            extra: of ours, that brings cuda-bindings.

        Raises:
            BackendError: no cuda-bindings, no driver, one that is too old, or no GPU.
        """
        try:
            from cuda.bindings import runtime
        except ImportError:
            raise BackendError(
                "cuda-bindings is not installed", pip_install(extra), *ELSEWHERE
            ) from None
        self.runtime = runtime
        self._probe()
        flags = runtime.cudaStreamNonBlocking
        self.stream = int(self.check(runtime.cudaStreamCreateWithFlags(flags), "make a stream"))
        self._freed: deque[int] = deque()  # by any thread
        weakref.finalize(self, _close, runtime, self.stream, self._freed).atexit = False

    def _probe(self) -> None:
        error, driver = self.runtime.cudaDriverGetVersion()
        if error != self.runtime.cudaError_t.cudaSuccess or not driver:
            raise BackendError(
                "no CUDA driver on this machine", "install NVIDIA's driver", *ELSEWHERE
            )
        needed = self.check(self.runtime.cudaRuntimeGetVersion(), "ask for its version")
        if driver // 1000 < needed // 1000:
            raise BackendError(
                f"the CUDA driver is too old (it supports CUDA {_version(driver)}, and "
                f"{needed // 1000}.0 or later is needed)",
                f"update NVIDIA's driver, or pip install 'cuda-bindings=={driver // 1000}.*'",
            )
        error, count = self.runtime.cudaGetDeviceCount()
        if error != self.runtime.cudaError_t.cudaSuccess or not count:
            raise BackendError(
                f"no CUDA GPU ({self._text(error)})",
                "check nvidia-smi and CUDA_VISIBLE_DEVICES",
                *ELSEWHERE,
            )

    def _text(self, error: Any) -> str:
        _, text = self.runtime.cudaGetErrorString(error)
        return text.decode() if isinstance(text, bytes) else str(text)

    def check(self, result: tuple[Any, ...], doing: str) -> Any:
        """Return a call's value.

        Raises:
            BackendError: the call failed; says what it was to do.
        """
        error, *values = result
        if error != self.runtime.cudaError_t.cudaSuccess:
            raise BackendError(f"CUDA could not {doing}: {self._text(error)} ({error.name})")
        return values[0] if values else None

    def compute_capability(self) -> str:
        """Return the GPU's, such as "8.9"."""
        attributes = self.runtime.cudaDeviceAttr
        major, minor = (
            self.check(self.runtime.cudaDeviceGetAttribute(attribute, 0), "ask for the GPU")
            for attribute in (
                attributes.cudaDevAttrComputeCapabilityMajor,
                attributes.cudaDevAttrComputeCapabilityMinor,
            )
        )
        return f"{major}.{minor}"

    def free_bytes(self) -> int:
        """Return how much memory could still be allocated."""
        error, free, _total = self.runtime.cudaMemGetInfo()
        return int(free) if error == self.runtime.cudaError_t.cudaSuccess else 0

    def allocate(self, size: int, purpose: str) -> Block:
        """Allocate device memory.

        Raises:
            BackendError: there is not enough; says how much was needed and what was free.
        """
        error, address = self.runtime.cudaMalloc(max(size, 1))
        if error == self.runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise out_of_memory(purpose, size, self.free_bytes())
        self.check((error,), f"allocate {size} bytes for {purpose}")
        return Block(int(address), size, self.runtime.cudaFree)

    def allocate_in_stream(self, size: int, purpose: str) -> Block:
        """Queue an allocation, from memory that blocks freed before it gave back to the stream.

        Raises:
            BackendError: there is not enough.
        """
        _free_in_stream(self.runtime, self.stream, self._freed)
        error, address = self.runtime.cudaMallocAsync(max(size, 1), self.stream)
        if error == self.runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise out_of_memory(purpose, size, self.free_bytes())
        self.check((error,), f"allocate {size} bytes for {purpose}")
        return Block(int(address), size, self._free_later)

    def _free_later(self, address: int) -> None:
        """Note what is to be freed: somebody else may have the turn, and capture the stream."""
        self._freed.append(address)

    def fill_zero(self, block: Block) -> None:
        """Queue zeros for a block."""
        result = self.runtime.cudaMemsetAsync(block.address, 0, block.bytes, self.stream)
        self.check(result, "clear memory")

    def copy(self, target: int, source: int, size: int) -> None:
        """Queue a copy from device to device."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        result = self.runtime.cudaMemcpyAsync(target, source, size, kind, self.stream)
        self.check(result, "copy on the device")

    def upload(self, target: int, value: np.ndarray) -> None:
        """Queue a copy of a contiguous array; the call returns when `value` may be changed."""
        # CUDA reads pageable memory before it returns, and does not wait for the device.
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        result = self.runtime.cudaMemcpyAsync(
            target, value.ctypes.data, value.nbytes, kind, self.stream
        )
        self.check(result, "copy to the device")

    def download(self, value: np.ndarray, source: int) -> None:
        """Wait for what was queued, and copy to a contiguous array."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        result = self.runtime.cudaMemcpyAsync(
            value.ctypes.data, source, value.nbytes, kind, self.stream
        )
        self.check(result, "copy from the device")
        self.synchronize()

    def synchronize(self) -> None:
        """Wait for what was queued."""
        _free_in_stream(self.runtime, self.stream, self._freed)
        self.check(self.runtime.cudaStreamSynchronize(self.stream), "run what was queued")

    def record(self) -> Event:
        """Queue a time stamp."""
        event = Event(self.runtime, self.check(self.runtime.cudaEventCreate(), "make an event"))
        self.check(self.runtime.cudaEventRecord(event.handle, self.stream), "record an event")
        return event

    def seconds(self, start: Event, end: Event) -> float:
        """Return the time between two time stamps that the device has passed."""
        result = self.runtime.cudaEventElapsedTime(start.handle, end.handle)
        return float(self.check(result, "read a time")) / 1e3

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record what `enqueue` would queue, without running it.

        Raises:
            BackendError: it does something that cannot be captured.
        """
        runtime = self.runtime
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.check(runtime.cudaStreamBeginCapture(self.stream, mode), "begin a capture")
        try:
            enqueue()
        except BaseException:
            error, graph = runtime.cudaStreamEndCapture(self.stream)
            if error == runtime.cudaError_t.cudaSuccess:
                runtime.cudaGraphDestroy(graph)
            raise
        graph = self.check(runtime.cudaStreamEndCapture(self.stream), "capture a launch")
        try:
            executable = self.check(runtime.cudaGraphInstantiate(graph, 0), "make a CUDA graph")
        finally:
            runtime.cudaGraphDestroy(graph)
        return Graph(self, executable)


def _free_in_stream(runtime: Any, stream: int, freed: deque[int]) -> None:
    while freed:
        runtime.cudaFreeAsync(freed.popleft(), stream)


def _close(runtime: Any, stream: int, freed: deque[int]) -> None:
    _free_in_stream(runtime, stream, freed)
    runtime.cudaStreamDestroy(stream)


class Block:
    """Device memory, freed with this object."""

    def __init__(self, address: int, size: int, free: Callable[[int], Any]) -> None:
        self.address = address
        self.bytes = size
        weakref.finalize(self, free, address).atexit = False


class Event:
    """A time stamp in the stream."""

    def __init__(self, runtime: Any, handle: Any) -> None:
        self.handle = handle
        weakref.finalize(self, runtime.cudaEventDestroy, handle).atexit = False


class Graph:
    """A captured launch."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self._cuda = cuda
        self._handle = handle
        weakref.finalize(self, cuda.runtime.cudaGraphExecDestroy, handle).atexit = False

    def launch(self) -> None:
        """Queue it."""
        cuda = self._cuda
        result = cuda.runtime.cudaGraphLaunch(self._handle, cuda.stream)
        cuda.check(result, "launch a CUDA graph")


def out_of_memory(purpose: str, needed: int, free: int) -> BackendError:
    """Say how much was missing, and what helps."""
    return BackendError(
        f"out of GPU memory: {purpose} needs {_gib(needed)}, {_gib(free)} is free",
        "end what else uses the GPU, ask for fewer or smaller images a call, or build plans with ",
        Argument("weight_streaming", True),
        " and set a budget",
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
