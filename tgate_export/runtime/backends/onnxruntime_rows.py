"""Copies between places on the device: ONNX Runtime copies whole values alone, to and from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tgate_export.runtime.backends.base import DeviceRow
from tgate_export.runtime.backends.onnx_file import FLOAT16, FLOAT32, messages

_TYPES = {"float32": FLOAT32, "float16": FLOAT16, "int64": 7}  # what buffers are of


class OrtRow(DeviceRow):
    """A row in an OrtValue of its own."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """See `DeviceRow`."""
        array: np.ndarray = self.value.numpy()
        return array if dtype is None else array.astype(dtype)


class DeviceCopies:
    """Graphs of one Identity, which a provider of the device copies by."""

    def __init__(self, ort: Any, device: str, provider: str) -> None:
        """Make no session yet.

        Args:
            ort: the onnxruntime module.
            device: where addresses are.
            provider: that copies there.
        """
        self._ort = ort
        self._device = device
        self._provider = provider
        self._sessions: dict[str, Any] = {}

    def copy(self, target: int, source: int, dtype: str, shape: Sequence[int]) -> None:
        """Copy a tensor from one address to another, once all that was run before is done."""
        if dtype not in self._sessions:
            options = self._ort.SessionOptions()
            options.log_severity_level = 3
            self._sessions[dtype] = self._ort.InferenceSession(
                identity(dtype), options, providers=[self._provider]
            )
        session = self._sessions[dtype]
        binding = session.io_binding()
        element = np.dtype(dtype).type
        count = [math.prod(shape)]
        binding.bind_input("source", self._device, 0, element, count, source)
        binding.bind_output("target", self._device, 0, element, count, target)
        session.run_with_iobinding(binding)


def identity(dtype: str) -> bytes:
    """Return a model that gives its input, `source` [N], as `target` [N]."""
    model = messages()["ModelProto"](ir_version=8)
    model.opset_import.add(version=17)
    graph = model.graph
    graph.name = "copy"
    graph.node.add(op_type="Identity", input=["source"], output=["target"])
    for values, name in ((graph.input, "source"), (graph.output, "target")):
        tensor = values.add(name=name).type.tensor_type
        tensor.elem_type = _TYPES[dtype]
        tensor.shape.dim.add(dim_param="N")
    serialized: bytes = model.SerializeToString()
    return serialized
