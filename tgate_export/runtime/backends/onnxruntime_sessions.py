"""ONNX Runtime's sessions of a bundle: how each graph is made ready for a device.

On the CPU the sessions of a large denoiser compute from one memory map of their weights, as they
lie in the bundle. ONNX Runtime would copy them into layouts of its own: 3.3 GB for each of Stable
Diffusion 1.5's two, and nearly all of the time that loading takes.

On CUDA every launch is a CUDA graph: the host takes longer to queue a denoiser's thousands of
kernels than a fast GPU to run them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tgate_export.bundle.integrity import Bundle
from tgate_export.common.errors import TGateError, first_line
from tgate_export.common.hints import Argument
from tgate_export.runtime.backends.base import BackendError
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
from tgate_export.runtime.backends.weight_file import OpenFile, WeightMap

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


class Sessions:
    """Makes and keeps sessions.

    Attributes:
        captured: graphs whose launches become CUDA graphs.
    """

    def __init__(
        self, ort: Any, bundle: Bundle, device: str, *, cuda_graphs: bool, threads: int | None
    ) -> None:
        """Make none yet.

        Args:
            ort: the onnxruntime module.
            bundle: whose graphs they run.
            device: a key of `PROVIDERS`.
            cuda_graphs: make CUDA graphs of launches, on CUDA.
            threads: of every session; as many as ONNX Runtime likes when None.
        """
        self._ort = ort
        self._bundle = bundle
        self._device = device
        self._cuda_graphs = cuda_graphs
        self._threads = threads
        self._missing = "" if device == "cpu" else preload_cuda(ort)
        self._sessions: dict[tuple[str, bool], Any] = {}
        self._weights: dict[Path, WeightMap] = {}
        self._files: dict[str, OpenFile] = {}  # of weights, which sessions may have mapped
        self._initializers: list[dict[str, Any]] = []
        self.captured: set[str] = set()

    def forget(self) -> None:
        """Let go of every session."""
        self._sessions, self._initializers = {}, []

    def check_files(self) -> None:
        """Refuse weights that somebody wrote to; see `Backend.check_files`."""
        for file in self._files.values():
            file.check()

    def get(self, graph: str, *, single_thread: bool = False) -> Any:
        """Return the graph's session, which is made when there is none.

        Raises:
            BackendError: it cannot be loaded.
        """
        if (graph, single_thread) not in self._sessions:
            entry = self._bundle.manifest.graph(graph)
            with self._bundle.reading(entry.file, entry.weights):
                self._sessions[graph, single_thread] = self._session(graph, single_thread)
                if entry.weights is not None and entry.weights not in self._files:
                    self._files[entry.weights] = OpenFile(self._bundle.file(entry.weights))
        return self._sessions[graph, single_thread]

    def is_small(self, weights: str) -> bool:
        """Whether a file's weights may be there twice; see `SMALL_GRAPH_BYTES`."""
        return self._bundle.manifest.files[weights].bytes <= SMALL_GRAPH_BYTES

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
            if self._device == "cpu":
                session = make(self._for_cpu(graph, path, options), providers=[PROVIDERS["cpu"]])
            elif self._device == "cuda":
                session = self._on_cuda(graph, path, options, make)
            else:  # what a provider does not know falls to the next
                read_graph(self._bundle, graph)
                available = self._ort.get_available_providers()
                names = [PROVIDERS[name] for name in (self._device, "cuda", "cpu")]
                session = make(str(path), providers=[name for name in names if name in available])
        except TGateError:
            raise
        except Exception as error:  # onnxruntime raises many types of its own
            reason = first_line(error)
            raise BackendError(f"onnxruntime cannot load graph {graph!r}: {reason}") from error
        if PROVIDERS[self._device] not in session.get_providers():
            raise BackendError(
                f"onnxruntime could not start {PROVIDERS[self._device]} for graph {graph!r}"
                + (f" ({self._missing})" if self._missing else ""),
                "check nvidia-smi, pip install 'onnxruntime-gpu[cuda,cudnn]' for what it needs of "
                "CUDA, or use ",
                Argument("backend", "onnxruntime:cpu"),
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
        if file and shared and not self.is_small(file):
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
            self.captured.add(graph)
        return session
