"""OpenVINO: a bundle's ONNX graphs on the CPU in fp32 or bf16, zero-copy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tgate_export.bundle.integrity import Bundle
from tgate_export.common.hints import Argument
from tgate_export.runtime.backends.base import (
    Backend,
    BackendError,
    BackendOptions,
    Execute,
    Memory,
    RunPrecision,
)
from tgate_export.runtime.backends.openvino_compiled import DEVICE, CompiledGraphs, refuse_forked
from tgate_export.runtime.backends.openvino_memory import OvMemory
from tgate_export.runtime.backends.openvino_model import tensor_name
from tgate_export.runtime.backends.spec import BackendSpec
from tgate_export.runtime.cpus import quota
from tgate_export.runtime.plan import BindingPlan, Launch

_HINTS: Mapping[RunPrecision, str] = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBackend(Backend):
    """Runs a bundle's ONNX graphs.

    A graph is compiled for the shapes of its first run, which is the fastest, and then once more
    for all shapes when another batch or size comes.
    """

    slow_after_another_shape = True

    def __init__(
        self, bundle: Bundle, precision: RunPrecision = "fp32", *, threads: int | None = None
    ) -> None:
        import openvino

        super().__init__()
        self.name = "openvino"
        if precision == "bf16":
            self.name, self.precision = "openvino:bf16", "bf16"
        self._ov = openvino
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            # By default it is bf16 wherever the CPU is faster with it.
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
        }
        if threads := threads or quota():
            properties["INFERENCE_NUM_THREADS"] = str(threads)
        self._graphs = CompiledGraphs(openvino, bundle, properties, bf16=precision == "bf16")
        # Asked for bf16, a CPU without it computes in fp32 and says nothing.
        if precision == "bf16" and "BF16" not in self._graphs.core.get_property(
            DEVICE, "OPTIMIZATION_CAPABILITIES"
        ):
            raise BackendError(
                "this CPU has no bf16 arithmetic (AMX or AVX-512)",
                "use ",
                Argument("precision", "fp32"),
            )
        self._running: Any = None  # the request that runs
        self._stopped = False

    def renew(self) -> None:
        """Begin anew, unless it is too late; see `Backend.renew`."""
        refuse_forked()
        self._graphs.forget()

    def check_files(self) -> None:
        """See `Backend.check_files`."""
        self._graphs.check_files()

    def allocate(self, plan: BindingPlan) -> OvMemory:
        """Allocate a tensor for each buffer; see `Backend.allocate`."""
        self._graphs.compile_for(plan)
        return OvMemory(self._ov, plan.buffers)

    def prepare(self, launch: Launch, memory: Memory, batch: int | None = None) -> Execute:
        """Give a launch a request of its own, with its tensors; see `Backend.prepare`."""
        del batch  # one shape at a time
        assert isinstance(memory, OvMemory)
        compiled = self._graphs.of(launch.graph)
        tensors = {
            name: memory.tensors[buffer]
            for name, buffer in (*launch.inputs.items(), *launch.outputs.items())
        }
        if compiled.idle:
            bound = {tensor_name(launch.graph, name): value for name, value in tensors.items()}
            runs = {
                graph: self._ov.Tensor(np.array(graph == launch.graph)) for graph in compiled.shapes
            }
            tensors = {**compiled.idle, **bound, **runs}
        request = compiled.model.create_infer_request()
        for name, tensor in tensors.items():
            request.set_tensor(name, tensor)
        return partial(self._run, request)  # and so the maps live as long as what reads them

    def _run(self, request: Any) -> None:
        if self._stopped:
            raise BackendError("openvino was stopped")
        # `infer()` would also wrap every output for its caller.
        request.start_async()
        self._running = request
        try:
            request.wait()
        finally:
            self._running = None

    def stop(self) -> None:
        """End the launch that runs between two nodes; see `Backend.stop`."""
        self._stopped = True
        if (request := self._running) is not None:
            request.cancel()

    def resume(self) -> None:
        """See `Backend.resume`."""
        self._stopped = False


def _make(own: RunPrecision, bundle: Bundle, options: BackendOptions) -> Backend:
    return OpenVinoBackend(bundle, options.precision or own, threads=options.threads)


SPECS = (
    BackendSpec(
        name="openvino",
        summary="OpenVINO on the CPU, in fp32 unless a precision is given",
        module="openvino",
        extras=("openvino",),
        make=partial(_make, "fp32"),
        check=refuse_forked,
        options={"precision": ("fp32", "bf16"), "threads": None},
        auto=40,
        device="cpu",
    ),
    BackendSpec(
        name="openvino:bf16",
        summary="OpenVINO on the CPU, in bf16",
        module="openvino",
        extras=("openvino",),
        make=partial(_make, "bf16"),
        check=refuse_forked,
        options={"precision": ("bf16",), "threads": None},
        device="cpu",
    ),
)
