"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from tgate_export.runtime.batching.metrics import FAMILIES, samples
from tgate_export.serve.pool import ModelPool

_LABELS = {
    "tgate_requests_total": ("outcome",),
    "tgate_calls_total": ("stage", "batch"),
    "tgate_images_total": ("stage",),
    "tgate_call_seconds_total": ("stage",),
}
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The numbers of all models, and those of HTTP."""

    def __init__(self, pool: ModelPool) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Models(pool))
        self.responses = Counter(
            "tgate_http_responses", "Responses, by route and status", ("route", "status"),
            registry=self._registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "tgate_http_seconds", "Seconds from a request to the end of its response, by route",
            ("route",), buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip

    async def show(self, request: Request) -> Response:
        """Answer Prometheus."""
        del request
        return Response(
            generate_latest(self._registry), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


class _Models(Collector):
    """Reads every loaded model's batcher when it is asked."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """Yield the families of metrics."""
        kinds = {"GAUGE": GaugeMetricFamily, "COUNTER": CounterMetricFamily}
        loaded = GaugeMetricFamily("tgate_loaded", "Whether a model is loaded", labels=("model",))
        families = {
            name: kinds[kind](name, text, labels=("model", *_LABELS.get(name, ())))
            for name, (kind, text) in FAMILIES.items()
        }
        for model in self._pool.models.values():
            batcher = model.batcher
            loaded.add_metric((model.name,), batcher is not None)
            if batcher is None:
                continue
            for name, labels, value in samples(batcher.stats()):
                families[name].add_metric((model.name, *(text for _, text in labels)), value)
        yield loaded
        yield from families.values()
