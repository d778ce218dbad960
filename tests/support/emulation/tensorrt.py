"""The part of TensorRT's and TensorRT-RTX's Python module that the runtime uses.

An emulated plan is JSON that names an ONNX graph; running it runs that graph with ONNX Runtime on
the addresses that were bound, after filling the activation block with NaN, as another plan would.
"""

from __future__ import annotations

import ctypes
import enum
import json
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from tests.support.emulation.cuda import POISON, CudaEmulation

Shape = tuple[int, ...]
VERSIONS = {"tensorrt": "10.13.3.9", "tensorrt_rtx": "1.7.1.116"}
NUMPY = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64"}


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT64 = 8


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1


class EngineStat(enum.Enum):
    TOTAL_WEIGHTS_SIZE = 0


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        raise NotImplementedError


@cache
def session(path: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@cache
def output_shapes(path: str, inputs: tuple[tuple[str, Shape, str], ...]) -> dict[str, Shape]:
    """Run the graph on zeros to see what shapes come out."""
    feed = {name: np.zeros(shape, dtype) for name, shape, dtype in inputs}
    outputs = session(path).run(None, feed)
    names = [output.name for output in session(path).get_outputs()]
    return {name: output.shape for name, output in zip(names, outputs, strict=True)}


class RuntimeConfig:
    def __init__(self) -> None:
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> None:
        self.strategy = strategy


class Engine:
    """`alter` in the plan changes what the engine declares: tensor -> mode and dtype."""

    def __init__(self, module: TensorRTEmulation, plan: dict[str, Any]) -> None:
        self.module = module
        self.plan = plan
        self.graph: str | None = None if plan["stripped"] else plan["onnx"]
        self.streamable_weights_size = plan["streamable"]
        self.weight_streaming_budget_v2 = plan["streamable"]
        path = plan["onnx"]
        types = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
        self.tensors: dict[str, tuple[TensorIOMode, DataType, Shape]] = {}
        for mode, entries in (
            (TensorIOMode.INPUT, session(path).get_inputs()),
            (TensorIOMode.OUTPUT, session(path).get_outputs()),
        ):
            for entry in entries:
                shape = tuple(dim if isinstance(dim, int) else -1 for dim in entry.shape)
                self.tensors[entry.name] = (mode, DataType[types[entry.type]], shape)
        self.declared = {name: (mode, dtype) for name, (mode, dtype, _) in self.tensors.items()}
        for name, (mode, dtype) in plan["alter"].items():
            old = self.declared[name]
            self.declared[name] = (
                TensorIOMode[mode] if mode else old[0],
                DataType[dtype] if dtype else old[1],
            )

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.declared[name][0]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.declared[name][1]

    def get_engine_stat(self, stat: EngineStat = EngineStat.TOTAL_WEIGHTS_SIZE) -> int:
        return int(self.plan["weights"])

    def create_runtime_config(self) -> RuntimeConfig:
        assert self.module.library == "tensorrt_rtx"
        return RuntimeConfig()

    def create_execution_context(
        self, config: ExecutionContextAllocationStrategy | RuntimeConfig
    ) -> Context:
        if isinstance(config, RuntimeConfig):
            eager = DynamicShapesKernelSpecializationStrategy.EAGER
            assert config.dynamic_shapes_kernel_specialization_strategy == eager
            config = config.strategy
        assert config == ExecutionContextAllocationStrategy.USER_MANAGED
        return self._new_context()

    def _new_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cuda = engine.module.cuda
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None
        self.flushed = False  # the first run with new shapes does work that cannot be captured
        if engine.module.library == "tensorrt_rtx":
            self.is_stream_capturable = lambda stream: self.flushed

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        low, _, high = self.engine.plan["shapes"][name]
        fits = len(shape) == len(low) and all(
            a <= side <= b for a, side, b in zip(low, shape, high, strict=True)
        )
        if fits and self.shapes.get(name) != shape:
            self.shapes[name] = shape
            self.flushed = False
        return fits

    def infer_shapes(self) -> list[str]:
        inputs = [n for n, t in self.engine.tensors.items() if t[0] == TensorIOMode.INPUT]
        return [name for name in inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> Shape:
        if name in self.shapes:
            return self.shapes[name]
        key = tuple(
            (n, shape, NUMPY[self.engine.tensors[n][1].name]) for n, shape in self.shapes.items()
        )
        return output_shapes(self.engine.plan["onnx"], key)[name]

    def update_device_memory_size_for_shapes(self) -> int:
        assert not self.infer_shapes()
        return 256 * sum(int(np.prod(shape)) for shape in self.shapes.values())

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        self.cuda.block_of(memory, size)
        self.memory = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self.engine.tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue a run on the addresses of now; whatever the context is told later."""
        stream = self.cuda.streams[stream_handle]
        if set(self.addresses) != set(self.engine.tensors) or self.infer_shapes():
            return False
        if self.memory is None or self.memory[1] < self.update_device_memory_size_for_shapes():
            return False
        if stream.captured is not None and not self.flushed:
            stream.broken = True
            return False
        self.flushed = True
        addresses, memory = dict(self.addresses), self.memory
        bound = {
            name: (addresses[name], self.get_tensor_shape(name), NUMPY[tensor[1].name])
            for name, tensor in self.engine.tensors.items()
        }
        stream.put(lambda: self._run(bound, memory))
        return True

    def _run(self, bound: dict[str, tuple[int, Shape, str]], memory: tuple[int, int]) -> None:
        assert self.engine.graph, "a stripped plan was not refitted"
        self.cuda.block_of(*memory)
        ctypes.memset(memory[0], POISON, memory[1])
        arrays = {name: self.cuda.view(*where) for name, where in bound.items()}
        found = session(self.engine.graph)
        feed = {entry.name: arrays[entry.name].copy() for entry in found.get_inputs()}
        indices = [value for value in feed.values() if value.dtype == np.int64]
        # On a GPU this reads memory of others.
        assert all((value >= 0).all() for value in indices), "token ids were never written"
        names = [entry.name for entry in found.get_outputs()]
        for name, value in zip(names, found.run(names, feed), strict=True):
            np.copyto(arrays[name], value, casting="no")
        self.cuda.clock += 1.0
        self.engine.module.ran.append((self.engine.plan["graph"], addresses_of(bound)))


def addresses_of(bound: dict[str, tuple[int, Shape, str]]) -> dict[str, int]:
    return {name: where[0] for name, where in bound.items()}


class TensorRTEmulation:
    """Stands for the module.

    Attributes:
        ran: graph and addresses of every run, in order.
    """

    def __init__(self, library: str, cuda: CudaEmulation) -> None:
        self.library = library
        self.cuda = cuda
        self.ran: list[tuple[str, dict[str, int]]] = []
        self.__version__ = VERSIONS[library]
        self.refuse: str | None = None  # what `deserialize_cuda_engine` logs

    def engine(self, plan: dict[str, Any]) -> Engine:
        return Engine(self, plan)

    def module(self) -> Any:
        emulation = self

        class Runtime:
            def __init__(self, logger: ILogger) -> None:
                self.logger = logger

            def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
                try:
                    plan = json.loads(bytes(serialized_engine))
                except ValueError:
                    self.logger.log(ILogger.Severity.ERROR, "magic tag does not match\nat 42")
                    return None
                if emulation.refuse:
                    self.logger.log(ILogger.Severity.ERROR, emulation.refuse)
                    return None
                return emulation.engine(plan)

        class Refitter:
            def __init__(self, engine: Engine, logger: ILogger) -> None:
                self.engine = engine
                self.graph: str | None = None

            def refit_cuda_engine(self) -> bool:
                self.engine.graph = self.graph
                return True

        class OnnxParserRefitter:
            def __init__(self, refitter: Refitter, logger: ILogger) -> None:
                self.refitter = refitter
                self.num_errors = 0

            def refit_from_file(self, model: str) -> bool:
                self.refitter.graph = model
                self.num_errors = int(model != self.refitter.engine.plan["onnx"])
                return not self.num_errors

            def get_error(self, index: int) -> str:
                return "the graph has other weights"

        module = SimpleNamespace(
            __version__=self.__version__,
            Runtime=Runtime,
            Refitter=Refitter,
            OnnxParserRefitter=OnnxParserRefitter,
            ILogger=ILogger,
            TensorIOMode=TensorIOMode,
            DataType=DataType,
            ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        )
        if self.library == "tensorrt_rtx":
            module.EngineStat = EngineStat
            module.DynamicShapesKernelSpecializationStrategy = (
                DynamicShapesKernelSpecializationStrategy
            )
        return module
