"""Metrics follow the batcher's numbers, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from tgate_export.embed.triton.metrics import Metrics
from tgate_export.runtime.batching.metrics import FAMILIES
from tgate_export.runtime.batching.stats import BatcherStats, StageStats


class FakeMetric:
    def __init__(self) -> None:
        self.number = 0.0

    def value(self) -> float:
        return self.number

    def set(self, value: float) -> None:
        self.number = value

    def increment(self, by: float) -> None:
        assert by >= 0, "a counter never falls"
        self.number += by


class FakeUtils:
    """The part of `triton_python_backend_utils` that is used."""

    def __init__(self) -> None:
        self.found: dict[str, FakeMetric] = {}
        utils = self

        class MetricFamily:
            COUNTER, GAUGE = "counter", "gauge"

            def __init__(self, name: str, description: str, kind: str) -> None:
                assert kind == ("counter" if name.endswith("_total") else "gauge")
                assert description
                self.name = name

            def Metric(self, labels: dict[str, str]) -> FakeMetric:  # noqa: N802 - Triton's
                text = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
                return utils.found.setdefault(f"{self.name}{{{text}}}", FakeMetric())

        self.MetricFamily: Any = MetricFamily


def test_values_and_labels() -> None:
    utils = FakeUtils()
    metrics = Metrics(utils, "m", "m_0")
    common = "instance=m_0,model=m"
    stages: Any = {"full": StageStats({1: 2, 4: 1}, 0.5, 0.75), "gated": StageStats({2: 9}, 1, 2)}
    metrics.renew(BatcherStats(3, 5, {"done": 2}, stages))
    stages["full"] = StageStats({1: 2, 4: 3}, 1.0, 1.5)
    metrics.renew(BatcherStats(0, 1, {"done": 4, "late": 1}, stages))
    found = {name: metric.number for name, metric in utils.found.items()}
    assert found == {
        f"tgate_queue_length{{{common}}}": 0,
        f"tgate_in_flight{{{common}}}": 1,
        f"tgate_gated_fraction{{{common}}}": pytest.approx(18 / (18 + 14)),
        f"tgate_requests_total{{{common},outcome=done}}": 4,
        f"tgate_requests_total{{{common},outcome=late}}": 1,
        f"tgate_calls_total{{batch=1,{common},stage=full}}": 2,
        f"tgate_calls_total{{batch=4,{common},stage=full}}": 3,
        f"tgate_calls_total{{batch=2,{common},stage=gated}}": 9,
        f"tgate_images_total{{{common},stage=full}}": 14,
        f"tgate_images_total{{{common},stage=gated}}": 18,
        f"tgate_call_seconds_total{{{common},stage=full}}": 1.5,
        f"tgate_call_seconds_total{{{common},stage=gated}}": 2,
    }
    assert {name.partition("{")[0] for name in found} == FAMILIES.keys()
