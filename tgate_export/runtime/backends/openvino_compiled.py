"""A bundle's graphs as OpenVINO compiled them.

A graph is compiled for the shapes of its first run, which is the fastest, and then once more for
all shapes when another batch or size comes. Large graphs that share weights are joined.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tgate_export.bundle.integrity import Bundle
from tgate_export.common.errors import TGateError, first_line
from tgate_export.common.hints import Argument
from tgate_export.runtime.backends.base import BackendError
from tgate_export.runtime.backends.onnx_check import read_graph
from tgate_export.runtime.backends.openvino_model import (
    join,
    keep_sinusoids,
    read_model,
    tensor_name,
)
from tgate_export.runtime.backends.weight_file import WeightMap
from tgate_export.runtime.plan import BindingPlan

DEVICE = "CPU"
# The process in which OpenVINO's threads were started: a forked child of it has none, and waits for
# them for ever, sometimes in a Core of its own, too.
_started_in: int | None = None
# Graphs of larger weights that they share are compiled in one model. It copies the tensors of its
# graphs: a twentieth of a `shapes` step, nothing of a large one.
SMALL_GRAPH_BYTES = 64 * 2**20
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Compiled:
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
        """Whether a graph can be run on these shapes."""
        return graph in self.shapes and (self.any_shape or self.shapes[graph] == shapes)


class CompiledGraphs:
    """Compiles graphs, and keeps what it compiled."""

    def __init__(
        self, ov: Any, bundle: Bundle, properties: Mapping[str, str], *, bf16: bool
    ) -> None:
        """Compile nothing yet.

        Args:
            ov: the openvino module.
            bundle: whose graphs they are.
            properties: that models are compiled with.
            bf16: whether these say so.
        """
        self._ov = ov
        self.core = ov.Core()
        self._bundle = bundle
        self._properties = properties
        self._bf16 = bf16
        self._compiled: dict[str, Compiled] = {}
        self._weights: dict[str, WeightMap] = {}
        self._apart: set[str] = set()  # files of weights whose graphs could not be joined

    def forget(self) -> None:
        """Let go of what was compiled, and of the core that did it."""
        self.core = self._ov.Core()
        self._compiled = {}

    def check_files(self) -> None:
        """Refuse weights that somebody wrote to; see `Backend.check_files`."""
        for weights in self._weights.values():
            weights.check()

    def compile_for(self, plan: BindingPlan) -> None:
        """Compile what a plan launches, for its shapes.

        Raises:
            BackendError: names the graph that cannot be loaded.
        """
        models: dict[str, dict[str, Shapes]] = {}
        for launch in plan.launches:
            self._map_weights(launch.graph)
            models.setdefault(self._name(launch.graph), {})[launch.graph] = {
                name: plan.buffers[buffer].shape for name, buffer in launch.inputs.items()
            }
        with ThreadPoolExecutor(len(models)) as pool:  # a good part of compiling is single-threaded
            for done in [pool.submit(self._load, *item) for item in models.items()]:
                done.result()

    def of(self, graph: str) -> Compiled:
        """Return what a graph was compiled in."""
        return self._compiled[self._name(graph)]

    def _name(self, graph: str) -> str:
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
            if self._bf16:
                keep_sinusoids(model)
            return model
        except TGateError:
            raise
        except Exception as error:
            raise _cannot_load(graph, error) from error

    def _compile(
        self, models: dict[str, Any], graphs: Mapping[str, Shapes], any_shape: bool
    ) -> Compiled:
        if not any_shape:
            for graph, shapes in graphs.items():
                models[graph].reshape({name: list(shape) for name, shape in shapes.items()})
        joined = len(models) > 1
        model = join(self._ov, models) if joined else next(iter(models.values()))
        global _started_in
        _started_in = os.getpid()
        compiled = self.core.compile_model(model, DEVICE, self._properties)
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
        return Compiled(compiled, graphs, any_shape, idle)


def refuse_forked() -> None:
    """Refuse to go on in a process where OpenVINO's threads are missing.

    Raises:
        BackendError: this process was forked off one in which something was compiled.
    """
    if _started_in not in (None, os.getpid()):
        raise BackendError(
            "openvino ran in the process that this one was forked off, and cannot here",
            "load the pipeline only in the child, start processes by 'spawn', or use ",
            Argument("backend", "onnxruntime:cpu"),
        )


def _cannot_load(graph: str, error: Exception) -> BackendError:
    return BackendError(f"openvino cannot load graph {graph!r}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Return the line that says what is wrong: OpenVINO begins with where it noticed."""
    places = ("Exception from ", "Check '")
    lines = [line for line in str(error).splitlines() if line and not line.startswith(places)]
    return lines[0] if lines else first_line(error)
