"""Plans on TensorRT or TensorRT-RTX: shared activations, fixed addresses, CUDA graphs."""

from __future__ import annotations

import importlib
from functools import partial

from tgate_export.bundle.hash_cache import stamp_of
from tgate_export.bundle.hashing import hash_file
from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.plans import Library, PlanSet, plan_sets
from tgate_export.common.errors import BundleError
from tgate_export.common.hints import Argument, Build
from tgate_export.runtime.backends.base import (
    Backend,
    BackendError,
    BackendOptions,
    Execute,
    Memory,
    MemoryReport,
)
from tgate_export.runtime.backends.cuda import Block, Cuda, Event
from tgate_export.runtime.backends.onnx_check import read_graph
from tgate_export.runtime.backends.plan_choice import (
    Machine,
    batch_size,
    choose,
    input_shapes,
)
from tgate_export.runtime.backends.spec import BackendSpec
from tgate_export.runtime.backends.tensorrt_engine import Bindings, Engine, PlanLoader
from tgate_export.runtime.backends.tensorrt_memory import DeviceMemory
from tgate_export.runtime.backends.tensorrt_versions import MODULES, collecting_logger
from tgate_export.runtime.plan import BindingPlan, Launch
from tgate_export.runtime.rebuild import rebuild


class TensorRTBackend(Backend):
    """Runs a bundle's plans; all work is queued on one stream."""

    def __init__(self, bundle: Bundle, library: Library, options: BackendOptions) -> None:
        super().__init__()
        self.name = library
        self._bundle = bundle
        self._options = options
        self._sets = [plans for plans in plan_sets(bundle.path) if plans.key.library == library]
        files = (plans.file(graph) for plans in self._sets for graph in plans.plans)
        self._stamps = {file: stamp_of(file) for file in files}
        trt = importlib.import_module(MODULES[library])
        self._cuda = Cuda(extra=library)
        self._machine = Machine(library, trt.__version__, self._cuda.compute_capability())
        choose(self._sets, self._machine, {}, self._rebuild())
        self._loader = PlanLoader(trt, collecting_logger(trt), self._cuda)
        self._engines: dict[tuple[str, str], Engine] = {}
        self._activations: Block | None = None
        self._bound: dict[str, Engine] = {}  # those of the last shape
        self._memory: DeviceMemory | None = None

    def _rebuild(self, **changes: object) -> Build:
        plans: dict[str, object] = {"library": self._machine.library}
        if self._machine.library == "tensorrt-rtx":
            plans["compute_capabilities"] = (self._machine.compute_capability,)
        return rebuild(self._bundle, plans, **changes)

    def batch_size(self, images: int) -> int:
        """See `Backend.batch_size`."""
        return batch_size(self._sets, self._machine, images)

    def allocate(self, plan: BindingPlan) -> DeviceMemory:
        """Choose plans for the run's shapes, load them, and allocate; see `Backend.allocate`."""
        shapes = input_shapes(plan)
        usual = next(iter(plan.buffers.values())).shape[0]
        batch = self._bundle.manifest.batch.model_copy(update={"opt": usual})
        plans = choose(self._sets, self._machine, shapes, self._rebuild(batch=batch))
        engines = {graph: self._load(plans, graph) for graph in shapes}
        self._memory = None  # free it first
        needed = max(engine.set_shapes(shapes[graph]) for graph, engine in engines.items())
        if self._activations is None or self._activations.bytes < needed:
            self._activations = None  # free the smaller one first
            self._activations = self._cuda.allocate(needed, "the activations of all plans")
        for engine in engines.values():
            engine.set_activations(self._activations)
        self._bound = engines
        self._memory = DeviceMemory(self._cuda, plan.buffers, self._activations)
        return self._memory

    def _load(self, plans: PlanSet, graph: str) -> Engine:
        if (plans.name, graph) not in self._engines:
            settings = plans.plans[graph].key.settings
            onnx = self._bundle.file(self._bundle.manifest.graph(graph).file)
            budget = self._options.weight_streaming_budget
            if budget is not None and not settings.weight_streaming:
                raise BackendError(
                    f"{plans.path} was not built to stream weights",
                    "leave out the budget, or build the plans again with ",
                    Argument("weight_streaming", True),
                )
            self._check_plan(plans, graph)
            if settings.weights_stripped:
                # TensorRT opens the file and its weights by itself.
                read_graph(self._bundle, graph)
                entry = self._bundle.manifest.graph(graph)
                with self._bundle.reading(entry.file, entry.weights):
                    engine = self._loader.load(graph, plans.file(graph), onnx, budget)
            else:
                engine = self._loader.load(graph, plans.file(graph), None, budget)
            self._check_plan(plans, graph)
            self._engines[plans.name, graph] = engine
        return self._engines[plans.name, graph]

    def _check_plan(self, plans: PlanSet, graph: str) -> None:
        """Refuse a plan that took the place of the one that the bundle was opened with."""
        file = plans.file(graph)
        try:
            same = stamp_of(file) == self._stamps[file]
            same = same or hash_file(file) == plans.plans[graph].content
        except OSError:
            same = False
        if not same:
            raise BundleError(
                f"{file} was changed while the bundle was in use: load the bundle again"
            )

    def prepare(self, launch: Launch, memory: Memory, batch: int | None = None) -> Execute:
        """Bind a launch; capture it unless one of the same addresses was. See `Backend.prepare`."""
        del batch  # plans are of one at a time
        assert isinstance(memory, DeviceMemory)
        engine = self._bound[launch.graph]
        bindings = engine.bind(
            {tensor: memory.view(buffer) for tensor, buffer in launch.inputs.items()},
            {tensor: memory.view(buffer) for tensor, buffer in launch.outputs.items()},
        )
        key = (launch.graph, frozenset(bindings.addresses.items()))
        if key not in memory.runs:
            memory.runs[key] = self._run(engine, bindings)
        return memory.runs[key]

    def _run(self, engine: Engine, bindings: Bindings) -> Execute:
        """Return what queues a graph on these addresses: a CUDA graph where that can be."""
        enqueue = partial(engine.enqueue, bindings)
        # Streaming weights is work of the host at every run, which a CUDA graph would leave out.
        if not self._options.cuda_graphs or self._options.weight_streaming_budget is not None:
            return enqueue
        enqueue()  # what TensorRT defers to the first run with new shapes cannot be captured
        if not engine.capturable():
            return enqueue
        try:
            return self._cuda.capture(enqueue).launch
        except BackendError as error:
            raise BackendError(
                f"graph {engine.graph!r} cannot become a CUDA graph ({error.message})",
                "use ",
                Argument("cuda_graphs", False),
            ) from None

    def mark(self) -> Event:
        """Queue a time stamp; see `Backend.mark`."""
        return self._cuda.record()

    def seconds(self, start: Event, end: Event) -> float:
        """See `Backend.seconds`."""
        return self._cuda.seconds(start, end)

    def synchronize(self) -> None:
        """See `Backend.synchronize`."""
        self._cuda.synchronize()

    def memory_report(self) -> MemoryReport:
        """See `Backend.memory_report`."""
        return MemoryReport(
            weights={
                f"{plans}/{graph}": engine.resident_weights()
                for (plans, graph), engine in self._engines.items()
            },
            activations=self._activations.bytes if self._activations else 0,
            buffers=self._memory.bytes if self._memory else 0,
        )


def _make(library: Library, bundle: Bundle, options: BackendOptions) -> Backend:
    return TensorRTBackend(bundle, library, options)


_LIBRARIES: tuple[Library, ...] = ("tensorrt", "tensorrt-rtx")
SPECS = tuple(
    BackendSpec(
        name=library,
        summary="the bundle's plans",
        module=MODULES[library],
        extras=(library,),
        make=partial(_make, library),
        options={"cuda_graphs": None, "weight_streaming_budget": None},
        auto=auto,
        device="gpu",
        plans=library,
    )
    for library, auto in zip(_LIBRARIES, (10, 20), strict=True)
)
