"""ONNX Runtime: CPU, CUDA or a TensorRT execution provider, zero-copy through I/O binding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import numpy as np

from tgate_export.bundle.integrity import Bundle
from tgate_export.common.hints import Argument
from tgate_export.common.install import pip_install
from tgate_export.runtime.backends.base import (
    Backend,
    BackendError,
    BackendOptions,
    Execute,
    Memory,
)
from tgate_export.runtime.backends.cuda import has_driver
from tgate_export.runtime.backends.onnxruntime_memory import OrtDeviceMemory, OrtMemory
from tgate_export.runtime.backends.onnxruntime_rows import DeviceCopies
from tgate_export.runtime.backends.onnxruntime_sessions import PROVIDERS, Sessions
from tgate_export.runtime.backends.spec import BackendSpec
from tgate_export.runtime.cpus import processors, quota
from tgate_export.runtime.plan import BindingPlan, Launch


class OnnxRuntimeBackend(Backend):
    """Runs a bundle's ONNX graphs; every graph's session is made when it is first needed."""

    def __init__(
        self,
        bundle: Bundle,
        device: str,
        *,
        cuda_graphs: bool = True,
        threads: int | None = None,
    ) -> None:
        """Load nothing yet.

        Args:
            bundle: whose graphs it runs.
            device: a key of `PROVIDERS`, which this machine has; see `_check`.
            cuda_graphs: see `BackendOptions`, as the next.
            threads: that share the work of one graph on the CPU.
        """
        import onnxruntime

        super().__init__()
        self.name = f"onnxruntime:{device}"
        self.device = device
        self._ort = onnxruntime
        self._run_options = onnxruntime.RunOptions()  # of every launch on the CPU
        # No graph is captured there. Unset, every launch asks for it and catches an error: 0.1 ms.
        self._run_options.add_run_config_entry("gpu_graph_id", "-1")
        self._bundle = bundle
        threads = threads or quota()
        self._cores = threads or processors()
        self._sessions = Sessions(
            onnxruntime, bundle, device, cuda_graphs=cuda_graphs, threads=threads
        )
        self._pool: ThreadPoolExecutor | None = None
        self._copies: DeviceCopies | None = None
        self._graph_ids = itertools.count(1)

    def renew(self) -> None:
        """Make sessions anew, on the CPU; see `Backend.renew`."""
        if self.device != "cpu":
            super().renew()
        self._sessions.forget()
        self._pool = None

    def check_files(self) -> None:
        """See `Backend.check_files`."""
        self._sessions.check_files()

    def allocate(self, plan: BindingPlan) -> OrtMemory | OrtDeviceMemory:
        """Allocate OrtValues; see `Backend.allocate`."""
        for launch in plan.launches:
            self._sessions.get(launch.graph)
        if self.device == "cpu":
            return OrtMemory(plan.buffers)
        if self._copies is None:
            self._copies = DeviceCopies(self._ort, OrtDeviceMemory.device, PROVIDERS["cuda"])
        return OrtDeviceMemory(self._ort, plan.buffers, self._copies)

    def prepare(self, launch: Launch, memory: Memory, batch: int | None = None) -> Execute:
        """Bind the beginnings of the buffers; see `Backend.prepare`.

        Small graphs on the CPU run a share of the batch on every core, see `SMALL_GRAPH_BYTES`.
        """
        if isinstance(memory, OrtDeviceMemory):
            return self._prepare_on_device(launch, memory, batch)
        assert isinstance(memory, OrtMemory)
        parts = 1 if batch is None else self._parts(launch.graph, batch)
        session = self._sessions.get(launch.graph, single_thread=parts > 1)
        if batch is None or parts == 1:
            binding = _bind_rows(session, launch, memory, 0, batch)
            return partial(session.run_with_iobinding, binding, self._run_options)
        edges = [batch * part // parts for part in range(parts + 1)]
        runs = [
            partial(
                session.run_with_iobinding,
                _bind_rows(session, launch, memory, first, last),
                self._run_options,
            )
            for first, last in itertools.pairwise(edges)
        ]
        return partial(self._run_together, runs)

    def stop(self) -> None:
        """End launches on the CPU between two nodes; see `Backend.stop`."""
        self._run_options.terminate = True

    def resume(self) -> None:
        """See `Backend.resume`."""
        self._run_options.terminate = False

    def _prepare_on_device(
        self, launch: Launch, memory: OrtDeviceMemory, batch: int | None
    ) -> Execute:
        """Bind a launch, and capture it where it can be."""
        session = self._sessions.get(launch.graph)
        binding = _bind_rows(session, launch, memory, 0, batch)
        options = self._ort.RunOptions()
        captured = launch.graph in self._sessions.captured
        number = next(self._graph_ids) if captured else -1
        options.add_run_config_entry("gpu_graph_id", str(number))
        execute = partial(session.run_with_iobinding, binding, options)
        if captured:
            execute()  # runs once, and once more to capture
        return execute

    def _parts(self, graph: str, batch: int) -> int:
        """Return how many calls share a batch."""
        weights = self._bundle.manifest.graph(graph).weights
        if self.device != "cpu" or weights is None:
            return 1
        if not self._sessions.is_small(weights):
            return 1
        # A bundle of fixed batches takes no smaller ones.
        return max(1, min(self._cores, batch // self._bundle.manifest.batch.min))

    def _run_together(self, runs: Sequence[Execute]) -> None:
        """Run calls at the same time, one of them on this thread; return when all are done."""
        if len(runs) > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(self._cores - 1, "tgate-onnxruntime")
        others = [self._pool.submit(run) for run in runs[1:]] if self._pool else []
        try:
            runs[0]()
        finally:
            wait(others)  # none may write to a buffer that its caller has given up
        for other in others:
            other.result()


def _bind_rows(
    session: Any,
    launch: Launch,
    memory: OrtMemory | OrtDeviceMemory,
    first: int,
    last: int | None,
) -> Any:
    """Bind rows `first` to `last`, or to the end, of every buffer's first axis."""
    binding = session.io_binding()
    for bind, buffers in (
        (binding.bind_input, launch.inputs),
        (binding.bind_output, launch.outputs),
    ):
        for name, buffer in buffers.items():
            spec = memory.specs[buffer]
            shape = [(spec.shape[0] if last is None else last) - first, *spec.shape[1:]]
            row_bytes = math.prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize
            address = memory.address(buffer) + first * row_bytes
            bind(name, memory.device, 0, np.dtype(spec.dtype).type, shape, address)
    return binding


def _check(device: str) -> None:
    """Look whether the installed package and this machine have a device.

    Raises:
        BackendError: the package was not built for it, or there is no GPU.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    elsewhere = (", or use ", Argument("backend", "onnxruntime:cpu")) if device != "cpu" else ()
    if PROVIDERS[device] not in available:
        raise BackendError(
            f"this onnxruntime has no {PROVIDERS[device]} (it has {', '.join(available)})",
            "install an onnxruntime that was built with it"
            if device == "tensorrt-rtx"
            else pip_install(_extras(device)[0]),
            *elsewhere,
        )
    if device != "cpu" and not has_driver():
        raise BackendError("no CUDA driver or GPU on this machine", "check nvidia-smi", *elsewhere)


def _extras(device: str) -> tuple[str, ...]:
    return ("cpu", "gpu") if device == "cpu" else ("gpu",)


def _make(device: str, bundle: Bundle, options: BackendOptions) -> Backend:
    return OnnxRuntimeBackend(
        bundle, device, cuda_graphs=options.cuda_graphs, threads=options.threads
    )


def _make_for_machine(bundle: Bundle, options: BackendOptions) -> Backend:
    import onnxruntime

    cuda = PROVIDERS["cuda"] in onnxruntime.get_available_providers() and has_driver()
    return _make("cuda" if cuda else "cpu", bundle, options)


def _spec(device: str, summary: str, **fields: Any) -> BackendSpec:
    return BackendSpec(
        name=f"onnxruntime:{device}",
        summary=summary,
        module="onnxruntime",
        extras=_extras(device),
        make=partial(_make, device),
        check=partial(_check, device),
        device="cpu" if device == "cpu" else "gpu",
        **fields,
    )


_COMPILING = "ONNX Runtime's own TensorRT, which compiles for minutes at its first run"

SPECS = (
    BackendSpec(
        name="onnxruntime",
        summary="ONNX Runtime on CUDA where there is a GPU, else on the CPU",
        module="onnxruntime",
        extras=("cpu", "gpu"),
        make=_make_for_machine,
        options={"threads": None},
    ),
    _spec("cpu", "ONNX Runtime on the CPU", options={"threads": None}, auto=50),
    _spec("cuda", "ONNX Runtime on CUDA", options={"cuda_graphs": None}, auto=30),
    _spec("tensorrt", _COMPILING),
    _spec("tensorrt-rtx", _COMPILING),
)
