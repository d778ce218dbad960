"""What a run takes by its steps, on runs whose steps have known times."""

from __future__ import annotations

import pytest

from tgate_export.bench.step_times import equal_time_steps, latencies_by_steps
from tgate_export.runtime.timings import StepTiming, Timings


def timings(outside: float = 0.0, **steps: list[float]) -> Timings:
    """A run; the sampler takes a tenth of each step."""
    found = tuple(
        StepTiming(phase, 0.9 * seconds, 0.1 * seconds)
        for phase, all_seconds in steps.items()
        for seconds in all_seconds
    )
    total = outside + sum(sum(all_seconds) for all_seconds in steps.values())
    return Timings(0, found, 0, total)


def test_equal_time_goes_by_medians() -> None:
    plain = timings(full=[2.0, 2.0, 2.0, 9.0])
    for gated, expected in (([1.0, 1.0, 50.0], 2), ([0.01] * 3, 1), ([9.0] * 3, 4)):
        run = timings(full=[2.0], gated=gated)
        assert equal_time_steps(4, [plain, run], plain, run) == expected


def test_latencies_are_of_each_runs_own_steps() -> None:
    # The second run is on a machine that is twice as slow; a stray slow step counts in neither.
    runs = [
        timings(0.5, full=[2.0, 2.0, 2.0], gated=[1.0, 1.0, 9.0]),
        timings(1.0, full=[4.0, 40.0, 4.0], gated=[2.0, 2.0, 2.0]),
    ]
    assert latencies_by_steps(runs, {"full": 6}) == pytest.approx([12.5, 25.0])
    assert latencies_by_steps(runs, {"full": 2, "gated": 4}) == pytest.approx([8.5, 17.0])
