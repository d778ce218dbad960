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


@pytest.mark.parametrize(
    ("gated", "expected"), [([1.0, 1.0, 50.0], 2), ([0.01] * 3, 1), ([9.0] * 3, 4)]
)
def test_equal_time_goes_by_medians(gated: list[float], expected: int) -> None:
    # One full step and three gated, of which each takes half as long: 2.5 plain steps.
    run = timings(full=[2.0], gated=gated)
    assert equal_time_steps(4, [run], {"full": 4}, {"full": 1, "gated": 3}) == expected


def test_equal_time_on_a_machine_with_slow_moments() -> None:
    # A step takes half as long in any run, but the middle one was ten times as slow throughout.
    runs = [timings(full=[2.0 * k] * 5, gated=[1.0 * k] * 15) for k in (1, 10, 1)]
    runs.append(timings(full=[40.0] * 20))  # which lacks a phase, and does not count
    assert equal_time_steps(20, runs, {"full": 20}, {"full": 5, "gated": 15}) == 12
    # PNDM evaluates once more whatever the number of steps: 13.5 evaluations of 21, less one.
    assert equal_time_steps(20, runs, {"full": 21}, {"full": 6, "gated": 15}) == 13
    # Heun evaluates twice a step but for the last: 24.5 evaluations of 39 are 12 steps.
    assert equal_time_steps(20, runs, {"full": 39}, {"full": 10, "gated": 29}) == 12


def test_latencies_are_of_each_runs_own_steps() -> None:
    # The second run is on a machine that is twice as slow; a stray slow step counts in neither.
    runs = [
        timings(0.5, full=[2.0, 2.0, 2.0], gated=[1.0, 1.0, 9.0]),
        timings(1.0, full=[4.0, 40.0, 4.0], gated=[2.0, 2.0, 2.0]),
    ]
    assert latencies_by_steps(runs, {"full": 6}) == pytest.approx([12.5, 25.0])
    assert latencies_by_steps(runs, {"full": 2, "gated": 4}) == pytest.approx([8.5, 17.0])
