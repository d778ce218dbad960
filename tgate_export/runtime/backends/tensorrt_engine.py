"""One loaded plan with its only execution context: shapes, addresses, and a launch."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgate_export.common.errors import first_line
from tgate_export.runtime.backends.base import BackendError
from tgate_export.runtime.backends.bindings import Direction, Port, View, check_bindings
from tgate_export.runtime.backends.cuda import Block, Cuda, out_of_memory
from tgate_export.runtime.backends.tensorrt_versions import (
    DTYPES,
    capturable,
    create_context,
    weights_bytes,
)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Bindings:
    """Checked addresses of every tensor of a graph."""

    addresses: Mapping[str, int]


class PlanLoader:
    """What loading plans needs, and what their failures are explained with."""

    def __init__(self, trt: Any, logger: Any, cuda: Cuda) -> None:
        self.trt = trt
        self.logger = logger
        self.cuda = cuda
        self._runtime = trt.Runtime(logger)

    def load(self, graph: str, path: Path, refit_from: Path | None, budget: int | None) -> Engine:
        """Load a plan.

        Args:
            graph: its graph's name.
            path: of the plan.
            refit_from: the graph whose weights a stripped plan is given.
            budget: bytes of its weights that may stay on the GPU, if not all.

        Raises:
            BackendError: it does not deserialise, or there is not enough memory.
        """
        self.logger.errors.clear()
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as plan,
        ):
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.failure(f"{path} cannot be loaded", path.stat().st_size)
        if refit_from is not None:
            self._refit(engine, path, refit_from)
        if budget is not None and engine.streamable_weights_size:
            engine.weight_streaming_budget_v2 = min(budget, engine.streamable_weights_size)
        context = create_context(self.trt, engine)
        if context is None:
            raise self.failure(f"{path} cannot be prepared", path.stat().st_size)
        return Engine(self, graph, path, engine, context)

    def _refit(self, engine: Any, path: Path, graph: Path) -> None:
        refitter = self.trt.Refitter(engine, self.logger)
        parser = self.trt.OnnxParserRefitter(refitter, self.logger)
        if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
            errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
            self.logger.errors.extend(errors)
            raise self.failure(f"{path} cannot be given the weights of {graph}", 0)

    def failure(self, what: str, needed: int) -> BackendError:
        """Explain a call that failed by what TensorRT logged."""
        errors = self.logger.errors
        if any("out of memory" in text.lower() for text in errors):
            return out_of_memory(what, needed, self.cuda.free_bytes())
        reason = first_line(RuntimeError(errors[0])) if errors else "TensorRT gives no reason"
        return BackendError(f"{what} ({reason})", "build the plans again, or use another backend")


class Engine:
    """A plan in device memory. Its context keeps shapes and addresses until they are changed."""

    def __init__(
        self, loader: PlanLoader, graph: str, path: Path, engine: Any, context: Any
    ) -> None:
        self.graph = graph
        self.path = path
        self._loader = loader
        self._engine = engine
        self._context = context
        self._bound: Bindings | None = None
        self._names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]

    def set_shapes(self, shapes: Shapes) -> int:
        """Set every input's shape; return how many bytes of activations they take.

        Raises:
            BackendError: names the input whose shape the plan was not built for.
        """
        for tensor, shape in shapes.items():
            if tensor not in self._names or not self._context.set_input_shape(tensor, shape):
                raise BackendError(f"{self.path} does not take {tensor!r} of shape {list(shape)}")
        if unknown := self._context.infer_shapes():
            raise BackendError(f"{self.path} needs the shape of {unknown[0]!r}")
        return int(self._context.update_device_memory_size_for_shapes())

    def set_activations(self, block: Block) -> None:
        """Give it the memory for intermediate results, shared with the other plans."""
        self._context.set_device_memory(block.address, block.bytes)

    def bind(self, inputs: Mapping[str, View], outputs: Mapping[str, View]) -> Bindings:
        """Check buffers against the plan, for the shapes that were set; see `check_bindings`."""
        views: dict[Direction, Mapping[str, View]] = {"input": inputs, "output": outputs}
        return Bindings(check_bindings(self.graph, self._ports(), views))

    def _ports(self) -> dict[str, Port]:
        modes = self._loader.trt.TensorIOMode
        return {
            name: Port(
                "input" if self._engine.get_tensor_mode(name) == modes.INPUT else "output",
                DTYPES.get(dtype := self._engine.get_tensor_dtype(name).name, dtype),
                tuple(self._context.get_tensor_shape(name)),
            )
            for name in self._names
        }

    def enqueue(self, bindings: Bindings) -> None:
        """Queue one run.

        Raises:
            BackendError: TensorRT refused it.
        """
        if self._bound is not bindings:
            self._bound = None
            for tensor, address in bindings.addresses.items():
                if not self._context.set_tensor_address(tensor, address):
                    raise self._loader.failure(f"graph {self.graph!r} refuses {tensor!r}", 0)
            self._bound = bindings
        if not self._context.execute_async_v3(self._loader.cuda.stream):
            raise self._loader.failure(f"graph {self.graph!r} cannot be run", 0)

    def capturable(self) -> bool:
        """Whether a launch can become a CUDA graph, once it ran with these shapes."""
        return capturable(self._context, self._loader.cuda.stream)

    def resident_weights(self) -> int:
        """Return the bytes of weights on the GPU."""
        total = weights_bytes(self._loader.trt, self._engine, self.path.stat().st_size)
        streamable = int(self._engine.streamable_weights_size)
        if not streamable:
            return total
        return total - max(0, streamable - int(self._engine.weight_streaming_budget_v2))
