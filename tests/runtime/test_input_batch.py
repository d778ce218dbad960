"""Rows of a batch: which are copied, and that they come back to their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.solo import TOLERANCE
from tgate_export import TGatePipeline
from tgate_export.runtime.backends import select
from tgate_export.runtime.backends.base import Memory, Row
from tgate_export.runtime.backends.onnxruntime_memory import OrtMemory
from tgate_export.runtime.image_state import ImageState
from tgate_export.runtime.input_batch import InputBatch, arrange
from tgate_export.runtime.plan import BatchShape
from tgate_export.runtime.request import make_request
from tgate_export.runtime.run_plan import RunPlans

T, D = 77, 32


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> TGatePipeline:
    return TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")


@pytest.fixture
def input_batch(pipeline: TGatePipeline) -> InputBatch:
    return new_batch(pipeline, 4)


def new_batch(pipeline: TGatePipeline, batch: int) -> InputBatch:
    backend = select("onnxruntime:cpu", pipeline.bundle)
    shape = BatchShape(batch, 16, 16, pipeline.manifest.phases)
    return InputBatch(backend, pipeline.manifest, shape)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Rows that are copied into each buffer."""
    count: Counter[str] = Counter()
    original = OrtMemory.write_rows

    def counting(self: OrtMemory, buffer: str, rows: Mapping[int, Row]) -> None:
        count[buffer] += len(rows)
        original(self, buffer, rows)

    monkeypatch.setattr(OrtMemory, "write_rows", counting)
    return count


def call(seed: int, **options: Any) -> dict[str, Any]:
    embeds = np.random.default_rng(seed).standard_normal((2, 1, T, D), dtype=np.float32)
    return {
        "prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1], "seed": seed,
        "num_inference_steps": 4, "gate_step": 2, "output_type": "latent", **options,
    }  # fmt: skip


def image_state(pipeline: TGatePipeline, **options: Any) -> ImageState:
    request = make_request(pipeline.manifest, **options)
    route = RunPlans(pipeline.bundle).of(request)
    return ImageState.of(pipeline.manifest, request, 0, route)


def step(input_batch: InputBatch, members: Sequence[ImageState]) -> None:
    (phase,) = {member.stage for member in members}
    assert phase in ("full", "gated")
    input_batch.denoise(phase, members)


def test_batches_that_change_at_every_call(
    pipeline: TGatePipeline, input_batch: InputBatch
) -> None:
    """Images are at different steps, in other rows and other company each time."""
    calls = [call(seed) for seed in range(5)]
    a, b, c, d, e = (image_state(pipeline, **options) for options in calls)
    for members in (
        [a], [b, c], [c, a, b], [d, e], [e], [a], [c, a, b], [d], [b, c], [d, e], [e, d],
    ):  # fmt: skip
        step(input_batch, members)
    for member, options in zip((a, b, c, d, e), calls, strict=True):
        while member.step < 4:
            step(input_batch, [member])
        expected = np.asarray(pipeline(**options).images)[0]
        np.testing.assert_allclose(input_batch.latents([member])[0], expected, atol=TOLERANCE)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Rows that are copied out of each buffer."""
    count: Counter[str] = Counter()
    original = OrtMemory.read_rows

    def counting(self: OrtMemory, buffer: str, rows: Sequence[int]) -> list[np.ndarray]:
        count[buffer] += len(rows)
        return original(self, buffer, rows)

    monkeypatch.setattr(OrtMemory, "read_rows", counting)
    return count


def test_images_that_go_on_together_move_nothing(
    pipeline: TGatePipeline, input_batch: InputBatch, written: Counter[str], read: Counter[str]
) -> None:
    members = [image_state(pipeline, **call(seed)) for seed in range(3)]
    step(input_batch, members)
    brought = dict(written)
    assert {name: rows for name, rows in brought.items() if rows != 3} == {}
    for _ in range(3):  # through the gate
        step(input_batch, members[::-1])
    moved = {name: rows - brought.get(name, 0) for name, rows in written.items()}
    # And what `gated` alone reads of what they brought.
    assert +Counter(moved) == {
        "timestep": 3 * 3, "weights": 3 * 3, "parameter/guidance_carry": 3,
    }  # fmt: skip
    assert not +read
    input_batch.latents(members)
    assert read == {"sample.0": 3}


def test_staged_images_have_their_steps_there(
    pipeline: TGatePipeline, input_batch: InputBatch, written: Counter[str]
) -> None:
    members = [
        image_state(pipeline, **call(seed, scheduler="euler-a", num_inference_steps=3))
        for seed in range(2)
    ]
    input_batch.stage(members)
    for _ in range(3):
        step(input_batch, members)
    assert not {"timestep", "weights", "noise"} & written.keys()
    for member, seed in zip(members, range(2), strict=True):
        options = call(seed, scheduler="euler-a", num_inference_steps=3)
        expected = np.asarray(pipeline(**options).images)[0]
        np.testing.assert_allclose(input_batch.latents([member])[0], expected, atol=TOLERANCE)


def test_who_leaves_takes_only_what_it_needs(
    pipeline: TGatePipeline, input_batch: InputBatch, read: Counter[str]
) -> None:
    ungated = image_state(pipeline, **call(0, gate_step=9))
    gated = image_state(pipeline, **call(1, gate_step=2))
    abandoned = image_state(pipeline, **call(2, gate_step=2))
    members = [ungated, gated, abandoned]
    step(input_batch, members)
    other = image_state(pipeline, **call(3))
    step(input_batch, [other])
    assert read["sample.1"] == 3
    assert read["cross_cache_0"] == 0  # step 1 writes it again
    step(input_batch, members)
    read.clear()
    abandoned.abandoned = True
    step(input_batch, [other])
    samples = read["sample.0"] + read["sample.1"]
    assert (samples, read["cross_cache_0"], read["cross_cache_1"]) == (2, 1, 1)
    assert "cross_cache_0" in gated.state
    assert "cross_cache_0" not in ungated.state


def test_what_an_image_brought_is_copied_once(
    pipeline: TGatePipeline, input_batch: InputBatch, written: Counter[str]
) -> None:
    """Conditions stay in the rows, and so do equal ones of other images."""
    first, second = (image_state(pipeline, **call(seed)) for seed in (1, 2))
    second.state |= {name: first.state[name] for name in first.state if "prompt_embeds" in name}
    for members in ([first], [second], [first]):
        step(input_batch, members)
    assert written["prompt_embeds"] == written["negative_prompt_embeds"] == 1


def test_a_failed_call_leaves_the_others_as_they_were(
    pipeline: TGatePipeline, input_batch: InputBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that was in the rows of a call that failed has its own values, not half of them."""
    waiting, failing = (image_state(pipeline, **call(seed)) for seed in (0, 1))
    step(input_batch, [waiting])
    original = OrtMemory.write_rows

    def broken(self: OrtMemory, buffer: str, rows: Mapping[int, Row]) -> None:
        original(self, buffer, rows)
        if buffer == "weights":
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(OrtMemory, "write_rows", broken)
        with pytest.raises(MemoryError):
            step(input_batch, [failing])
    assert_goes_on(pipeline, input_batch, waiting)


def assert_goes_on(pipeline: TGatePipeline, input_batch: InputBatch, waiting: ImageState) -> None:
    """What seed 0 has after its first step is its own."""
    for _ in range(3):
        step(input_batch, [waiting])
    expected = np.asarray(pipeline(**call(0)).images)[0]
    np.testing.assert_allclose(input_batch.latents([waiting])[0], expected, atol=TOLERANCE)


def test_rows_that_cannot_be_taken_stay(
    pipeline: TGatePipeline, input_batch: InputBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, failing = (image_state(pipeline, **call(seed)) for seed in (0, 1))
    step(input_batch, [waiting])
    original = OrtMemory.read_rows

    def broken(self: OrtMemory, buffer: str, rows: Sequence[int]) -> list[np.ndarray]:
        if buffer == "denoiser_input":
            raise MemoryError
        return original(self, buffer, rows)

    with monkeypatch.context() as patch:
        patch.setattr(OrtMemory, "read_rows", broken)
        with pytest.raises(MemoryError):
            step(input_batch, [failing])
    assert_goes_on(pipeline, input_batch, waiting)


def test_rows_stick(pipeline: TGatePipeline) -> None:
    a, b, c = (image_state(pipeline, **call(seed)) for seed in range(3))

    def seat(*members: ImageState) -> list[ImageState]:
        arranged = arrange(members)
        for row, member in enumerate(arranged):
            member.row = row
        return arranged

    assert seat(a, b, c) == [a, b, c]
    assert seat(c, b, a) == [a, b, c]
    assert seat(c) == [c]  # the only row of a batch of one
    assert seat(a, b, c) == [a, b, c]


def test_rows_without_a_backends_help(pipeline: TGatePipeline) -> None:
    """The base class copies whole buffers; the result is the same."""
    memory = new_batch(pipeline, 3)._memory
    values = np.random.default_rng(0).standard_normal((3, 4, 8, 8), dtype=np.float32)
    Memory.write_rows(memory, "sample.0", {2: values[2], 0: values[0]})
    np.testing.assert_array_equal(memory.read("sample.0")[[0, 2]], values[[0, 2]])
    assert not memory.read("sample.0")[1].any()
    for rows in (
        Memory.read_rows(memory, "sample.0", [2, 0]), memory.read_rows("sample.0", [2, 0]),
        memory.take_rows("sample.0", [2, 0]),
    ):  # fmt: skip
        np.testing.assert_array_equal(np.stack(list(map(np.asarray, rows))), values[[2, 0]])
