"""Convergence curves of caches with known values; the search for a gate against trying them all."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.bench import SECONDS, Clock, FakeBackend, FakeMemory, fake_pipeline
from tgate_export.bench.bound import choose_bound
from tgate_export.bench.convergence import relative_change
from tgate_export.bench.probe import Probe, chart_gates
from tgate_export.bench.rows import BETTER, OFFICIAL, RowSpec, baseline, gated
from tgate_export.bench.similarity import ssim
from tgate_export.data.shapes_world import Scene, render
from tgate_export.runtime.plan import Launch


def test_curves_of_known_caches(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer `l` of the cache `k` is 1 + (l + 1) / 2^step everywhere."""
    steps = 5
    backend = FakeBackend(Clock())

    def fill(launch: Launch, memory: FakeMemory) -> None:
        step = (backend.launched.count("full") - 1) % steps
        for name in launch.outputs:
            if name.startswith("cross_cache"):
                cache = memory.values[name]  # [B, L, S, C]
                for layer in range(cache.shape[1]):
                    cache[:, layer] = 1 + (layer + 1) / 2**step

    backend.ran = fill
    pipeline = fake_pipeline(tiny_bundle, monkeypatch, backend)
    probe = Probe(pipeline, ("a", "b"), steps, "ddim", 0, lambda *_: None)
    result = probe.run()
    modules = [layer for cache in pipeline.manifest.caches.values() for layer in cache.layers]
    assert [curve.layer for curve in result.curves] == modules
    places = [
        index for cache in pipeline.manifest.caches.values() for index in range(len(cache.layers))
    ]
    for curve, layer in zip(result.curves, places, strict=True):
        values = [1 + (layer + 1) / 2**step for step in range(steps)]
        expected = [abs(b - a) / b for a, b in pairwise(values)]
        assert curve.change == pytest.approx(expected)
    assert len(result.mean_change) == steps - 1


def test_relative_change_is_of_each_picture_and_layer() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
    found = relative_change(before, after)
    assert found.shape == (4, 3)
    for picture in range(3):
        for layer in range(4):
            one, two = before[picture, layer].ravel(), after[picture, layer].ravel()
            expected = np.linalg.norm(two - one) / np.linalg.norm(two)
            assert found[layer, picture] == pytest.approx(expected, rel=1e-5)
    assert relative_change(np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 2, 2))).tolist() == [[0.0]]


class KnownProbe(Probe):
    """Generates a scene with noise that shrinks as the gate gets later, or steps more.

    Attributes:
        plain_noise: noise of a plain step that is left out, gates' is 0.7.
        better_noise: times that, of gates that carry guidance.
        interrupt_at: label of the row that is interrupted.
    """

    plain_noise = 0.01
    better_noise = 1.0
    interrupt_at: str | None = None

    def _generate(self, spec: RowSpec, callback: Any = None) -> list[np.ndarray]:
        if spec.label == self.interrupt_at:
            raise KeyboardInterrupt
        super()._generate(spec, callback)
        return [self.scene(spec)] * len(self.prompts)

    def scene(self, spec: RowSpec) -> np.ndarray:
        """The picture of every prompt."""
        rng = np.random.default_rng(0)
        gate = spec.parameters.get("gate_step")
        missing = self.steps - (gate or spec.num_inference_steps)
        better = self.better_noise if spec.parameters.get("guidance_carry") else 1.0
        size = 0.7 * better if gate else self.plain_noise
        noise = rng.normal(size=(64, 64, 3)) * missing * size
        scene = render(Scene("circle", "red", "blue")) + noise
        return np.clip(scene, 0, 255).astype(np.uint8)


@pytest.fixture
def probe(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> KnownProbe:
    pipeline = fake_pipeline(tiny_bundle, monkeypatch, FakeBackend(Clock()))
    return KnownProbe(
        pipeline, ("x", "y"), 20, "euler", 0, lambda *_: None,
        command=lambda pipeline, prompt, scheduler, row: f"generate {row.label}",
    )  # fmt: skip


@pytest.mark.parametrize("least", [0.2, 0.7, 0.9, 0.99])
def test_earliest_gate_as_by_trying_all(probe: KnownProbe, least: float) -> None:
    probe.bound = choose_bound(probe.prompts, least)
    result = probe.run()
    ungated = probe.scene(baseline(20))
    meets = [g for g in range(1, 20) if ssim(ungated, probe.scene(gated(20, g))) >= least]
    assert 1 <= len(meets) < 20
    assert result.suggested == {"gate_step": min(meets), **OFFICIAL}
    assert result.complete
    tried = {row.parameters.get("gate_step") for row in result.rows}
    assert set(chart_gates(20)) <= tried
    assert result.gate_command == f"generate gate {min(meets)} of 20"
    assert {row.quality.similarity.images for row in result.rows if row.quality} == {2}


def test_better_numbers_are_suggested_with_their_gate(probe: KnownProbe) -> None:
    probe.bound = choose_bound(probe.prompts, 0.9)
    probe.better_noise = 0.3
    result = probe.run()
    ungated = probe.scene(baseline(20))
    official, better = (
        min(
            gate
            for gate in range(1, 20)
            if ssim(ungated, probe.scene(gated(20, gate, **setting))) >= 0.9
        )
        for setting in (OFFICIAL, BETTER)
    )
    assert better < official
    assert result.suggested == {"gate_step": better, **BETTER}
    label = f"gate {better} of 20, blend 1, carry 0.25"
    assert result.gate_command == f"generate {label}"
    assert result.answer.gate == label


def test_times_are_by_steps(probe: KnownProbe) -> None:
    probe.bound = choose_bound(probe.prompts, 0.9)
    result = probe.run()
    seconds = {row.label: row.latency.p50 for row in result.rows}
    full, gated_step = (SECONDS[phase] + SECONDS["sampler"] for phase in ("full", "gated"))
    # Of one of the two pictures that a call makes.
    whole = seconds["20 steps, no gate"]
    assert whole - seconds["gate 8 of 20"] == pytest.approx(12 * (full - gated_step) / 2)
    assert whole - seconds["gate 4 of 20"] == pytest.approx(16 * (full - gated_step) / 2)


@pytest.mark.parametrize(("noise", "used"), [(0.01, "plain steps"), (9.0, "gate")])
def test_fewer_plain_steps_in_the_gates_time(probe: KnownProbe, noise: float, used: str) -> None:
    probe.bound = choose_bound(probe.prompts, 0.9)
    probe.plain_noise = noise
    result = probe.run()
    assert result.suggested is not None
    gate = int(result.suggested["gate_step"])
    full, gated_step = (SECONDS[phase] + SECONDS["sampler"] for phase in ("full", "gated"))
    count = round(gate + (20 - gate) * gated_step / full)
    assert result.answer.fewer_steps is not None
    assert result.answer.fewer_steps.row == f"{count} plain steps"
    assert result.answer.gate == f"gate {gate} of 20"
    assert used in str(result.answer.use)
    assert result.answer.command == f"generate {result.answer.use}"


def test_no_gate_meets_an_impossible_bound(probe: KnownProbe) -> None:
    probe.bound = choose_bound(probe.prompts, 1.0)
    result = probe.run()
    assert (result.suggested, result.gate_command, result.complete) == (None, None, True)
    assert result.answer.use == "20 steps, no gate"
    assert result.answer.command == "generate 20 steps, no gate"


def test_ctrl_c_keeps_the_gates(probe: KnownProbe) -> None:
    probe.interrupt_at = "gate 8 of 20"
    probe.bound = choose_bound(probe.prompts, 0.9)
    result = probe.run()
    assert not result.complete
    assert (result.suggested, result.answer.use, result.answer.command) == (None, None, None)
    assert [row.label for row in result.rows] == [
        "20 steps, no gate", "gate 16 of 20", "gate 12 of 20",
    ]  # fmt: skip


def test_ctrl_c_before_the_first_gate_leaves_the_curves(probe: KnownProbe) -> None:
    probe.interrupt_at = "gate 16 of 20"
    result = probe.run()
    assert (result.complete, result.rows) == (False, [])
    assert len(result.mean_change) == 19


def test_chart_gates() -> None:
    assert chart_gates(25) == [2, 5, 10, 15, 20]
    assert chart_gates(2) == [1]
    assert max(chart_gates(4)) == 3
