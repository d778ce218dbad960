"""OpenVINO: a bundle's ONNX graphs on the CPU in fp32 or bf16, zero-copy."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tgate_export.bundle.integrity import Bundle
from tgate_export.common.errors import TGateError, first_line
from tgate_export.common.install import pip_install
from tgate_export.runtime.backends.base import (
    Backend,
    BackendError,
    Execute,
    Memory,
    RunPrecision,
)
from tgate_export.runtime.backends.onnx_check import read_graph
from tgate_export.runtime.backends.openvino_model import (
    join,
    keep_sinusoids,
    read_model,
    tensor_name,
)
from tgate_export.runtime.backends.weight_file import WeightMap
from tgate_export.runtime.cpus import quota
from tgate_export.runtime.plan import BindingPlan, BufferSpec, Launch, Slot

_DEVICE = "CPU"
# The process in which OpenVINO's threads were started: a forked child of it has none, and waits for
# them for ever, sometimes in a Core of its own, too.
_started_in: int | None = None
# Graphs of larger weights that they share are compiled in one model. It copies the tensors of its
# graphs: a twentieth of a `shapes` step, nothing of a large one.
SMALL_GRAPH_BYTES = 64 * 2**20
Shapes = Mapping[str, tuple[int, ...]]
_HINTS: Mapping[RunPrecision, str] = {"fp32": "f32", "bf16": "bf16"}


@dataclass(frozen=True)
class _Compiled:
    """One graph, or the graphs of one file of weights, joined.

    Attributes:
        model: what requests are made from.
        shapes: by graph, what it was compiled for.
        any_shape: whether it takes all others, too.
        idle: if it is joined, inputs for the graphs that are not run.
    """

    model: Any
    shapes: Mapping[str, Shapes]
    any_shape: bool
    idle: Mapping[str, Any]

    def takes(self, graph: str, shapes: Shapes) -> bool:
        return graph in self.shapes and (self.any_shape or self.shapes[graph] == shapes)


class OpenVinoBackend(Backend):
    """Runs a bundle's ONNX graphs.

    A graph is compiled for the shapes of its first run, which is the fastest, and then once more
    for all shapes when another batch or size comes.
    """

    slow_after_another_shape = True

    def __init__(
        self, bundle: Bundle, precision: RunPrecision = "fp32", *, threads: int | None = None
    ) -> None:
        try:
            import openvino
        except ImportError:
            raise BackendError("openvino is not installed", pip_install("openvino")) from None
        super().__init__()
        self.name = "openvino"
        if precision == "bf16":
            self.name, self.precision = "openvino:bf16", "bf16"
        _refuse_forked()
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
        if threads := threads or quota():
            self._properties["INFERENCE_NUM_THREADS"] = str(threads)
        self._bundle = bundle
        self._compiled: dict[str, _Compiled] = {}
        self._weights: dict[str, WeightMap] = {}
        self._running: Any = None  # the request that runs
        self._stopped = False
        self._apart: set[str] = set()  # files of weights whose graphs could not be joined

    def renew(self) -> None:
        """Begin anew, unless it is too late; see `Backend.renew`."""
        _refuse_forked()
        self._core = self._ov.Core()
        self._compiled = {}

    def check_files(self) -> None:
        """See `Backend.check_files`."""
        for weights in self._weights.values():
            weights.check()

    def allocate(self, plan: BindingPlan) -> OvMemory:
        """Allocate one tensor for each slot; see `Backend.allocate`."""
        models: dict[str, dict[str, Shapes]] = {}
        for launch in plan.launches:
            self._map_weights(launch.graph)
            models.setdefault(self._model(launch.graph), {})[launch.graph] = {
                name: plan.buffers[slot.buffer].shape for name, slot in launch.inputs.items()
            }
        with ThreadPoolExecutor(len(models)) as pool:  # a good part of compiling is single-threaded
            for done in [pool.submit(self._load, *item) for item in models.items()]:
                done.result()
        return OvMemory(self._ov, plan.buffers)

    def _model(self, graph: str) -> str:
        """Return a name for what the graph is compiled in, one model for each large file."""
        manifest = self._bundle.manifest
        file = manifest.graph(graph).weights
        if file is None or file in self._apart or manifest.files[file].bytes <= SMALL_GRAPH_BYTES:
            return graph
        return file

    def _load(self, name: str, wanted: Mapping[str, Shapes]) -> None:
        """Compile graphs for their inputs' shapes, unless what was compiled takes them."""
        old = self._compiled.get(name)
        any_shape = False
        graphs = wanted
        if old is not None:
            if all(old.takes(graph, shapes) for graph, shapes in wanted.items()):
                return
            any_shape = old.any_shape or any(
                old.shapes.get(graph, shapes) != shapes for graph, shapes in wanted.items()
            )
            graphs = {**old.shapes, **wanted}
            del self._compiled[name], old  # free the first
        models = {graph: self._read(graph) for graph in graphs}
        try:
            self._compiled[name] = self._compile(models, graphs, any_shape)
        except Exception as error:  # openvino raises plain RuntimeErrors
            if len(graphs) == 1:
                raise _cannot_load(next(iter(graphs)), error) from error
            # What it can compile as a model may be more than what it can as a body.
            warnings.warn(
                f"openvino packs the weights of {' and '.join(graphs)} apart, in more memory "
                f"({_reason(error)})",
                stacklevel=2,
            )
            self._apart.add(name)
            for graph, shapes in wanted.items():
                self._load(graph, {graph: shapes})

    def _map_weights(self, graph: str) -> None:
        """Map a graph's weights; not in threads, where two graphs might map the same twice."""
        file = self._bundle.manifest.graph(graph).weights
        if file is None or file in self._weights:
            return
        try:
            with self._bundle.reading(file):
                self._weights[file] = WeightMap(self._bundle.file(file))
        except OSError as error:
            raise _cannot_load(graph, error) from error

    def _read(self, graph: str) -> Any:
        entry = self._bundle.manifest.graph(graph)
        weights = None if entry.weights is None else self._weights[entry.weights]
        try:
            model = read_model(self._ov, read_graph(self._bundle, graph), weights)
            if self.precision == "bf16":
                keep_sinusoids(model)
            return model
        except TGateError:
            raise
        except Exception as error:
            raise _cannot_load(graph, error) from error

    def _compile(
        self, models: dict[str, Any], graphs: Mapping[str, Shapes], any_shape: bool
    ) -> _Compiled:
        if not any_shape:
            for graph, shapes in graphs.items():
                models[graph].reshape({name: list(shape) for name, shape in shapes.items()})
        joined = len(models) > 1
        model = join(self._ov, models) if joined else next(iter(models.values()))
        global _started_in
        _started_in = os.getpid()
        compiled = self._core.compile_model(model, _DEVICE, self._properties)
        for graph in graphs:
            file = self._bundle.manifest.graph(graph).weights
            if file is not None:
                self._weights[file].drop_pages()  # they are packed now
        dtypes = {entry.any_name: entry.element_type for entry in compiled.inputs}
        inputs = {
            tensor_name(graph, name): shape
            for graph, shapes in graphs.items()
            for name, shape in shapes.items()
            if joined
        }
        idle = {name: self._ov.Tensor(dtypes[name], shape) for name, shape in inputs.items()}
        return _Compiled(compiled, graphs, any_shape, idle)

    def prepare(self, launch: Launch, memory: Memory) -> Execute:
        """Give a launch a request of its own, with its tensors; see `Backend.prepare`."""
        assert isinstance(memory, OvMemory)
        compiled = self._compiled[self._model(launch.graph)]
        tensors = {
            name: memory.tensors[slot]
            for name, slot in (*launch.inputs.items(), *launch.outputs.items())
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


def _refuse_forked() -> None:
    if _started_in not in (None, os.getpid()):
        raise BackendError(
            "openvino ran in the process that this one was forked off, and cannot here",
            "load the pipeline only in the child, start processes by 'spawn', or use --backend "
            "onnxruntime:cpu",
        )


def _cannot_load(graph: str, error: Exception) -> BackendError:
    return BackendError(f"openvino cannot load graph {graph!r}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Return the line that says what is wrong: OpenVINO begins with where it noticed."""
    places = ("Exception from ", "Check '")
    lines = [line for line in str(error).splitlines() if line and not line.startswith(places)]
    return lines[0] if lines else first_line(error)


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
