"""What a run takes, by the time of a step of each phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from tgate_export.runtime.timings import Timings


def phase_medians(runs: Sequence[Timings]) -> dict[str, float]:
    """Return the median seconds of a step of each phase, denoiser and sampler, over all runs."""
    seconds: dict[str, list[float]] = {}
    for timings in runs:
        for step in timings.steps:
            seconds.setdefault(step.phase, []).append(step.denoiser + step.sampler)
    return {phase: median(values) for phase, values in seconds.items()}


def evaluations_of(timings: Timings) -> dict[str, int]:
    """Count the denoiser's evaluations in a run, by phase."""
    return dict(Counter(step.phase for step in timings.steps))


def latencies_by_steps(runs: Sequence[Timings], evaluations: Mapping[str, int]) -> list[float]:
    """Return what so many evaluations of each phase would have taken, by each run's own steps.

    A run that has every phase times all of them within the same moments, so that a machine that
    gets slower between two runs slows both sides of a ratio.

    Args:
        runs: each has every phase of `evaluations`.
        evaluations: of the denoiser, by phase.
    """
    found = []
    for timings in runs:
        outside = timings.total - sum(step.denoiser + step.sampler for step in timings.steps)
        seconds = phase_medians([timings])
        found.append(outside + sum(n * seconds[phase] for phase, n in evaluations.items()))
    return found


def equal_time_steps(
    steps: int, runs: Sequence[Timings], plain: Mapping[str, int], gated: Mapping[str, int]
) -> int:
    """Return how many plain steps take about as long as a gated run.

    By the median steps of each run, so that a few warm-up runs are enough, on a machine that has
    slow moments as well; everything outside the steps is the same for both.

    Args:
        steps: of the plain run; no more are returned.
        runs: those that have every phase of the other two count, at least one.
        plain: evaluations of an ungated run, by phase.
        gated: evaluations of a gated run, by phase.
    """
    shares = []
    for timings in runs:
        seconds = phase_medians([timings])
        if seconds.keys() >= plain.keys() | gated.keys():
            whole, part = (sum(n * seconds[p] for p, n in each.items()) for each in (plain, gated))
            shares.append(part / whole)
    evaluations = sum(plain.values())
    affordable = round(median(shares) * evaluations)
    if steps > 2 and evaluations == 2 * steps - 1:  # twice a step, but for the last
        return min(steps, max(1, (affordable + 1) // 2))
    extra = evaluations - steps  # of the sampler, made whatever the number of steps
    return min(steps, max(1, affordable - extra))
