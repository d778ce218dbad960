"""Percentiles, and confidence intervals of ratios, means and shares.

Knows nothing of what was measured.
"""

from __future__ import annotations

import math
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
    one, two = _paired(baseline, other)
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


def mean_difference(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Return the mean of `one - other`, entry by entry, with Student's t interval.

    Raises:
        ValueError: not the same number of entries, or none.
    """
    from scipy.stats import t

    differences = np.subtract(*_paired(one, other))
    mean, count = float(differences.mean()), differences.size
    if count == 1:
        return Interval(value=mean, low=None, high=None)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    reach = error * float(t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return Interval(value=mean, low=mean - reach, high=mean + reach)


def share_difference(one: Sequence[bool], other: Sequence[bool]) -> Interval:
    """Return the share of `one` less that of `other`, paired entry by entry.

    The interval is exact where the number of entries that differ is given: each of them is in
    favour of one side or the other, a binomial share (Clopper-Pearson), as in McNemar's exact test.

    Raises:
        ValueError: not the same number of entries, or none.
    """
    from scipy.stats import binomtest

    differences = np.subtract(*_paired(one, other))
    count, differing = differences.size, int(np.count_nonzero(differences))
    if count == 1 or not differing:
        edge = None if count == 1 else 0.0
        return Interval(value=float(differences.mean()), low=edge, high=edge)
    test = binomtest(int((differences > 0).sum()), differing)
    low, high = test.proportion_ci(confidence_level=CONFIDENCE, method="exact")
    part = differing / count
    return Interval(
        value=float(differences.mean()), low=part * (2 * low - 1), high=part * (2 * high - 1)
    )


def share_interval(hits: Sequence[bool]) -> Interval:
    """Return the share of hits with its exact interval (Clopper-Pearson)."""
    from scipy.stats import binomtest

    found = binomtest(sum(hits), len(hits)).proportion_ci(CONFIDENCE, method="exact")
    return Interval(value=sum(hits) / len(hits), low=float(found.low), high=float(found.high))


def upper_bound(hits: int, count: int) -> float:
    """One-sided 95 % upper confidence bound of a share (Clopper-Pearson)."""
    from scipy.stats import binomtest

    test = binomtest(hits, count, alternative="less")
    return float(test.proportion_ci(confidence_level=CONFIDENCE, method="exact").high)


def _paired(one: Sequence[float], other: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.asarray(values, dtype=np.float64) for values in (one, other))
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(f"expected as many entries of both, found {first.shape}, {second.shape}")
    return first, second
