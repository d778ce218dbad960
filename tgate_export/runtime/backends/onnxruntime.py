"""ONNX Runtime: CPU, CUDA or a TensorRT execution provider, zero-copy through I/O binding.

On the CPU the sessions of a large denoiser compute from one memory map of their weights, as they
lie in the bundle. ONNX Runtime would copy them into layouts of its own: 3.3 GB for each of Stable
Diffusion 1.5's two, and nearly all of the time that loading takes.

On CUDA every launch is a CUDA graph: the host takes longer to queue a denoiser's thousands of
kernels than a fast GPU to run them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
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
)
from tgate_export.runtime.backends.cuda import has_driver
from tgate_export.runtime.backends.fused_attention import fuse_attention
from tgate_export.runtime.backends.onnx_check import read_graph
from tgate_export.runtime.backends.onnx_file import external_arrays
from tgate_export.runtime.backends.onnxruntime_cuda import (
    CPU,
    CUDA,
    WEIGHTS_FOLDER,
    cuda_session,
    preload_cuda,
)
from tgate_export.runtime.backends.onnxruntime_memory import OrtDeviceMemory, OrtMemory
from tgate_export.runtime.backends.weight_file import OpenFile, WeightMap
from tgate_export.runtime.cpus import processors, quota
from tgate_export.runtime.plan import BindingPlan, Launch

# On a CPU, one thread a core on its share of a batch does more than all threads on the whole: 8
# images of `shapes` on two busy cores took 17 ms each instead of 31 in `full`, 10 instead of 15 in
# `gated`. It takes a second copy of the packed weights, so it is for graphs of up to this size.
# They also have weights packed for every session, not a map: a seventh less time for `shapes`.
SMALL_GRAPH_BYTES = 64 * 2**20

PROVIDERS = {
    "cpu": CPU,
    "cuda": CUDA,
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}


class OnnxRuntimeBackend(Backend):
    """Runs a bundle's ONNX graphs; every graph's session is made when it is first needed."""

    def __init__(
        self,
        bundle: Bundle,
        device: str | None = None,
        *,
        cuda_graphs: bool = True,
        threads: int | None = None,
    ) -> None:
        """Probe the machine; `device` is a key of `PROVIDERS`, by default CUDA where there is one.

        Raises:
            BackendError: onnxruntime is not installed, or not for that device, or has no GPU.
        """
        try:
            import onnxruntime
        except ImportError:
            raise BackendError(
                "onnxruntime is not installed",
                f"{pip_install('cpu')}, or for CUDA {pip_install('gpu')}",
            ) from None
        available = onnxruntime.get_available_providers()
        if device is None:
            device = "cuda" if PROVIDERS["cuda"] in available and has_driver() else "cpu"
        if PROVIDERS[device] not in available:
            raise BackendError(
                f"this onnxruntime has no {PROVIDERS[device]} (it has {', '.join(available)})",
                f"{_how_to_install(device)}, or use --backend onnxruntime:cpu",
            )
        if device != "cpu" and not has_driver():
            raise BackendError(
                "no CUDA driver or GPU on this machine",
                "check nvidia-smi, or use --backend onnxruntime:cpu",
            )
        super().__init__()
        self.name = f"onnxruntime:{device}"
        self.device = device
        self._cuda_graphs = cuda_graphs
        self._missing = "" if device == "cpu" else preload_cuda(onnxruntime)
        self._ort = onnxruntime
        self._run_options = onnxruntime.RunOptions()  # of every launch on the CPU
        # No graph is captured there. Unset, every launch asks for it and catches an error: 0.1 ms.
        self._run_options.add_run_config_entry("gpu_graph_id", "-1")
        self._bundle = bundle
        self._sessions: dict[tuple[str, bool], Any] = {}
        self._weights: dict[Path, WeightMap] = {}
        self._files: dict[str, OpenFile] = {}  # of weights, which sessions may have mapped
        self._initializers: list[dict[str, Any]] = []
        self._threads = threads or quota()
        self._cores = self._threads or processors()
        self._pool: ThreadPoolExecutor | None = None
        self._memory: OrtDeviceMemory | None = None
        self._captured: set[str] = set()  # graphs whose launches become CUDA graphs
        self._graph_ids = itertools.count(1)

    def renew(self) -> None:
        """Make sessions anew, on the CPU; see `Backend.renew`."""
        if self.device != "cpu":
            super().renew()
        self._sessions, self._initializers, self._pool = {}, [], None

    def check_files(self) -> None:
        """See `Backend.check_files`."""
        for file in self._files.values():
            file.check()

    def load(self, graph: str, *, single_thread: bool = False) -> None:
        """Create the graph's session, unless there is one."""
        if (graph, single_thread) in self._sessions:
            return
        entry = self._bundle.manifest.graph(graph)
        with self._bundle.reading(entry.file, entry.weights):
            self._sessions[graph, single_thread] = self._session(graph, single_thread)
            if entry.weights is not None and entry.weights not in self._files:
                self._files[entry.weights] = OpenFile(self._bundle.file(entry.weights))

    def _session(self, graph: str, single_thread: bool) -> Any:
        options = self._ort.SessionOptions()
        if single_thread or self._threads:
            options.intra_op_num_threads = 1 if single_thread else self._threads
        options.log_severity_level = 3
        # It would take bytes that look so for its own format.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        path = self._bundle.file(self._bundle.manifest.graph(graph).file)
        make = partial(self._ort.InferenceSession, sess_options=options)
        try:
            if self.device == "cpu":
                session = make(self._for_cpu(graph, path, options), providers=[PROVIDERS["cpu"]])
            elif self.device == "cuda":
                session = self._on_cuda(graph, path, options, make)
            else:  # what a provider does not know falls to the next
                read_graph(self._bundle, graph)
                available = self._ort.get_available_providers()
                names = [PROVIDERS[name] for name in (self.device, "cuda", "cpu")]
                session = make(str(path), providers=[name for name in names if name in available])
        except TGateError:
            raise
        except Exception as error:  # onnxruntime raises many types of its own
            reason = first_line(error)
            raise BackendError(f"onnxruntime cannot load graph {graph!r}: {reason}") from error
        if PROVIDERS[self.device] not in session.get_providers():
            raise BackendError(
                f"onnxruntime could not start {PROVIDERS[self.device]} for graph {graph!r}"
                + (f" ({self._missing})" if self._missing else ""),
                "check nvidia-smi, pip install 'onnxruntime-gpu[cuda,cudnn]' for what it needs of "
                "CUDA, or use --backend onnxruntime:cpu",
            )
        return session

    def _for_cpu(self, graph: str, path: Path, options: Any) -> bytes:
        """Return the graph as the CPU runs it, and set the options for it."""
        model = read_graph(self._bundle, graph)
        fuse_attention(model)
        options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
        # Every session has workers of its own. They would go on spinning for a while after its
        # run, in the next session's way: `shapes`, gated, took 300 ms, not 230, on two cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Planned for by the first run, a second block as large as the first would be taken.
        options.enable_mem_pattern = False
        graphs = self._bundle.manifest.graphs
        file = graphs[graph].weights
        shared = sum(other.weights == file for other in graphs.values()) > 1
        if file and shared and not self._is_small(file):
            self._share_weights(model, self._bundle.file(file), options)
        serialized: bytes = model.SerializeToString()
        return serialized

    def _share_weights(self, model: Any, file: Path, options: Any) -> None:
        """Let a session read its weights where those of others do."""
        if file not in self._weights:
            self._weights[file] = WeightMap(file)
        values = {
            name: self._ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in external_arrays(model, self._weights[file].bytes, file.name).items()
        }
        self._initializers.append(values)  # they have to live as long as the session
        for name, value in values.items():
            options.add_initializer(name, value)
        # Neither packed for matrix products nor reordered for convolutions.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED

    def _on_cuda(self, graph: str, path: Path, options: Any, make: Callable[..., Any]) -> Any:
        session, captures = cuda_session(
            read_graph(self._bundle, graph), path.parent, options, make, capture=self._cuda_graphs
        )
        if captures:
            self._captured.add(graph)
        return session

    def allocate(self, plan: BindingPlan) -> OrtMemory | OrtDeviceMemory:
        """Allocate OrtValues; see `Backend.allocate`."""
        for launch in plan.launches:
            self.load(launch.graph)
        if self.device == "cpu":
            return OrtMemory(self._ort, plan.buffers)
        if self._memory is not None and not self._memory.serves(plan.buffers):
            self._memory = None  # free it first
        self._memory = OrtDeviceMemory(self._ort, plan.buffers, self._memory)
        return self._memory

    def prepare(self, launch: Launch, memory: Memory) -> Execute:
        """Bind a launch once; see `Backend.prepare`."""
        if isinstance(memory, OrtDeviceMemory):
            return self._prepare_on_device(launch, memory, None)
        assert isinstance(memory, OrtMemory)
        session = self._sessions[launch.graph, False]
        binding = session.io_binding()
        for name, slot in launch.inputs.items():
            binding.bind_ortvalue_input(name, memory.value(slot))
        for name, slot in launch.outputs.items():
            binding.bind_ortvalue_output(name, memory.value(slot))
        return partial(session.run_with_iobinding, binding, self._run_options)

    def prepare_batch(self, launch: Launch, memory: Memory, batch: int) -> Execute:
        """Bind the beginnings of the buffers; see `Backend.prepare_batch`.

        Small graphs on the CPU run a share of the batch on every core, see `SMALL_GRAPH_BYTES`.
        """
        if isinstance(memory, OrtDeviceMemory):
            return self._prepare_on_device(launch, memory, batch)
        assert isinstance(memory, OrtMemory)
        parts = self._parts(launch.graph, batch)
        self.load(launch.graph, single_thread=parts > 1)
        edges = [batch * part // parts for part in range(parts + 1)]
        session = self._sessions[launch.graph, parts > 1]
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
        """Bind a launch, or its beginnings, unless one of the same addresses was bound."""
        slots = {**launch.inputs, **launch.outputs}
        buffers = frozenset((name, slot.buffer) for name, slot in slots.items())
        key = (launch.graph, buffers, batch)
        if key not in memory.runs:
            session = self._sessions[launch.graph, False]
            binding = _bind_rows(session, launch, memory, 0, batch)
            options = self._ort.RunOptions()
            captured = launch.graph in self._captured
            number = next(self._graph_ids) if captured else -1
            options.add_run_config_entry("gpu_graph_id", str(number))
            memory.runs[key] = partial(session.run_with_iobinding, binding, options)
            if captured:
                memory.runs[key]()  # runs once, and once more to capture
        return partial(_execute, memory.copies(launch.inputs.values()), memory.runs[key])

    def _parts(self, graph: str, batch: int) -> int:
        """Return how many calls share a batch."""
        weights = self._bundle.manifest.graph(graph).weights
        if self.device != "cpu" or weights is None:
            return 1
        if not self._is_small(weights):
            return 1
        # A bundle of fixed batches takes no smaller ones.
        return max(1, min(self._cores, batch // self._bundle.manifest.batch.min))

    def _is_small(self, weights: str) -> bool:
        return self._bundle.manifest.files[weights].bytes <= SMALL_GRAPH_BYTES

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
    for bind, slots in (
        (binding.bind_input, launch.inputs),
        (binding.bind_output, launch.outputs),
    ):
        for name, slot in slots.items():
            spec = memory.specs[slot.buffer]
            shape = [(spec.shape[0] if last is None else last) - first, *spec.shape[1:]]
            row_bytes = math.prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize
            address = memory.value(slot).data_ptr() + first * row_bytes
            bind(name, memory.device, 0, np.dtype(spec.dtype).type, shape, address)
    return binding


def _execute(copies: Sequence[Execute], run: Execute) -> None:
    for copy in copies:
        copy()
    run()


def _how_to_install(device: str) -> str:
    if device == "tensorrt-rtx":
        return "install an onnxruntime that was built with it"
    return pip_install("cpu" if device == "cpu" else "gpu")
