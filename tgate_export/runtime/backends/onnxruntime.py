"""ONNX Runtime: CPU, CUDA or a TensorRT execution provider, zero-copy through I/O binding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tgate_export.bundle.integrity import Bundle
from tgate_export.errors import first_line
from tgate_export.runtime.backends.base import Backend, BackendError, Execute, Memory
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
            session = self._ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime raises many types of its own
            reason = first_line(error)
            raise BackendError(f"onnxruntime cannot load graph {graph!r}: {reason}") from error
        if PROVIDERS[self.device] not in session.get_providers():
            raise BackendError(
                f"onnxruntime could not start {PROVIDERS[self.device]} for graph {graph!r}: "
                "check the CUDA installation, or use --backend onnxruntime:cpu"
            )
        self._sessions[graph] = session

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

    def prepare_batch(self, launch: Launch, memory: Memory, batch: int) -> Execute:
        """Bind the beginnings of the buffers; see `Backend.prepare_batch`."""
        assert isinstance(memory, OrtMemory)
        session = self._sessions[launch.graph]
        binding = session.io_binding()
        for bind, slots in (
            (binding.bind_input, launch.inputs),
            (binding.bind_output, launch.outputs),
        ):
            for name, slot in slots.items():
                spec = memory.specs[slot.buffer]
                shape = [batch, *spec.shape[1:]]
                address = memory.values[slot].data_ptr()
                bind(name, memory.device, 0, np.dtype(spec.dtype).type, shape, address)
        return partial(session.run_with_iobinding, binding)


class OrtMemory(Memory):
    """OrtValues by slot; on the CPU they share memory with numpy arrays."""

    def __init__(self, ort: Any, device: str, buffers: Mapping[str, BufferSpec]) -> None:
        self.device = device
        self.specs = dict(buffers)
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

    def write_rows(self, slot: Slot, rows: Mapping[int, np.ndarray]) -> None:
        """See `Memory.write_rows`."""
        if slot not in self._arrays:
            super().write_rows(slot, rows)
            return
        array = self._arrays[slot]
        for row, value in rows.items():
            np.copyto(array[row, ...], value, casting="no")

    def read_rows(self, slot: Slot, rows: Sequence[int]) -> list[np.ndarray]:
        """See `Memory.read_rows`."""
        if slot not in self._arrays:
            return super().read_rows(slot, rows)
        return [self._arrays[slot][row].copy() for row in rows]
