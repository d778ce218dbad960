"""The batcher's numbers as Prometheus metrics of the server."""

from __future__ import annotations

from typing import Any

from tgate_export.runtime.batching.metrics import FAMILIES, Labels, samples
from tgate_export.runtime.batching.stats import BatcherStats


class Metrics:
    """Registers the families, and brings their values up to date."""

    def __init__(self, pb_utils: Any, model: str, instance: str) -> None:
        self._common = {"model": model, "instance": instance}
        self._families = {
            name: pb_utils.MetricFamily(
                name=name, description=text, kind=getattr(pb_utils.MetricFamily, kind)
            )
            for name, (kind, text) in FAMILIES.items()
        }
        self._metrics: dict[tuple[str, Labels], Any] = {}

    def renew(self, stats: BatcherStats) -> None:
        """Set every metric."""
        for name, labels, value in samples(stats):
            metric = self._metrics.get((name, labels))
            if metric is None:
                metric = self._families[name].Metric(labels={**self._common, **dict(labels)})
                self._metrics[name, labels] = metric
            if FAMILIES[name][0] == "COUNTER":
                metric.increment(value - metric.value())
            else:
                metric.set(value)

    def close(self) -> None:
        """Take them away; families must outlive their metrics."""
        self._metrics.clear()
        self._families.clear()
