"""What a batch is compared with: every request alone, by the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from tgate_export import TGatePipeline
from tgate_export.runtime.backends import select
from tgate_export.runtime.batching import BatchedOutput, Batcher, BatchingOptions

LATENTS = {"output_type": "latent"}
# The same kernels on another batch may add in another order. Of latents with a deviation of 1, and
# in proportion where random weights make them larger; those of another seed, step or gate differ by
# more than 0.01, which is checked.
TOLERANCE = 1e-4


def batcher_of(pipeline: TGatePipeline, options: BatchingOptions | None = None) -> Batcher:
    """Serve a pipeline's bundle with a backend of its own."""
    return Batcher(pipeline.bundle, select(pipeline.backend.name, pipeline.bundle), options)


def submit(batcher: Batcher, calls: Sequence[dict[str, Any]]) -> list[Future[BatchedOutput]]:
    """Submit calls, for latents unless they say otherwise."""
    return [batcher.submit(batcher.request(**LATENTS | call)) for call in calls]


def assert_equal_solo(
    futures: Sequence[Future[BatchedOutput]],
    pipeline: TGatePipeline,
    calls: Sequence[dict[str, Any]],
) -> None:
    """Every result equals the pipeline's of its call, and differs from that of every other."""
    found = [np.asarray(future.result(timeout=300).images) for future in futures]
    alone = [np.asarray(pipeline(**LATENTS | call).images) for call in calls]
    for index, (together, expected) in enumerate(zip(found, alone, strict=True)):
        assert together.dtype == expected.dtype
        tolerance = TOLERANCE * max(1.0, float(expected.std()))
        np.testing.assert_allclose(together, expected, atol=tolerance, err_msg=str(calls[index]))
        for other, latents in enumerate(alone):
            if other != index and latents.shape == expected.shape:
                assert np.abs(latents - expected).max() > 100 * tolerance, (index, other)


def assert_equals_solo(
    batcher: Batcher, pipeline: TGatePipeline, calls: Sequence[dict[str, Any]]
) -> None:
    """Submit everything at once, and compare it with the pipeline's runs."""
    assert_equal_solo(submit(batcher, calls), pipeline, calls)
