"""In-flight batching: requests at different denoising steps share engine calls."""

from tgate_export.runtime.batching.batcher import Batcher
from tgate_export.runtime.batching.request_state import (
    BatchedOutput,
    BatchingOptions,
    ClosedError,
    DeadlineError,
    QueueFullError,
    StepProgress,
)

__all__ = [
    "BatchedOutput",
    "Batcher",
    "BatchingOptions",
    "ClosedError",
    "DeadlineError",
    "QueueFullError",
    "StepProgress",
]
