"""Percentiles, and confidence intervals of speed-ups. Knows nothing of what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tgate_export.bench.result import Interval, Quantiles

CONFIDENCE = 0.95
RESAMPLES = 4999
METHOD = (
    "scipy.stats.bootstrap, percentile method: rounds are drawn with replacement, "
    "and the ratio of the two medians is taken in each draw"
)


def quantiles(seconds: Sequence[float]) -> Quantiles:
    """Summarise readings in seconds; percentiles are interpolated linearly between readings."""
    p50, p90, p99 = np.percentile(np.asarray(seconds, dtype=np.float64), (50, 90, 99))
    return Quantiles(p50=float(p50), p90=float(p90), p99=float(p99))


def speedup(baseline: Sequence[float], other: Sequence[float], *, seed: int = 0) -> Interval:
    """Return how many times faster `other` is than `baseline`, both in seconds.

    Args:
        baseline: one reading a round.
        other: a reading of each of the same rounds, in the same order. Rounds are resampled
            whole, so that a slow moment of the machine slows both sides of the ratio.
        seed: of the resampling.

    Returns:
        The ratio of the medians and its interval; a single round has no interval, but the ratio.

    Raises:
        ValueError: no rounds, or not the same number.
    """
    one, two = (np.asarray(values, dtype=np.float64) for values in (baseline, other))
    if one.shape != two.shape or one.ndim != 1 or not one.size:
        raise ValueError(f"expected as many readings of both, found {one.shape} and {two.shape}")
    value = float(np.median(one) / np.median(two))
    if one.size == 1:
        return Interval(value=value, low=None, high=None)
    from scipy.stats import bootstrap

    def ratio(base: np.ndarray, row: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(np.median(base, axis=axis) / np.median(row, axis=axis))

    found = bootstrap(
        (one, two), ratio, paired=True, vectorized=True, n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(value=value, low=float(found.low), high=float(found.high))
