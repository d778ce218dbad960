"""`Batcher`: every request gets what it would alone, in time or not at all."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.solo import (
    TOLERANCE,
    assert_equal_solo,
    assert_equals_solo,
    batcher_of,
    submit,
)
from tgate_export import TGatePipeline
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.batching import (
    Batcher,
    BatchingOptions,
    ClosedError,
    DeadlineError,
    QueueFullError,
    StepProgress,
)
from tgate_export.runtime.input_batch import InputBatch, Span


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> TGatePipeline:
    return TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")


@pytest.fixture(scope="module")
def batcher(pipeline: TGatePipeline) -> Iterator[Batcher]:
    with batcher_of(pipeline) as batcher:
        yield batcher


class Gate:
    """Holds the batcher's thread in a request of its own, so that others pile up."""

    def __init__(self, batcher: Batcher) -> None:
        self._open, held = threading.Event(), threading.Event()

        def hold(_: StepProgress) -> None:
            held.set()
            assert self._open.wait(60)

        self.future = batcher.submit(
            batcher.request("held", num_inference_steps=1, seed=0), on_step=hold
        )
        assert held.wait(60)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._open.set()
        self.future.result(60)


def mixed(count: int, schedulers: list[str]) -> list[dict[str, Any]]:
    """Requests of 5 to 50 steps that differ in everything."""
    random = np.random.default_rng(0)
    calls = []
    for index in range(count):
        steps = int(random.choice([5, 7, 10, 20, 25, 50], p=[0.6, 0.2, 0.1, 0.04, 0.03, 0.03]))
        calls.append(
            {
                "prompt": f"a circle {index % 7}",
                "negative_prompt": None if index % 3 else f"a square {index}",
                "num_inference_steps": steps,
                "gate_step": int(random.integers(1, steps + 2)),
                "guidance_scale": float(random.uniform(1, 9)),
                "guidance_rescale": float(index % 4) / 4,
                "cache_blend": (0.5, 1.0, 1.25)[index % 3],
                "guidance_carry": float(index % 5) / 4,
                "clip_skip": index % 2,
                "scheduler": schedulers[index % len(schedulers)],
                "seed": index,
            }
        )
    return calls


def test_64_mixed_requests_equal_their_solo_runs(pipeline: TGatePipeline, batcher: Batcher) -> None:
    before = batcher.stats()
    calls = mixed(64, list(pipeline.manifest.samplers))
    with Gate(batcher):
        futures = submit(batcher, calls)
        assert batcher.stats().waiting == 64
    assert_equal_solo(futures, pipeline, calls)
    after = batcher.stats()
    assert after.outcomes["done"] - before.outcomes.get("done", 0) == 64 + 1
    assert (after.waiting, after.in_flight) == (0, 0)
    assert max(after.stages["full"].batches) == 8
    assert 1 < max(after.stages["gated"].batches) <= 8
    assert 0 < after.gated_fraction < 1


def test_several_images_embeddings_and_latents(pipeline: TGatePipeline, batcher: Batcher) -> None:
    random = np.random.default_rng(1)
    embeds = random.standard_normal((2, 77, 32), dtype=np.float32)
    noise = random.standard_normal((3, 4, 8, 8), dtype=np.float32)
    steps = {"num_inference_steps": 5, "gate_step": 3}
    assert_equals_solo(
        batcher,
        pipeline,
        [
            {"prompt": ["a", "b"], "num_images_per_prompt": 6, "seed": 3, **steps},
            {"prompt_embeds": embeds, "negative_prompt": "c", "seed": 4, **steps},
            {"prompt": "a", "negative_prompt_embeds": embeds[:1], "seed": 5, **steps},
            {"prompt": ["a", "b", "c"], "guidance_scale": [1.0, 3.0, 9.0], "latents": noise,
             **steps},
            {"prompt": "a", "scheduler": "euler-a", "num_images_per_prompt": 3, "seed": 6, **steps},
        ],
    )  # fmt: skip


def test_self_attention_reuse(reuse_bundle: Path) -> None:
    pipeline = TGatePipeline.from_bundle(reuse_bundle, "onnxruntime:cpu")
    intervals = [(5, 2, 2), (1, 1, 0), (3, 4, 1), (2, 2, 0)]
    calls = [
        {"prompt": f"x{seed}", "num_inference_steps": 8 + seed, "gate_step": 4 + seed % 3,
         "sp_interval": sp, "fi_interval": fi, "warm_up": warm_up, "seed": seed}
        for seed, (sp, fi, warm_up) in enumerate(3 * intervals)
    ]  # fmt: skip
    with batcher_of(pipeline) as batcher:
        assert_equals_solo(batcher, pipeline, calls)
        assert set(batcher.stats().stages) == {
            "encode", "full", "full_reuse", "gated", "gated_reuse",
        }  # fmt: skip


def test_mixed_sizes(tiny_dynamic_bundle: Path) -> None:
    pipeline = TGatePipeline.from_bundle(tiny_dynamic_bundle, "onnxruntime:cpu")
    sizes = [(16, 16), (24, 40), (48, 16), (16, 16), (24, 40)]
    calls = [
        {"prompt": "a", "height": height, "width": width, "seed": seed, "num_inference_steps": 4,
         "gate_step": 2}
        for seed, (height, width) in enumerate(sizes)
    ]  # fmt: skip
    with batcher_of(pipeline) as batcher:
        assert_equals_solo(batcher, pipeline, calls)


@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_pictures(pipeline: TGatePipeline, batcher: Batcher, output_type: str) -> None:
    call = {
        "prompt": ["a", "b"], "num_inference_steps": 3, "gate_step": 2, "seed": 1,
        "output_type": output_type,
    }  # fmt: skip
    output = batcher.submit(batcher.request(**call)).result(60)
    expected = pipeline(**call)
    # One level of 255 is what rounding can make of a difference of any size.
    atol = 1 if output_type == "pil" else TOLERANCE
    for found, wanted in zip(output.images, expected.images, strict=True):
        np.testing.assert_allclose(
            np.asarray(found, np.float64), np.asarray(wanted, np.float64), atol=atol
        )
    assert output.request == expected.request
    assert set(output.timings()["stages"]) == {"encode", "full", "gated", "decode"}
    assert output.timings()["stages"]["full"]["calls"] == 2 * 2
    assert 0 <= output.waited <= output.total


def test_a_long_prompt_is_told_to_its_caller_alone(batcher: Batcher) -> None:
    """Python's own warnings would keep every such text for ever, and print it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        request = batcher.request("a" + " b" * 300, num_inference_steps=1, seed=1)
        output = batcher.submit(request).result(60)
        other = batcher.submit(batcher.request("a", num_inference_steps=1, seed=1)).result(60)
    (text,) = output.warnings
    assert "this part was left out: 'b b" in text
    assert other.warnings == ()


def test_progress_step_by_step(pipeline: TGatePipeline, batcher: Batcher) -> None:
    seen: list[StepProgress] = []
    request = batcher.request(
        "a", num_inference_steps=5, gate_step=2, seed=3, output_type="latent", scheduler="pndm",
        num_images_per_prompt=2,
    )  # fmt: skip
    output = batcher.submit(request, on_step=seen.append).result(60)
    for image in range(2):
        mine = [progress for progress in seen if progress.image == image]
        assert [progress.step for progress in mine] == [0, 1, 2, 3, 4, 5]  # PNDM: one more
        assert {progress.evaluations for progress in mine} == {6}
        assert [progress.phase for progress in mine] == ["full"] * 3 + ["gated"] * 3
        np.testing.assert_array_equal(mine[-1].latents(), np.asarray(output.images)[image])


def test_cancelled_request_frees_its_place(pipeline: TGatePipeline, batcher: Batcher) -> None:
    call = {"prompt": "a", "num_inference_steps": 3, "gate_step": 1, "output_type": "latent"}
    steps: list[StepProgress] = []
    before = batcher.stats().outcomes.get("cancelled", 0)
    with Gate(batcher):
        first = batcher.submit(batcher.request(seed=1, **call), on_step=steps.append)
        other = batcher.submit(batcher.request(seed=2, **call))
        assert first.cancel()
    with pytest.raises(CancelledError):
        first.result(60)
    expected = np.asarray(pipeline(seed=2, **call).images)
    np.testing.assert_allclose(np.asarray(other.result(60).images), expected, atol=TOLERANCE)
    assert not steps
    assert batcher.stats().outcomes["cancelled"] == before + 1


def test_cancelled_while_it_runs(batcher: Batcher) -> None:
    steps: list[int] = []

    def cancel_after_two(progress: StepProgress) -> None:
        steps.append(progress.step)
        if progress.step == 1:
            assert future.cancel()

    with Gate(batcher):
        future = batcher.submit(
            batcher.request("a", num_inference_steps=50, seed=0), on_step=cancel_after_two
        )
    with pytest.raises(CancelledError):
        future.result(60)
    # The thread has gone on to another request.
    batcher.submit(batcher.request("b", num_inference_steps=1, seed=0)).result(60)
    assert steps == [0, 1]


def test_full_queue_refuses_at_once_and_takes_more_later(pipeline: TGatePipeline) -> None:
    call = {"num_inference_steps": 2, "seed": 0}
    with batcher_of(pipeline, BatchingOptions(max_pending=4)) as batcher:
        with Gate(batcher):
            taken = [batcher.submit(batcher.request(str(index), **call)) for index in range(3)]
            started = time.monotonic()
            with pytest.raises(QueueFullError, match=r"4 of 4 images are pending, no room for 1"):
                batcher.submit(batcher.request("x", **call))
            assert time.monotonic() - started < 0.1
            taken[0].cancel()
        for future in taken[1:]:
            future.result(60)
        batcher.submit(batcher.request("y", num_images_per_prompt=4, **call)).result(60)
        with pytest.raises(InvalidRequestError, match="5 images are more than the 4"):
            batcher.submit(batcher.request("z", num_images_per_prompt=5, **call))
        outcomes = batcher.stats().outcomes
    assert outcomes["refused"] == 1
    assert outcomes["cancelled"] == 1


def test_who_has_a_result_may_submit_again(pipeline: TGatePipeline) -> None:
    with batcher_of(pipeline, BatchingOptions(max_pending=1)) as batcher:
        for seed in range(20):
            batcher.submit(batcher.request("a", num_inference_steps=1, seed=seed)).result(60)


def test_more_images_than_fit_in_flight(pipeline: TGatePipeline) -> None:
    options = BatchingOptions(max_batch=2, max_in_flight=3)
    calls = [{"prompt": "a", "num_inference_steps": 3, "seed": seed} for seed in range(5)]
    calls.append({"prompt": "b", "num_inference_steps": 2, "num_images_per_prompt": 5, "seed": 9})
    with batcher_of(pipeline, options) as batcher:
        assert_equals_solo(batcher, pipeline, calls)
        assert max(batcher.stats().stages["full"].batches) == 2


def test_deadlines_are_kept(batcher: Batcher) -> None:
    call = {"num_inference_steps": 50, "seed": 0}
    before = batcher.stats().outcomes.get("late", 0)
    with Gate(batcher):
        late = batcher.submit(batcher.request("late", **call), deadline=0.05)
        relaxed = batcher.submit(batcher.request("relaxed", **call), deadline=600)
        time.sleep(0.1)
    with pytest.raises(DeadlineError, match=r"the deadline of 0\.05 s has passed"):
        late.result(60)
    relaxed.result(60)
    assert batcher.stats().outcomes["late"] == before + 1


def test_result_that_is_late_is_not_handed_over(batcher: Batcher) -> None:
    def slow(_: StepProgress) -> None:
        time.sleep(0.2)

    request = batcher.request("a", num_inference_steps=1, output_type="latent", seed=0)
    with pytest.raises(DeadlineError):
        batcher.submit(request, deadline=0.1, on_step=slow).result(60)


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf")])
def test_impossible_deadlines(batcher: Batcher, deadline: float) -> None:
    with pytest.raises(InvalidRequestError, match="deadline must be above 0 seconds"):
        batcher.submit(batcher.request("a"), deadline=deadline)


def test_short_run_overtakes_long_ones(pipeline: TGatePipeline) -> None:
    order: list[str] = []
    with batcher_of(pipeline, BatchingOptions(max_batch=1)) as batcher, Gate(batcher):
        for name, steps in (("long 1", 50), ("long 2", 50), ("short", 3)):
            future = batcher.submit(batcher.request(name, num_inference_steps=steps, seed=0))
            future.add_done_callback(lambda _, name=name: order.append(name))
    assert order == ["short", "long 1", "long 2"]


def test_refused_requests_take_nothing(batcher: Batcher) -> None:
    with pytest.raises(InvalidRequestError, match="guidance_scale must be a finite number"):
        batcher.request("a", guidance_scale=float("nan"))
    with pytest.raises(InvalidRequestError, match="sp_interval 3: this bundle was built without"):
        batcher.submit(batcher.request("a", sp_interval=3))
    assert batcher.stats().in_flight == batcher.stats().waiting == 0


def test_engine_failure_fails_those_in_the_call_alone(
    pipeline: TGatePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = InputBatch.denoise

    def failing(self: InputBatch, phase: Any, members: Any) -> tuple[Span, Span]:
        if any(member.request.prompts == ("bad",) for member in members):
            raise RuntimeError("out of memory")
        return original(self, phase, members)

    monkeypatch.setattr(InputBatch, "denoise", failing)
    with batcher_of(pipeline, BatchingOptions(max_batch=1)) as batcher:
        bad = batcher.submit(batcher.request("bad", num_inference_steps=2))
        good = batcher.submit(batcher.request("good", num_inference_steps=2))
        with pytest.raises(RuntimeError, match="out of memory"):
            bad.result(60)
        good.result(60)
        assert batcher.stats().outcomes == {"done": 1, "failed": 1}


def test_callback_failure_fails_its_request_alone(batcher: Batcher) -> None:
    def broken(_: StepProgress) -> None:
        raise RuntimeError("the client is gone")

    with Gate(batcher):
        bad = batcher.submit(batcher.request("a", num_inference_steps=2), on_step=broken)
        good = batcher.submit(batcher.request("b", num_inference_steps=2))
    with pytest.raises(RuntimeError, match="the client is gone"):
        bad.result(60)
    good.result(60)


def test_close_finishes_what_was_taken_and_refuses_more(pipeline: TGatePipeline) -> None:
    batcher = batcher_of(pipeline)
    futures = [batcher.submit(batcher.request("a", num_inference_steps=9)) for _ in range(12)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._closing:
        time.sleep(0.001)
    with pytest.raises(ClosedError, match="shutting down"):
        batcher.submit(batcher.request("b"))
    closing.join(60)
    assert all(future.done() and future.exception() is None for future in futures)


@pytest.mark.parametrize("close", [{"drain": False}, {"timeout": 0.01}])
def test_close_at_once_fails_what_is_left(pipeline: TGatePipeline, close: dict[str, Any]) -> None:
    batcher = batcher_of(pipeline, BatchingOptions(max_batch=1))
    futures = [batcher.submit(batcher.request("a", num_inference_steps=50)) for _ in range(12)]
    batcher.close(**close)
    assert all(future.done() for future in futures)
    with pytest.raises(ClosedError, match="closed before this request was done"):
        futures[-1].result(0)
    assert not batcher._thread.is_alive()


def test_asyncio(batcher: Batcher) -> None:
    async def generate() -> list[Any]:
        requests = [batcher.request("a", num_inference_steps=2, seed=seed) for seed in range(3)]
        return await asyncio.gather(
            *(asyncio.wrap_future(batcher.submit(request)) for request in requests)
        )

    assert len(asyncio.run(generate())) == 3


@pytest.mark.parametrize(
    "options", [{"max_batch": 0}, {"max_pending": 0}, {"call_target": 0.0}, {"max_in_flight": -1}]
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        BatchingOptions(**options)


def test_call_target_keeps_batches_small(pipeline: TGatePipeline) -> None:
    with batcher_of(pipeline, BatchingOptions(call_target=1e-9)) as batcher:
        with Gate(batcher):
            futures = [batcher.submit(batcher.request("a", num_inference_steps=3)) for _ in "abc"]
        for future in futures:
            future.result(60)
        stages = batcher.stats().stages
    # What is not known yet is tried; after that every image goes alone.
    assert stages["full"].batches[1] > stages["full"].calls - 2


def test_whole_batches_are_the_same_in_any_company(pipeline: TGatePipeline) -> None:
    """To the last bit, whatever shares a call; and calls are whole as long as there is enough."""
    calls = mixed(40, list(pipeline.manifest.samplers))
    options = BatchingOptions(whole_batches=True)
    with batcher_of(pipeline, options) as batcher:
        with Gate(batcher):
            together = submit(batcher, calls)
        expected = [np.asarray(future.result(60).images) for future in together]
        for some in (calls[3:4], calls[10:15]):
            for call, future in zip(some, submit(batcher, some), strict=True):
                found = np.asarray(future.result(60).images)
                assert np.array_equal(found, expected[call["seed"]])
    assert_equal_solo(together, pipeline, calls)


def test_whole_batches_compute_rows_that_no_image_is_in(
    pipeline: TGatePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = set()
    launch = InputBatch._launch

    def note(self: InputBatch, launched: Any, size: int) -> None:
        sizes.add(size)
        launch(self, launched, size)

    monkeypatch.setattr(InputBatch, "_launch", note)
    call = {"prompt": "a", "num_inference_steps": 2, "gate_step": 1, "output_type": "pil"}
    for options, expected in (
        (BatchingOptions(whole_batches=True), {8}),
        (BatchingOptions(whole_batches=True, max_batch=3), {3}),
        (BatchingOptions(), {1}),
    ):
        sizes.clear()
        with batcher_of(pipeline, options) as batcher:
            submit(batcher, [call])[0].result(60)
        assert sizes == expected
