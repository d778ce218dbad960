"""`bench` on a backend of known latencies: every figure must come out, to the last digit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.bench import SECONDS, Clock, FakeBackend, FakeMemory, fake_pipeline
from tgate_export.bench import compare as compare_module
from tgate_export.bench.compare import NO_ONNX, Comparison, compare
from tgate_export.bench.macs import graph_macs
from tgate_export.bench.measure import Plan, Setup
from tgate_export.bench.result import BenchRow
from tgate_export.bench.rows import (
    BETTER,
    OFFICIAL,
    gate_settings,
    parse_gate_steps,
    requested_rows,
)
from tgate_export.bench.rows import gated as gated_row
from tgate_export.bench.tables import tables
from tgate_export.bundle.integrity import open_bundle
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.plan import Launch

PLAN = Plan(steps=8, gate_steps=(2, 5), scheduler="ddim", batch=1, repeats=4, warmup=1, seed=11)
STEP = {phase: SECONDS[phase] + SECONDS["sampler"] for phase in ("full", "gated")}
# Two text encodings and a picture.
AROUND = 2 * SECONDS["text_encoder"] + SECONDS["vae_decoder"]


@pytest.fixture(autouse=True)
def _no_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "measure_peak", lambda *_: 12345)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(Clock())


@pytest.fixture
def setup(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, backend: FakeBackend) -> Setup:
    return Setup("tiny", fake_pipeline(tiny_bundle, monkeypatch, backend), ("a", "b", "c"))


def run(setups: list[Setup], plan: Plan = PLAN) -> Comparison:
    return compare(setups, plan, lambda *_: None)


def rows(comparison: Comparison) -> dict[str, BenchRow]:
    return {row.label: row for row in comparison.result.rows}


def expected(full: int, gated: int) -> float:
    return AROUND + full * STEP["full"] + gated * STEP["gated"]


def test_known_latencies_come_out(setup: Setup) -> None:
    found = rows(run([setup]))
    # Two full and six gated steps take as long as 2 + 6 * 0.875 / 2.125 = 4.5 plain ones.
    assert list(found) == [
        "8 steps, no gate", "gate 2 of 8", "gate 2 of 8, blend 1, carry 0.25",
        "gate 5 of 8", "gate 5 of 8, blend 1, carry 0.25", "6 plain steps",
        "4 plain steps",
    ]  # fmt: skip
    plain, gated = found["8 steps, no gate"], found["gate 2 of 8"]
    assert plain.latencies_s == [expected(8, 0)] * 4
    assert gated.latencies_s == [expected(2, 6)] * 4
    assert gated.latency.p50 == gated.latency.p99 == expected(2, 6)
    assert gated.images_per_second == 1 / expected(2, 6)
    assert gated.evaluations == {"full": 2, "gated": 6}
    assert {name: entry.p50 for name, entry in gated.phases.items()} == {"full": 2, "gated": 0.75}
    assert {name: entry.p50 for name, entry in gated.stages.items()} == {
        "text_encoder": 1.0, "denoiser": 8.5, "sampler": 1.0, "vae_decoder": 1.0, "host": 0.0,
    }  # fmt: skip
    ratio = expected(8, 0) / expected(2, 6)
    assert gated.speedup is not None
    assert gated.speedup.model_dump() == pytest.approx(
        {"value": ratio, "low": ratio, "high": ratio}
    )
    assert found["4 plain steps"].latency.p50 == expected(4, 0)


def test_expected_speedup_is_counted_from_the_graphs(setup: Setup, tiny_bundle: Path) -> None:
    comparison = run([setup])
    gated = rows(comparison)["gate 2 of 8"]
    bundle = open_bundle(tiny_bundle)
    macs = {graph: graph_macs(bundle, graph) for graph in bundle.manifest.graphs}
    around = 2 * macs["text_encoder"].total + macs["vae_decoder"].total + 8 * macs["sampler"].total
    steps = 2 * macs["full"].total + 6 * macs["gated"].total
    assert gated.macs is not None
    assert gated.expected_speedup is not None
    assert (gated.macs.total, gated.macs.denoiser_total) == (around + steps, steps)
    layers = 2 * macs["full"].layers + 6 * macs["gated"].layers
    assert gated.macs.denoiser_papers == layers
    assert gated.expected_speedup.denoiser == 8 * macs["full"].total / steps
    assert gated.expected_speedup.all_stages == (around + 8 * macs["full"].total) / (around + steps)
    assert gated.efficiency == gated.speedup.value / gated.expected_speedup.all_stages  # type: ignore[union-attr]
    part = comparison.result.targets[0].attribution
    assert part is not None
    assert (part.full, part.gated) == (macs["full"].total, macs["gated"].total)
    assert part.guidance == 2
    assert part.cache == macs["full"].total / (2 * macs["gated"].total)


def test_cache_and_guidance_are_told_apart(setup: Setup, backend: FakeBackend) -> None:
    def ran(launch: Launch, memory: FakeMemory) -> None:
        images = len(memory.values[launch.outputs["noise_pred"]]) if launch.graph == "gated" else 0
        if images == 2:
            backend.clock.now += 0.875  # twice the images take 1.625 instead of 0.75

    backend.ran = ran
    found = run([setup]).result
    part = found.targets[0].measured_attribution
    assert part is not None
    assert part.model_dump() == pytest.approx({
        "full": 2, "without_guidance": 2 / (1.625 / 0.75), "gated": 0.75,
        "guidance": 1.625 / 0.75, "cache": 2 / 1.625,
    })  # fmt: skip
    table = next(table for table in tables(found) if table.title == "What a gated step saves")
    assert [row[1:] for row in table.rows][1] == (
        "measured, ms", "2000", "923", "750", "2.17x", "1.23x", "2.67x",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", lambda images: 1), ("slow_after_another_shape", True)]
)
def test_nothing_is_measured_where_two_batches_do_not_fit_or_are_slow(
    setup: Setup,
    backend: FakeBackend,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: object,
) -> None:
    monkeypatch.setattr(backend, name, value)
    assert run([setup]).result.targets[0].measured_attribution is None


def test_version_2_has_rows_where_it_is_the_default(setup: Setup, tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    better = "blend 1, carry 0.25"
    usual = [
        "8 steps, no gate", "gate 2 of 8", f"gate 2 of 8, {better}", "gate 5 of 8",
        f"gate 5 of 8, {better}",
    ]  # fmt: skip
    assert [row.label for row in requested_rows(8, (2, 5), manifest)] == usual
    # A gate before the end of warm-up makes no step plan.
    reused = with_defaults(manifest, sp_interval=3, fi_interval=2, warm_up=4)
    rows = requested_rows(8, (2, 5), reused)
    assert [row.label for row in rows] == [*usual, "gate 5 of 8, self-attention 3,2,4"]
    assert rows[-1].call() == {
        "num_inference_steps": 8, "gate_step": 5, "sp_interval": 3, "fi_interval": 2, "warm_up": 4,
        **OFFICIAL,
    }  # fmt: skip


def test_gates_are_tried_as_official_better_and_by_default(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    assert gate_settings(manifest) == [OFFICIAL, BETTER]
    assert gate_settings(with_defaults(manifest, **BETTER)) == [OFFICIAL, BETTER]
    own = {"cache_blend": 1.25, "guidance_carry": 0.0}
    assert gate_settings(with_defaults(manifest, **own)) == [OFFICIAL, BETTER, own]
    without = {name: p for name, p in manifest.parameters.items() if name != "cache_blend"}
    assert gate_settings(manifest.model_copy(update={"parameters": without})) == [{}]


def with_defaults(manifest: Manifest, **values: float) -> Manifest:
    entries = {
        name: entry.model_copy(update={"default": values.get(name, entry.default)})
        for name, entry in manifest.parameters.items()
    }
    return manifest.model_copy(update={"parameters": entries})


def test_every_round_holds_every_row_in_random_order(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    call = type(setup.pipeline).__call__

    def spy(pipeline: Any, prompt: Any, **options: Any) -> Any:
        calls.append({"prompt": prompt, **options})
        return call(pipeline, prompt, **options)

    monkeypatch.setattr(type(setup.pipeline), "__call__", spy)
    comparison = run([setup])
    count = len(comparison.result.rows)
    measured = [call for call in calls if call["output_type"] == "np"][count * PLAN.warmup :]
    rounds = [measured[at : at + count] for at in range(0, len(measured), count)]
    assert len(rounds) == PLAN.repeats
    orders = []
    for number, entries in enumerate(rounds):
        assert {entry["seed"] for entry in entries} == {PLAN.seed + number}
        assert len({tuple(entry["prompt"]) for entry in entries}) == 1
        names = ("num_inference_steps", "gate_step", "cache_blend")
        orders.append([tuple(entry.get(name) for name in names) for entry in entries])
        assert len(set(orders[-1])) == count
    assert len(set(map(tuple, orders))) > 1


def test_similarity_is_to_the_same_round(setup: Setup) -> None:
    found = rows(run([setup]))
    quality = found["8 steps, no gate"].quality
    assert quality is not None
    similar = quality.similarity
    assert (similar.psnr_db, similar.ssim, similar.images) == (100.0, pytest.approx(1.0), 4)
    assert similar.ssims == pytest.approx([1.0] * 4)
    other = found["gate 2 of 8"].quality
    assert other is not None
    assert other.similarity.psnr_db < 100


def test_two_targets_have_baselines_of_their_own(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    half = {graph: seconds / 2 for graph, seconds in SECONDS.items()}
    both = [
        Setup(name, fake_pipeline(tiny_bundle, monkeypatch, FakeBackend(clock, table)), ("a",))
        for name, table in (("slow", SECONDS), ("fast", half))
    ]
    result = run(both).result
    assert [target.id for target in result.targets] == ["slow", "fast"]
    found = {row.id: row for row in result.rows}
    for name, times in (("slow", 1), ("fast", 2)):
        row = found[f"{name}/gate 2 of 8"]
        assert row.speedup is not None
        assert row.speedup_over_first is not None
        assert row.speedup.value == pytest.approx(expected(8, 0) / expected(2, 6))
        assert row.speedup_over_first.value == pytest.approx(times * row.speedup.value)


def test_ctrl_c_keeps_what_was_measured(setup: Setup, backend: FakeBackend) -> None:
    def interrupt(launch: Any, _memory: Any) -> None:
        # Seven rows warm up, and nine calls later it ends in the middle of one.
        if launch.graph == "sampler" and backend.launched.count("vae_decoder") == 7 + 9:
            raise KeyboardInterrupt

    backend.ran = interrupt
    result = run([setup]).result
    assert not result.complete
    assert "interrupted" in result.notes[0]
    assert Counter(len(row.latencies_s) for row in result.rows) == {1: 5, 2: 2}
    assert all(row.speedup is not None for row in result.rows)
    # Quality is of the one round that all rows have.
    assert {row.quality.similarity.images for row in result.rows if row.quality} == {1}
    assert [answer.use for answer in result.answers] == [None]
    assert result.targets[0].peak_host_bytes is None


def test_ctrl_c_before_anything(setup: Setup, backend: FakeBackend) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    backend.ran = interrupt
    with pytest.raises(KeyboardInterrupt):
        run([setup])


def test_without_onnx_columns_are_empty(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "find_spec", lambda name: None)
    result = run([setup]).result
    assert NO_ONNX in result.notes
    assert all(row.macs is row.expected_speedup is row.efficiency is None for row in result.rows)
    assert result.targets[0].attribution is None


def test_default_gates() -> None:
    assert parse_gate_steps(None, 25) == (5, 10, 15)
    assert parse_gate_steps(None, 2) == (1,)
    assert parse_gate_steps("10, 5", 25) == (5, 10)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not a whole number"), ("5,x", "'x' is not"), ("5,,7", "'' is not"),
        ("0", "0 is not 1 to 24"), ("25", "25 is not 1 to 24"), ("5,5", "5 is there twice"),
        ("1.5", "'1.5' is not"), ("-3", "-3 is not 1 to 24"),
    ],
)  # fmt: skip
def test_nonsense_gates(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        parse_gate_steps(text, 25)


def test_rows_carry_any_parameters_of_a_run() -> None:
    row = gated_row(25, 5, cache_blend=1.0, guidance_carry=0.5)
    assert row.label == "gate 5 of 25, blend 1, carry 0.5"
    assert row.parameters == {"gate_step": 5, "cache_blend": 1.0, "guidance_carry": 0.5}
    assert row.call() == {
        "num_inference_steps": 25, "sp_interval": 1, "fi_interval": 1, "warm_up": 0,
        **row.parameters,
    }  # fmt: skip


def test_pictures_are_bytes(setup: Setup) -> None:
    comparison = run([setup])
    images = comparison.measurement.variants[0].readings[0].images
    assert (images.dtype, images.shape) == (np.uint8, (1, 16, 16, 3))
