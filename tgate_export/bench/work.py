"""What a row has to do and to hold: MACs, weights, caches. Counted from the bundle."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache

import numpy as np

from tgate_export.bench.macs import Macs as GraphMacs
from tgate_export.bench.macs import graph_macs
from tgate_export.bench.result import Attribution, ExpectedSpeedup, Macs
from tgate_export.bench.rows import RowSpec, run_step_plan
from tgate_export.bundle.integrity import Bundle
from tgate_export.runtime.pipeline import TGatePipeline
from tgate_export.runtime.plan import BatchPlan


class WorkCounter:
    """Counts MACs of one bundle's rows; every graph is read once."""

    def __init__(self, pipeline: TGatePipeline, batch: int, scheduler: str | None) -> None:
        self._pipeline = pipeline
        self._scheduler = scheduler
        self._batch = min(batch, pipeline.manifest.batch.max)
        self._graph = lru_cache(self._count)

    def row(self, row: RowSpec) -> Macs:
        """Count a row's run, of one image.

        Raises:
            ImportError: the `onnx` package is not installed.
        """
        manifest = self._pipeline.manifest
        phases = run_step_plan(self._pipeline, row, self._scheduler).phases
        prompts = 2 if manifest.takes_negative else 1
        once = [*[manifest.prompt_encoder] * prompts, "vae_decoder"]
        steps = self._sum(list(phases))
        total = steps + self._sum([*["sampler"] * len(phases), *once])
        return Macs(
            total=total.total // self._batch,
            papers=total.layers // self._batch,
            denoiser_total=steps.total // self._batch,
            denoiser_papers=steps.layers // self._batch,
        )

    def attribution(self) -> Attribution | None:
        """Tell what a `gated` step gains by the cache from what it gains without guidance.

        None for a bundle that lacks one of the graphs.
        """
        manifest = self._pipeline.manifest
        if not {"full", "gated"} <= manifest.graphs.keys():
            return None
        full, gated = (self._graph(graph).total / self._batch for graph in ("full", "gated"))
        passes = 2 if manifest.guidance == "classifier-free" else 1
        return attribution(full, passes * gated, gated)

    def _sum(self, graphs: list[str]) -> GraphMacs:
        total = GraphMacs(0, 0)
        for graph, times in Counter(graphs).items():
            total += self._graph(graph) * times
        return total

    def _count(self, graph: str) -> GraphMacs:
        return graph_macs(self._pipeline.bundle, graph, batch=self._batch)


def attribution(full: float, gated_twice: float, gated: float) -> Attribution:
    """Tell guidance from the cache; `gated_twice` evaluates as many samples as `full`."""
    guidance = gated_twice / gated
    return Attribution(
        full=full, without_guidance=full / guidance, gated=gated, guidance=guidance,
        cache=full / gated_twice,
    )  # fmt: skip


def expected_speedup(baseline: Macs, row: Macs) -> ExpectedSpeedup:
    """Return a row's speed-up over the baseline expected by MACs: ratios of `total`."""
    return ExpectedSpeedup(
        all_stages=baseline.total / row.total,
        denoiser=baseline.denoiser_total / row.denoiser_total,
    )


def weights_bytes(bundle: Bundle) -> int:
    """Return the bytes of all weight files; one that graphs share counts once."""
    manifest = bundle.manifest
    files = {graph.weights for graph in manifest.graphs.values() if graph.weights}
    return sum(manifest.files[file].bytes for file in files)


def cache_bytes(bundle: Bundle, plan: BatchPlan) -> int:
    """Return the bytes of the cache tensors of a run."""
    specs = [plan.buffers[name] for name in bundle.manifest.caches]
    return sum(np.dtype(spec.dtype).itemsize * math.prod(spec.shape) for spec in specs)
