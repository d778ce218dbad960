"""Convergence curves of caches with known values; the search for a gate against trying them all."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from tests.support.bench import Clock, FakeBackend, FakeMemory, fake_pipeline
from tgate_export.bench.convergence import relative_change
from tgate_export.bench.probe import MIN_SSIM, Probe, chart_gates, choose_bound, judge, upper_bound
from tgate_export.bench.similarity import ssim
from tgate_export.data.shapes_world import Scene, all_captions, render
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
    """Generates a scene with noise that shrinks as the gate gets later."""

    interrupt_at: int | None = None

    def _generate(self, label: str, gate: int, prompts: Any, callback: Any = None) -> Any:
        if gate == self.interrupt_at:
            raise KeyboardInterrupt
        rng = np.random.default_rng(0)
        noise = rng.normal(size=(64, 64, 3)) * 0.7 * (self.steps - gate)
        scene = render(Scene("circle", "red", "blue")) + noise
        return [np.clip(scene, 0, 255).astype(np.uint8)] * len(prompts)


@pytest.fixture
def probe(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> KnownProbe:
    pipeline = fake_pipeline(tiny_bundle, monkeypatch, FakeBackend(Clock()))
    return KnownProbe(
        pipeline, ("x", "y"), 20, "euler", 0, lambda *_: None, command="--gate-step {}".format
    )


@pytest.mark.parametrize("least", [0.2, 0.7, 0.9, 0.99])
def test_earliest_gate_as_by_trying_all(probe: KnownProbe, least: float) -> None:
    probe.bound = choose_bound(probe.prompts, least)
    result = probe.run()
    ungated = probe._generate("", 20, ("x",))[0]
    meets = [g for g in range(1, 20) if ssim(ungated, probe._generate("", g, ("x",))[0]) >= least]
    assert 1 <= len(meets) < 20
    assert result.suggested_gate_step == min(meets)
    assert result.complete
    assert set(chart_gates(20)) <= {gate.gate_step for gate in result.gates}
    assert result.command == f"--gate-step {min(meets)}"


def test_no_gate_meets_an_impossible_bound(probe: KnownProbe) -> None:
    probe.bound = choose_bound(probe.prompts, 1.0)
    result = probe.run()
    assert (result.suggested_gate_step, result.command, result.complete) == (None, None, True)


def test_ctrl_c_keeps_the_gates(probe: KnownProbe) -> None:
    probe.interrupt_at = 15  # the bisection's second gate
    probe.bound = choose_bound(probe.prompts, 0.9)
    result = probe.run()
    assert not result.complete
    assert result.suggested_gate_step is None
    assert [gate.gate_step for gate in result.gates] == [10]


def test_adherence_counts_pictures_that_are_lost() -> None:
    captions = [Scene("circle", "red", "blue").caption] * 4
    circle, square = (render(Scene(shape, "red", "blue")) for shape in ("circle", "square"))
    bound = choose_bound(captions, None)
    assert bound.metric == "adherence"
    # One was wrong before: it is not lost, and one that comes right does not pay for another.
    found = judge(
        3, [circle, circle, circle, square], [circle, square, circle, circle], captions, bound
    )
    assert found.lost == 1
    assert found.adherence is not None
    assert found.adherence.share == 0.75
    assert found.meets_bound is False


@pytest.mark.parametrize(("lost", "count"), [(0, 128), (1, 128), (3, 256), (5, 5)])
def test_upper_bound_is_where_so_few_are_unlikely(lost: int, count: int) -> None:
    found = upper_bound(lost, count)
    if lost == count:
        assert found == 1
    else:
        assert binom.cdf(lost, count, found) == pytest.approx(0.05, abs=1e-6)


def test_bounds() -> None:
    assert choose_bound(all_captions()[:3], None).metric == "adherence"
    assert choose_bound(all_captions()[:3], 0.7).value == 0.7
    general = choose_bound((all_captions()[0], "a fox"), None)
    assert (general.metric, general.value) == ("ssim", MIN_SSIM)


def test_chart_gates() -> None:
    assert chart_gates(25) == [1, 2, 3, 5, 7, 10, 13, 17, 21]
    assert chart_gates(2) == [1]
    assert max(chart_gates(4)) == 3
