"""OpenVINO: a bundle's ONNX graphs on the CPU in fp32 or bf16, zero-copy."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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
)
from tgate_export.runtime.plan import BindingPlan, BufferSpec, Launch, Slot

_DEVICE = "CPU"
Shapes = Mapping[str, tuple[int, ...]]
_HINTS: Mapping[RunPrecision, str] = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBackend(Backend):
    """Runs a bundle's ONNX graphs.

    A graph is compiled for the shapes of its first run, which is the fastest, and then once more
    for all shapes when another batch or size comes.
    """

    slow_after_another_shape = True

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
        # What each was compiled for; None: all shapes.
        self._shapes: dict[str, Shapes | None] = {}

    def load(self, graph: str, shapes: Shapes) -> None:
        """Compile a graph for its inputs' shapes, unless what was compiled takes them."""
        if graph in self._compiled and self._shapes[graph] in (None, shapes):
            return
        another = self._compiled.pop(graph, None) is not None  # and free the first
        path = self._bundle.file(self._bundle.manifest.graph(graph).file)
        try:
            model = self._core.read_model(path)
            if not another:
                model.reshape({name: list(shape) for name, shape in shapes.items()})
            self._compiled[graph] = self._core.compile_model(model, _DEVICE, self._properties)
            self._shapes[graph] = None if another else shapes
        except Exception as error:  # openvino raises plain RuntimeErrors
            reason = first_line(error)
            raise BackendError(f"openvino cannot load graph {graph!r}: {reason}") from error

    def allocate(self, plan: BindingPlan) -> OvMemory:
        """Allocate one tensor for each slot; see `Backend.allocate`."""
        shapes = {
            launch.graph: {
                name: plan.buffers[slot.buffer].shape for name, slot in launch.inputs.items()
            }
            for launch in plan.launches
        }
        with ThreadPoolExecutor(len(shapes)) as pool:  # a good part of compiling is single-threaded
            for done in [pool.submit(self.load, *item) for item in shapes.items()]:
                done.result()
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
