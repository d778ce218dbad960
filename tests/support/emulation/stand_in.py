"""TensorRT-RTX on a real GPU where it cannot be had: real CUDA around an engine of the host.

Everything that the runtime does itself (memory, copies, events, capture, replay) is CUDA's. A run
of an engine is what CUDA lets a stream or a CUDA graph do with the host: copies to pinned memory, a
host function that runs the ONNX graph there, and copies back.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
import pytest

from tests.support.emulation.cuda import POISON
from tests.support.emulation.tensorrt import (
    NUMPY,
    Context,
    Engine,
    Shape,
    TensorIOMode,
    TensorRTEmulation,
    session,
)

HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def install_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it where the runtime imports TensorRT-RTX from."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", StandIn().module())


class StandIn(TensorRTEmulation):
    """Stands for the module."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        super().__init__("tensorrt_rtx", runtime)

    def engine(self, plan: dict[str, Any]) -> Engine:
        return GpuEngine(self, plan)


class GpuEngine(Engine):
    def _new_context(self) -> Context:
        return GpuContext(self)


class GpuContext(Context):
    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.launches: dict[frozenset[tuple[str, int]], HostLaunch] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        self.memory = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.memory is not None
        assert self.memory[1] >= self.update_device_memory_size_for_shapes()
        key = frozenset(self.addresses.items())
        if key not in self.launches:  # never in a capture: the runtime runs a launch first
            bound = {
                name: (
                    address,
                    self.get_tensor_shape(name),
                    NUMPY[self.engine.tensors[name][1].name],
                )
                for name, address in self.addresses.items()
            }
            self.launches[key] = HostLaunch(self, bound)
        self.launches[key].queue(stream_handle, self.memory)
        self.flushed = True
        return True


class HostLaunch:
    """A run on some addresses, by way of pinned host memory that is never freed."""

    def __init__(self, context: GpuContext, bound: dict[str, tuple[int, Shape, str]]) -> None:
        self.runtime = context.cuda
        self.context = context
        self.bound = bound
        self.arrays = {
            name: self._pinned(shape, dtype) for name, (_, shape, dtype) in bound.items()
        }
        self.function = HostFunction(self._run)

    def check(self, result: tuple[Any, ...]) -> Any:
        assert result[0] == self.runtime.cudaError_t.cudaSuccess, result[0]
        return result[-1]

    def _pinned(self, shape: Shape, dtype: str) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(self.check(self.runtime.cudaMallocHost(size)))
        raw = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(raw, dtype=dtype).reshape(shape)

    def queue(self, stream: int, memory: tuple[int, int]) -> None:
        """Queue it. Outputs are NaN until the host function ran, and so is the activation block."""
        kinds = self.runtime.cudaMemcpyKind
        tensors = self.context.engine.tensors
        self.check(self.runtime.cudaMemsetAsync(memory[0], POISON, memory[1], stream))
        for is_input in (True, False):
            for name, (address, _, _) in self.bound.items():
                if (tensors[name][0] == TensorIOMode.INPUT) != is_input:
                    continue
                host = self.arrays[name]
                copy = (
                    (host.ctypes.data, address, host.nbytes, kinds.cudaMemcpyDeviceToHost)
                    if is_input
                    else (address, host.ctypes.data, host.nbytes, kinds.cudaMemcpyHostToDevice)
                )
                self.check(self.runtime.cudaMemcpyAsync(*copy, stream))
            if is_input:
                # Not by cuda-bindings, which frees its data after the first of a graph's replays.
                status = ctypes.CDLL("libcuda.so.1").cuLaunchHostFunc(
                    ctypes.c_void_p(stream), self.function, None
                )
                assert status == 0, status

    def _run(self, _data: Any) -> None:
        found = session(self.context.engine.graph)
        feed = {entry.name: self.arrays[entry.name] for entry in found.get_inputs()}
        names = [entry.name for entry in found.get_outputs()]
        try:
            values = found.run(names, feed)
        except Exception:  # an exception cannot leave a host function; NaN shows in the latents
            values = [np.full_like(self.arrays[name], np.nan) for name in names]
        for name, value in zip(names, values, strict=True):
            np.copyto(self.arrays[name], value, casting="no")
