"""The batcher's numbers under the names that every server shows them by."""

from __future__ import annotations

from collections.abc import Iterator

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
