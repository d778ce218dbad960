"""The batcher's numbers as Prometheus metrics of the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tgate_export.runtime.batching.stats import BatcherStats

# name -> (kind, help); labels beside `model` and `instance` are in the help.
FAMILIES = {
    "tgate_queue_length": ("GAUGE", "Images accepted that have not begun"),
    "tgate_in_flight": ("GAUGE", "Images begun that are not done"),
    "tgate_gated_fraction": ("GAUGE", "Part of all denoiser evaluations that were gated"),
    "tgate_requests_total": ("COUNTER", "Requests that ended, by outcome"),
    "tgate_calls_total": ("COUNTER", "Engine calls, by stage and batch"),
    "tgate_images_total": ("COUNTER", "Images in engine calls, by stage"),
    "tgate_call_seconds_total": ("COUNTER", "Seconds of engine calls, by stage"),
}
Labels = tuple[tuple[str, str], ...]


def samples(stats: BatcherStats) -> Iterator[tuple[str, Labels, float]]:
    """Return every metric's labels and value."""
    yield "tgate_queue_length", (), stats.waiting
    yield "tgate_in_flight", (), stats.in_flight
    yield "tgate_gated_fraction", (), stats.gated_fraction
    for outcome, count in stats.outcomes.items():
        yield "tgate_requests_total", (("outcome", outcome),), count
    for stage, found in stats.stages.items():
        yield "tgate_images_total", (("stage", stage),), found.images
        yield "tgate_call_seconds_total", (("stage", stage),), found.seconds
        for batch, calls in found.batches.items():
            yield "tgate_calls_total", (("stage", stage), ("batch", str(batch))), calls


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
