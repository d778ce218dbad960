"""Where TensorRT 10.13 and later and TensorRT-RTX 1.7 and later differ; the rest is one API."""

from __future__ import annotations

from typing import Any

from tgate_export.bundle.plans import Library

MODULES: dict[Library, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32",
}  # fmt: skip


def create_context(trt: Any, engine: Any) -> Any:
    """Make an execution context that is given its activation memory by us."""
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context(strategy)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    # TensorRT-RTX compiles kernels on the machine: all of them in the warm-up, so that a capture
    # holds the fast ones and nothing is compiled during a run.
    config.dynamic_shapes_kernel_specialization_strategy = (
        trt.DynamicShapesKernelSpecializationStrategy.EAGER
    )
    return engine.create_execution_context(config)


def capturable(context: Any, stream: int) -> bool:
    """Whether a launch can become a CUDA graph; TensorRT-RTX knows, TensorRT captures to see."""
    return not hasattr(context, "is_stream_capturable") or context.is_stream_capturable(stream)


def weights_bytes(trt: Any, engine: Any, plan_bytes: int) -> int:
    """Return the size of an engine's weights, wherever they are; its plan's where it cannot tell.

    A plan is little more than its weights, unless it was stripped of them.
    """
    if not hasattr(trt, "EngineStat"):
        return plan_bytes
    return int(engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE))


def collecting_logger(trt: Any) -> Any:
    """Return a TensorRT logger that keeps its errors in `errors`, and shows nothing."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()
