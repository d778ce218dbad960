"""Percentiles and intervals against brute force, and against what an interval has to hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, ttest_rel

from tgate_export.bench.statistics import (
    CONFIDENCE,
    mean_difference,
    quantiles,
    share_difference,
    share_interval,
    speedup,
    upper_bound,
)


def by_hand(values: list[float], share: float) -> float:
    """Linear interpolation between the sorted readings."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("count", [1, 2, 7, 150])
def test_quantiles(count: int) -> None:
    values = np.random.default_rng(count).exponential(size=count).tolist()
    found = quantiles(values)
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        assert value == pytest.approx(by_hand(values, share))


def test_interval_against_a_loop() -> None:
    rng = np.random.default_rng(3)
    base = 2.0 + rng.exponential(0.3, size=20)
    row = base / 1.6 + rng.normal(0, 0.05, size=20)
    ratios = []
    for _ in range(4000):
        drawn = rng.integers(20, size=20)
        ratios.append(np.median(base[drawn]) / np.median(row[drawn]))
    found = speedup(base.tolist(), row.tolist())
    assert found.value == pytest.approx(np.median(base) / np.median(row))
    assert found.low == pytest.approx(np.quantile(ratios, (1 - CONFIDENCE) / 2), abs=0.02)
    assert found.high == pytest.approx(np.quantile(ratios, (1 + CONFIDENCE) / 2), abs=0.02)


def readings(rng: np.random.Generator, rounds: int = 15) -> tuple[list[float], list[float]]:
    """Both sides of a true ratio of 1.5, with slow rounds that both share and stray outliers."""
    slow = 1.0 + rng.exponential(0.5, size=rounds)
    sides = []
    for seconds in (1.5, 1.0):
        noise = rng.lognormal(0, 0.05, size=rounds) + (rng.random(rounds) < 0.1)
        sides.append((seconds * slow * noise).tolist())
    return sides[0], sides[1]


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    found = [speedup(*readings(rng)) for _ in range(200)]
    held = np.mean([entry.low <= 1.5 <= entry.high for entry in found if entry.low and entry.high])
    # 0.95 with a standard deviation of 0.015; medians of few rounds make percentiles generous.
    assert held >= 0.90


def test_two_comparisons_of_the_same_agree() -> None:
    rng = np.random.default_rng(6)
    pairs = [(speedup(*readings(rng)), speedup(*readings(rng))) for _ in range(100)]
    overlap = [
        max(one.low or 0, two.low or 0) <= min(one.high or 9, two.high or 9) for one, two in pairs
    ]
    assert np.mean(overlap) >= 0.97


def test_one_round_has_no_interval() -> None:
    found = speedup([3.0], [2.0])
    assert (found.value, found.low, found.high) == (1.5, None, None)


def test_same_seed_same_interval() -> None:
    one, two = readings(np.random.default_rng(1))
    assert speedup(one, two, seed=4) == speedup(one, two, seed=4)


@pytest.mark.parametrize(("one", "two"), [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_that_do_not_pair(one: list[float], two: list[float]) -> None:
    with pytest.raises(ValueError, match="as many entries"):
        speedup(one, two)


def test_mean_difference_is_the_paired_t_test() -> None:
    one, other = np.random.default_rng(2).normal([[0.1], [0.0]], 1.0, size=(2, 12))
    found = mean_difference(one.tolist(), other.tolist())
    expected = ttest_rel(one, other).confidence_interval(CONFIDENCE)
    assert found.value == pytest.approx(one.mean() - other.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert mean_difference([0.5], [0.25]).model_dump() == {"value": 0.25, "low": None, "high": None}


@pytest.mark.parametrize(("won", "lost", "certain"), [(0, 5, False), (0, 6, True), (3, 20, True)])
def test_share_difference_is_as_certain_as_mcnemars_exact_test(
    won: int, lost: int, certain: bool
) -> None:
    one = [True] * won + [False] * lost + [True] * 50
    other = [False] * won + [True] * lost + [True] * 50
    found = share_difference(one, other)
    assert found.value == pytest.approx((won - lost) / len(one))
    # Twice the tail of a fair coin: 2 * 0.5^5 is 6.3 %, 2 * 0.5^6 is 3.1 %.
    assert bool(2 * binom.cdf(min(won, lost), won + lost, 0.5) < 1 - CONFIDENCE) is certain
    assert found.high is not None
    assert (found.high < 0) is certain


def test_share_difference_of_equals_is_none() -> None:
    assert share_difference([True, False], [True, False]).model_dump() == {
        "value": 0.0, "low": 0.0, "high": 0.0,
    }  # fmt: skip
    assert share_difference([True], [False]).low is None


@pytest.mark.parametrize("hits", [0, 3, 128])
def test_share_interval_ends_where_so_few_or_many_are_unlikely(hits: int) -> None:
    found = share_interval([True] * hits + [False] * (128 - hits))
    tail = (1 - CONFIDENCE) / 2
    assert found.value == hits / 128
    assert binom.sf(hits - 1, 128, found.low) == pytest.approx(tail if hits else 1, abs=1e-6)
    assert binom.cdf(hits, 128, found.high) == pytest.approx(tail if hits < 128 else 1, abs=1e-6)


@pytest.mark.parametrize(("lost", "count"), [(0, 128), (1, 128), (3, 256), (5, 5)])
def test_upper_bound_is_where_so_few_are_unlikely(lost: int, count: int) -> None:
    found = upper_bound(lost, count)
    if lost == count:
        assert found == 1
    else:
        assert binom.cdf(lost, count, found) == pytest.approx(0.05, abs=1e-6)
