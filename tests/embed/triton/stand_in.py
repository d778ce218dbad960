"""A stand-in for the module that Triton gives its Python models, to make what a server rarely does.

What a real server does is tested with a real server.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

FINAL = 1


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError(Exception):
    UNAVAILABLE, INVALID_ARG, CANCELLED, INTERNAL = "UNAVAILABLE", "INVALID_ARG", "CANCELLED", "INT"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.tensors = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = error


class MetricFamily:
    GAUGE, COUNTER = "gauge", "counter"

    def __init__(self, **_: Any) -> None:
        pass

    def Metric(self, **_: Any) -> Any:  # noqa: N802 - Triton's
        return SimpleNamespace(increment=lambda _: None, set=lambda _: None, value=lambda: 0.0)


class Sender:
    """A request's way back; `before` may raise, or wait."""

    def __init__(self, before: Callable[[InferenceResponse | None], None] | None = None) -> None:
        self.got: list[InferenceResponse] = []
        self.final = threading.Event()
        self._before = before

    def is_cancelled(self) -> bool:
        return False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if self._before is not None:
            self._before(response)
        assert not self.final.is_set(), "something was sent behind the end"
        if response is not None:
            self.got.append(response)
        if flags == FINAL:
            self.final.set()

    def error(self) -> TritonError | None:
        """Wait for the end; return the error that it was, if it was one."""
        assert self.final.wait(60), "no answer"
        return self.got[-1].error if self.got else None


class Request:
    """Inputs as Python values, by name."""

    def __init__(self, sender: Sender, **inputs: Any) -> None:
        self.sender = sender
        self.fields: dict[str, Any] = {}
        self.inputs = {name: Tensor(name, _array(value)) for name, value in inputs.items()}

    def get_response_sender(self) -> Sender:
        return self.sender

    def request_id(self) -> str:
        return "an id"

    def parameters(self) -> str:
        return json.dumps(self.fields) if self.fields else ""


def _array(value: Any) -> np.ndarray:
    values = value if isinstance(value, list) else [value]
    if isinstance(values[0], str):
        return np.array([text.encode() for text in values], dtype=np.object_)
    kinds = {bool: bool, int: np.int32, float: np.float32}
    return np.array(values, kinds[type(values[0])])


def utils(log: list[dict[str, Any]]) -> Any:
    """Return what stands for `triton_python_backend_utils`; lines of the log go into `log`."""
    return SimpleNamespace(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=InferenceResponse,
        MetricFamily=MetricFamily,
        Logger=SimpleNamespace(log_info=lambda text: log.append(json.loads(text))),
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        get_input_tensor_by_name=lambda request, name: request.inputs.get(name),
    )


def arguments(model: Path, **parameters: str) -> dict[str, str]:
    """Return what `initialize` of a model in a repository gets."""
    parameters = {"backend": "onnxruntime:cpu", **parameters}
    config = {"parameters": {name: {"string_value": text} for name, text in parameters.items()}}
    return {
        "model_config": json.dumps(config), "model_instance_kind": "CPU",
        "model_instance_device_id": "0", "model_repository": str(model), "model_version": "1",
        "model_name": model.name, "model_instance_name": f"{model.name}_0",
    }  # fmt: skip
