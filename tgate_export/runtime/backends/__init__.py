"""What runs graphs. `select` picks one; each backend is one file."""

from __future__ import annotations

from tgate_export.bundle.integrity import Bundle
from tgate_export.errors import InvalidRequestError
from tgate_export.runtime.backends.base import Backend

BACKENDS = ("auto", "onnxruntime", "onnxruntime:cpu", "onnxruntime:cuda", "onnxruntime:tensorrt")


def select(name: str, bundle: Bundle) -> Backend:
    """Return the backend of that name, ready to load the bundle's graphs.

    `auto` and `onnxruntime` run on CUDA where ONNX Runtime can, else on the CPU; the TensorRT
    execution provider compiles for minutes on its first run, so it is used only when named.

    Raises:
        InvalidRequestError: an unknown name.
        BackendError: the backend cannot be used on this machine.
    """
    if name not in BACKENDS:
        raise InvalidRequestError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    from tgate_export.runtime.backends.onnxruntime import OnnxRuntimeBackend

    _, _, device = name.partition(":")
    return OnnxRuntimeBackend(bundle, device or None)
