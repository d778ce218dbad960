"""How much each layer's cross-attention output changes from a step to the next.

This is figure 2 of the T-GATE paper (arXiv 2404.02747), read from the cache outputs of the `full`
graph. The cache is the mean of both guidance halves, so that is what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tgate_export.bench.result import Curve
from tgate_export.bundle.manifest_graphs import Cache
from tgate_export.runtime.step_info import StepInfo


def cross_caches(caches: Mapping[str, Cache]) -> dict[str, Cache]:
    """Return the caches of cross-attention; bundles may hold others, too."""
    return {name: cache for name, cache in caches.items() if cache.kind == "cross_cache"}


class ConvergenceRecorder:
    """Collects changes from ungated runs: pass `record` as the callback of each."""

    def __init__(self, caches: Mapping[str, Cache]) -> None:
        self._caches = cross_caches(caches)
        self._last: dict[str, np.ndarray] = {}
        self._runs: list[list[np.ndarray]] = []  # [run][step] -> [layers, batch]

    def record(self, info: StepInfo) -> None:
        """Compare the caches after a step with those after the last."""
        if info.step == 0:
            self._last.clear()
            self._runs.append([])
        changes = []
        for name in self._caches:
            current = info.tensor(name)
            if info.step:
                changes.append(relative_change(self._last[name], current))
            self._last[name] = current
        if info.step:
            self._runs[-1].append(np.concatenate(changes))

    def curves(self) -> list[Curve]:
        """Return the mean over all pictures of complete runs, one curve a layer."""
        longest = max(map(len, self._runs), default=0)
        complete = [np.stack(run) for run in self._runs if run and len(run) == longest]
        if not complete:
            return []
        means = np.concatenate(complete, axis=2).mean(axis=2)  # [steps, layers]
        layers = [layer for cache in self._caches.values() for layer in cache.layers]
        return [
            Curve(layer=layer, change=[float(value) for value in column])
            for layer, column in zip(layers, means.T, strict=True)
        ]


def relative_change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return |after - before| / |after| in L2 norm of caches [B, L, S, C], as [L, B]."""
    before, after = before.astype(np.float64), after.astype(np.float64)
    norm = np.sqrt((after**2).sum(axis=(2, 3)))
    change = np.sqrt(((after - before) ** 2).sum(axis=(2, 3)))
    found: np.ndarray = (change / np.where(norm > 0, norm, 1)).T
    return found
