"""A batcher beside others on its backend, and images whose rows have to move when that fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.solo import TOLERANCE, assert_equal_solo
from tgate_export import TGatePipeline
from tgate_export.runtime.backends import select
from tgate_export.runtime.backends.host_memory import HostMemory
from tgate_export.runtime.batching import Batcher, BatchingOptions, DeadlineError
from tgate_export.runtime.batching.request_state import StepProgress
from tgate_export.runtime.step_info import StepInfo


@pytest.fixture
def pipeline(tiny_bundle: Path) -> TGatePipeline:
    return TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")


class Somebody:
    """Another user of a backend."""


def test_a_request_that_is_late_takes_nobody_along(
    pipeline: TGatePipeline, tiny_bundle: Path
) -> None:
    """Its deadline passes while the call that it shares waits for the backend."""
    reached, held, somebody = threading.Event(), threading.Event(), Somebody()

    def hold() -> None:
        assert reached.wait(60)
        with pipeline.backend.turns.take(somebody):
            held.set()
            time.sleep(1.5)

    def on_step(progress: StepProgress) -> None:
        if progress.step == 3:
            reached.set()
            assert held.wait(60)

    threading.Thread(target=hold, daemon=True).start()
    call = {"num_inference_steps": 20, "gate_step": 2, "output_type": "latent"}
    alone = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    with Batcher(pipeline.bundle, pipeline.backend, BatchingOptions(max_batch=4)) as batcher:
        with batcher._changed:  # so that they begin together
            lives = batcher.submit(batcher.request("b", seed=2, **call), on_step=on_step)
            late = batcher.submit(batcher.request("a", seed=1, **call), deadline=1.0)
        with pytest.raises(DeadlineError):
            late.result(60)
        assert_equal_solo([lives], alone, [{"prompt": "b", "seed": 2, **call}])


def test_a_batcher_that_waits_stops_nobody(pipeline: TGatePipeline) -> None:
    """A request is late while it waits for a pipeline's turn to end: the pipeline's run goes on."""
    late = []
    with Batcher(pipeline.bundle, pipeline.backend, BatchingOptions(max_batch=2)) as batcher:

        def on_step(info: StepInfo) -> None:
            if info.step == 0:
                late.append(batcher.submit(batcher.request("a", seed=0), deadline=0.2))
                time.sleep(0.8)

        call = {"num_inference_steps": 4, "seed": 1, "output_type": "latent"}
        found = pipeline("x", callback_on_step_end=on_step, **call)
        with pytest.raises(DeadlineError):
            late[0].result(60)
    np.testing.assert_array_equal(found.images, pipeline("x", **call).images)


def test_rows_that_cannot_be_taken_are_taken_later(
    tiny_dynamic_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a batch of another size fails to begin, who is in the old one loses nothing."""
    alone = TGatePipeline.from_bundle(tiny_dynamic_bundle, "onnxruntime:cpu")
    call: dict[str, Any] = {"num_inference_steps": 8, "gate_step": 2, "output_type": "latent"}
    failing: list[bool] = []
    real = HostMemory.read_rows

    def read_rows(self: HostMemory, buffer: str, rows: Sequence[int]) -> list[np.ndarray]:
        if failing and buffer.startswith("history"):
            failing.clear()
            raise MemoryError("no room for a row")
        return real(self, buffer, rows)

    monkeypatch.setattr(HostMemory, "read_rows", read_rows)
    backend = select("onnxruntime:cpu", alone.bundle)
    other = []
    with Batcher(alone.bundle, backend, BatchingOptions(max_batch=2)) as batcher:

        def on_step(progress: StepProgress) -> None:
            if progress.step == 3:
                failing.append(True)
                request = batcher.request("y", seed=2, height=16, width=16, **call)
                other.append(batcher.submit(request))

        request = batcher.request("x", seed=1, height=32, width=16, **call)
        found = batcher.submit(request, on_step=on_step).result(60).images
        with pytest.raises(MemoryError):
            other[0].result(60)
    expected = np.asarray(alone("x", seed=1, height=32, width=16, **call).images)
    np.testing.assert_allclose(np.asarray(found), expected, atol=TOLERANCE)


@pytest.mark.parametrize("output_type", ["np", "latent"])
def test_nothing_is_kept_of_images_that_are_done(pipeline: TGatePipeline, output_type: str) -> None:
    with Batcher(pipeline.bundle, pipeline.backend, BatchingOptions(max_batch=1)) as batcher:
        calls = [
            batcher.submit(
                batcher.request(
                    "a", seed=seed, num_inference_steps=4, gate_step=2, output_type=output_type
                )
            )
            for seed in range(2)  # which take turns in the only row
        ]
        for future in calls:
            future.result(60)
        input_batch = batcher._runner._input_batch
        assert input_batch is not None
        assert not [name for name, rows in input_batch._held.items() if rows]
        assert not any(input_batch._seats)


def test_latents_of_the_last_step_are_there_when_the_run_is_over(pipeline: TGatePipeline) -> None:
    infos: list[StepInfo] = []
    call = {"num_inference_steps": 3, "seed": 1}
    found = pipeline("a", callback_on_step_end=infos.append, output_type="latent", **call)
    np.testing.assert_array_equal(infos[-1].latents(), found.images)
