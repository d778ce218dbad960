"""OpenVINO: a bundle's ONNX graphs on the CPU in fp32 or bf16, zero-copy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tgate_export.bundle.integrity import Bundle
from tgate_export.errors import first_line
from tgate_export.runtime.backends.base import (
    Backend,
    BackendError,
    Execute,
    Memory,
    RunPrecision,
    load_together,
)
from tgate_export.runtime.plan import BindingPlan, BufferSpec, Launch, Slot

_DEVICE = "CPU"
_HINTS: Mapping[RunPrecision, str] = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBackend(Backend):
    """Runs a bundle's ONNX graphs; each is compiled once, for any batch and size it can have."""

    def __init__(self, bundle: Bundle, precision: RunPrecision = "fp32") -> None:
        try:
            import openvino
        except ImportError:
            raise BackendError(
                "openvino is not installed", "pip install 'tgate-export[openvino]'"
            ) from None
        self.name = "openvino"
        if precision == "bf16":
            self.name, self.precision = "openvino:bf16", "bf16"
        self._ov = openvino
        self._core = openvino.Core()
        # Asked for bf16, a CPU without it computes in fp32 and says nothing.
        if precision == "bf16" and "BF16" not in self._core.get_property(
            _DEVICE, "OPTIMIZATION_CAPABILITIES"
        ):
            raise BackendError(
                "this CPU has no bf16 arithmetic (AMX or AVX-512)", "use --precision fp32"
            )
        self._properties = {
            "PERFORMANCE_HINT": "LATENCY",
            # By default it is bf16 wherever the CPU is faster with it.
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
        }
        self._bundle = bundle
        self._compiled: dict[str, Any] = {}

    def load(self, graph: str) -> None:
        """Compile a graph, unless it was."""
        if graph in self._compiled:
            return
        path = self._bundle.file(self._bundle.manifest.graph(graph).file)
        try:
            self._compiled[graph] = self._core.compile_model(
                self._core.read_model(path), _DEVICE, self._properties
            )
        except Exception as error:  # openvino raises plain RuntimeErrors
            reason = first_line(error)
            raise BackendError(f"openvino cannot load graph {graph!r}: {reason}") from error

    def allocate(self, plan: BindingPlan) -> OvMemory:
        """Allocate one tensor for each slot; see `Backend.allocate`."""
        load_together(plan, self.load)
        return OvMemory(self._ov, plan.buffers)

    def prepare(self, launch: Launch, memory: Memory) -> Execute:
        """Give a launch a request of its own, with its tensors; see `Backend.prepare`."""
        assert isinstance(memory, OvMemory)
        request = self._compiled[launch.graph].create_infer_request()
        for name, slot in (*launch.inputs.items(), *launch.outputs.items()):
            request.set_tensor(name, memory.tensors[slot])
        return partial(_run, request)


def _run(request: Any) -> None:
    # `infer()` would also wrap every output for its caller.
    request.start_async()
    request.wait()


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
