"""ONNX Runtime's sessions on CUDA: fused kernels, channels last, CUDA graphs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tgate_export.runtime.backends.fused_attention import fuse_attention
from tgate_export.runtime.backends.fused_group_norm import fuse_group_norm

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def preload_cuda(ort: Any) -> str:
    """Load CUDA and cuDNN from where pip installs them; return what onnxruntime says of it.

    Its provider finds only what is loaded already or lies on the system's search path.
    """
    said = io.StringIO()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(said):
            ort.preload_dlls()
    return said.getvalue().partition("\n")[0]


def cuda_session(
    model: Any, weights_folder: Path, options: Any, make: Callable[..., Any], *, capture: bool
) -> tuple[Any, bool]:
    """Make a session.

    Args:
        model: the graph's ModelProto, which is changed.
        weights_folder: where its weights are.
        options: its SessionOptions.
        make: takes the serialized model and `providers`.
        capture: its launches are to become CUDA graphs.

    Returns:
        The session, and whether they do: not where a node runs on the CPU or copies to it.
    """
    fuse_attention(model, half=True)
    fuse_group_norm(model)
    options.add_session_config_entry(WEIGHTS_FOLDER, str(weights_folder))
    serialized = model.SerializeToString()

    def made(enable: str) -> Any:
        cuda = {"prefer_nhwc": "1", "enable_cuda_graph": enable}
        return make(serialized, providers=[(CUDA, cuda), CPU])

    if capture:
        severity, options.log_severity_level = options.log_severity_level, 4
        try:
            return made("1"), True
        except Exception as error:  # onnxruntime raises many types of its own
            if "graph capture" not in str(error):
                raise
        finally:
            options.log_severity_level = severity
    return made("0"), False
