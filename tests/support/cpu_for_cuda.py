"""ONNX Runtime's device path with its CPU for a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tgate_export.runtime.backends import onnxruntime as module
from tgate_export.runtime.backends.onnxruntime_memory import OrtDeviceMemory
from tgate_export.runtime.backends.onnxruntime_rows import OrtRow
from tgate_export.runtime.backends.onnxruntime_sessions import Sessions


def with_cpu_for_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let sessions of "cuda" run on the CPU, unfused; return what is asked of them.

    The text encoder refuses to be captured.
    """
    import onnxruntime

    asked: list[str] = []

    def on_cuda(self: Sessions, graph: str, path: Path, options: Any, make: Any) -> Any:
        def on_cpu(_model: bytes, providers: list[Any]) -> Any:
            asked.append(f"{graph}, capture {providers[0][1]['enable_cuda_graph']}")
            if graph == "text_encoder" and providers[0][1]["enable_cuda_graph"] == "1":
                raise RuntimeError("This session cannot use the graph capture feature")
            return onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )

        return original(self, graph, path, options, on_cpu)

    original = Sessions._on_cuda
    monkeypatch.setattr(Sessions, "_on_cuda", on_cuda)
    monkeypatch.setitem(module.PROVIDERS, "cuda", "CPUExecutionProvider")
    monkeypatch.setattr(module, "has_driver", lambda: True)
    monkeypatch.setattr(OrtDeviceMemory, "device", "cpu")
    return asked


def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the shapes of the rows that are read to the host from now on."""
    read: list[str] = []
    original = OrtRow.__array__

    def noted(self: OrtRow, *arguments: Any) -> np.ndarray:
        array = original(self, *arguments)
        read.append(str(array.shape))
        return array

    monkeypatch.setattr(OrtRow, "__array__", noted)
    monkeypatch.setattr(OrtDeviceMemory, "read", None)
    return read
