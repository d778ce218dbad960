"""ONNX Runtime: CPU, CUDA or a TensorRT execution provider, zero-copy through I/O binding.

On the CPU the denoiser's sessions compute from one memory map of their weights, as they lie in the
bundle. ONNX Runtime would copy them into layouts of its own: 3.3 GB for each of Stable Diffusion
1.5's two, and nearly all of the time that loading takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tgate_export.bundle.integrity import Bundle
from tgate_export.errors import first_line
from tgate_export.runtime.backends.base import (
    Backend,
    BackendError,
    Execute,
    Memory,
)
from tgate_export.runtime.backends.cpu_attention import fuse_attention
from tgate_export.runtime.backends.onnx_file import external_arrays, read_model
from tgate_export.runtime.plan import BindingPlan, BufferSpec, Launch, Slot

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
_INSTALL = {
    "cpu": "pip install 'tgate-export[cpu]'",
    "cuda": "pip install 'tgate-export[gpu]'",
    "tensorrt": "pip install 'tgate-export[gpu]'",
    "tensorrt-rtx": "install an onnxruntime that was built with it",
}


class OnnxRuntimeBackend(Backend):
    """Runs a bundle's ONNX graphs; every graph's session is made when it is first needed."""

    def __init__(self, bundle: Bundle, device: str | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise BackendError(
                "onnxruntime is not installed",
                "pip install 'tgate-export[cpu]' (or [gpu] for CUDA)",
            ) from None
        available = onnxruntime.get_available_providers()
        if device is None:
            device = "cuda" if PROVIDERS["cuda"] in available else "cpu"
        if PROVIDERS[device] not in available:
            raise BackendError(
                f"this onnxruntime has no {PROVIDERS[device]} (it has {', '.join(available)})",
                f"{_INSTALL[device]}, or use --backend onnxruntime:cpu",
            )
        self.name = f"onnxruntime:{device}"
        self.device = device
        self._ort = onnxruntime
        self._bundle = bundle
        self._sessions: dict[str, Any] = {}
        self._weights: dict[Path, np.ndarray] = {}
        self._initializers: dict[str, dict[str, Any]] = {}

    def load(self, graph: str) -> None:
        """Create the graph's session, unless there is one."""
        if graph in self._sessions:
            return
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        path = self._bundle.file(self._bundle.manifest.graph(graph).file)
        # What a provider does not know falls to the next.
        fallbacks = {"cpu": (), "cuda": ("cpu",)}.get(self.device, ("cuda", "cpu"))
        available = self._ort.get_available_providers()
        providers = [PROVIDERS[name] for name in (self.device, *fallbacks)]
        providers = [provider for provider in providers if provider in available]
        try:
            model = self._for_cpu(graph, path, options) if self.device == "cpu" else str(path)
            session = self._ort.InferenceSession(model, options, providers=providers)
        except Exception as error:  # onnxruntime raises many types of its own
            reason = first_line(error)
            raise BackendError(f"onnxruntime cannot load graph {graph!r}: {reason}") from error
        if PROVIDERS[self.device] not in session.get_providers():
            raise BackendError(
                f"onnxruntime could not start {PROVIDERS[self.device]} for graph {graph!r}: "
                "check the CUDA installation, or use --backend onnxruntime:cpu"
            )
        self._sessions[graph] = session

    def _for_cpu(self, graph: str, path: Path, options: Any) -> bytes:
        """Return the graph as the CPU runs it, and set the options for it."""
        model = read_model(path)
        fuse_attention(model)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent)
        )
        # Planned for by the first run, a second block as large as the first would be taken.
        options.enable_mem_pattern = False
        graphs = self._bundle.manifest.graphs
        file = graphs[graph].weights
        if file and sum(other.weights == file for other in graphs.values()) > 1:
            self._share_weights(graph, model, self._bundle.file(file), options)
        serialized: bytes = model.SerializeToString()
        return serialized

    def _share_weights(self, graph: str, model: Any, file: Path, options: Any) -> None:
        """Let a session read its weights where those of others do."""
        if file not in self._weights:
            self._weights[file] = np.memmap(file, dtype=np.uint8, mode="r")
        # They have to live as long as the session.
        self._initializers[graph] = {
            name: self._ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in external_arrays(model, self._weights[file], file.name).items()
        }
        for name, value in self._initializers[graph].items():
            options.add_initializer(name, value)
        # Neither packed for matrix products nor reordered for convolutions.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED

    def allocate(self, plan: BindingPlan) -> OrtMemory:
        """Allocate one OrtValue for each slot; see `Backend.allocate`."""
        for launch in plan.launches:
            self.load(launch.graph)
        return OrtMemory(self._ort, "cpu" if self.device == "cpu" else "cuda", plan.buffers)

    def prepare(self, launch: Launch, memory: Memory) -> Execute:
        """Bind a launch once; see `Backend.prepare`."""
        assert isinstance(memory, OrtMemory)
        session = self._sessions[launch.graph]
        binding = session.io_binding()
        for name, slot in launch.inputs.items():
            binding.bind_ortvalue_input(name, memory.values[slot])
        for name, slot in launch.outputs.items():
            binding.bind_ortvalue_output(name, memory.values[slot])
        return partial(session.run_with_iobinding, binding)


class OrtMemory(Memory):
    """OrtValues by slot; on the CPU they share memory with numpy arrays."""

    def __init__(self, ort: Any, device: str, buffers: Mapping[str, BufferSpec]) -> None:
        self.values: dict[Slot, Any] = {}
        self._arrays: dict[Slot, np.ndarray] = {}
        for name, spec in buffers.items():
            rows = [None] if spec.rows is None else range(spec.rows)
            for row in rows:
                slot = Slot(name, row)
                array = np.zeros(spec.shape, dtype=spec.dtype)
                self.values[slot] = ort.OrtValue.ortvalue_from_numpy(array, device, 0)
                if device == "cpu":
                    self._arrays[slot] = array

    def write(self, slot: Slot, value: np.ndarray) -> None:
        """See `Memory.write`."""
        if slot in self._arrays:
            np.copyto(self._arrays[slot], value, casting="no")
        else:
            self.values[slot].update_inplace(np.ascontiguousarray(value))

    def read(self, slot: Slot) -> np.ndarray:
        """See `Memory.read`."""
        if slot in self._arrays:
            return self._arrays[slot].copy()
        array: np.ndarray = self.values[slot].numpy()
        return array
