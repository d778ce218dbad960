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
from tgate_export.runtime.backends.base import Memory
from tgate_export.runtime.backends.onnxruntime_memory import OrtMemory
from tgate_export.runtime.batching.input_batch import InputBatch, arrange
from tgate_export.runtime.image_state import ImageState
from tgate_export.runtime.plan import Slot
from tgate_export.runtime.request import make_request
from tgate_export.runtime.run_plan import RunPlans

T, D = 77, 32


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> TGatePipeline:
    return TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")


@pytest.fixture
def input_batch(pipeline: TGatePipeline) -> InputBatch:
    backend = select("onnxruntime:cpu", pipeline.bundle)
    return InputBatch(backend, pipeline.manifest, 4, 16, 16)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Rows that are copied into each buffer."""
    count: Counter[str] = Counter()
    original = OrtMemory.write_rows

    def counting(self: OrtMemory, slot: Slot, rows: Mapping[int, np.ndarray]) -> None:
        count[slot.buffer] += len(rows)
        original(self, slot, rows)

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
        np.testing.assert_allclose(member.state["sample.0"], expected, atol=TOLERANCE)


def test_what_stays_is_not_copied_again(
    pipeline: TGatePipeline, input_batch: InputBatch, written: Counter[str]
) -> None:
    members = [image_state(pipeline, **call(seed, gate_step=1)) for seed in range(3)]
    step(input_batch, members)
    assert written["prompt_embeds"] == written["sample.0"] == 3
    for _ in range(3):
        step(input_batch, members[::-1])
    # The caches are where `full` left them; samples move from one buffer to another.
    assert written["cross_cache_0"] == written["cross_cache_1"] == 0
    assert written["denoiser_input"] == 3
    assert written["sample.0"] == 4 * 3
    step(input_batch, [image_state(pipeline, **call(7, gate_step=1))])  # overwrites the caches
    late = [image_state(pipeline, **call(seed, gate_step=1)) for seed in (8, 9)]
    step(input_batch, late)
    assert written["prompt_embeds"] == 6


def test_caches_are_kept_only_when_a_later_step_reads_them(
    pipeline: TGatePipeline, input_batch: InputBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    original = OrtMemory.read_rows

    def counting(self: Memory, slot: Slot, rows: Sequence[int]) -> list[np.ndarray]:
        read[slot.buffer] += len(rows)
        return original(self, slot, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(OrtMemory, "read_rows", counting)
    ungated = image_state(pipeline, **call(0, gate_step=9))
    gated = image_state(pipeline, **call(1, gate_step=2))
    step(input_batch, [ungated, gated])
    assert read["cross_cache_0"] == 0
    step(input_batch, [ungated, gated])
    assert read["cross_cache_0"] == 1
    assert "cross_cache_0" in gated.state
    assert "cross_cache_0" not in ungated.state


def test_rows_stick(pipeline: TGatePipeline) -> None:
    a, b, c = (image_state(pipeline, **call(seed)) for seed in range(3))
    arranged = arrange([a, b, c])
    assert set(arranged) == {a, b, c}
    assert [member.row for member in arranged] == [0, 1, 2]
    rows = {member: member.row for member in (a, b, c)}
    arrange([c, b, a])
    assert rows == {member: member.row for member in (a, b, c)}
    last = next(member for member in (a, b, c) if member.row == 2)
    others = [member for member in (a, b, c) if member is not last]
    assert arrange([last])[0] is last
    assert last.row == 0  # the only row of a batch of one
    assert {member.row for member in arrange([*others, last])} == {0, 1, 2}


def test_rows_without_a_backends_help(pipeline: TGatePipeline) -> None:
    """The base class copies whole buffers; the result is the same."""
    input_batch = InputBatch(
        select("onnxruntime:cpu", pipeline.bundle), pipeline.manifest, 3, 16, 16
    )
    memory = input_batch._memory
    slot = Slot("sample.0")
    values = np.random.default_rng(0).standard_normal((3, 4, 8, 8), dtype=np.float32)
    Memory.write_rows(memory, slot, {2: values[2], 0: values[0]})
    np.testing.assert_array_equal(memory.read(slot)[[0, 2]], values[[0, 2]])
    assert not memory.read(slot)[1].any()
    for rows in (Memory.read_rows(memory, slot, [2, 0]), memory.read_rows(slot, [2, 0])):
        np.testing.assert_array_equal(np.stack(rows), values[[2, 0]])
