"""From readings to rows: medians, ratios, similarity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tgate_export.bench.adherence import adherence
from tgate_export.bench.measure import Contestant, Measurement, Subject
from tgate_export.bench.result import Adherence, Interval, Macs, Quantiles, Row, Similarity
from tgate_export.bench.similarity import similarity
from tgate_export.bench.statistics import quantiles, speedup
from tgate_export.bench.work import promise
from tgate_export.runtime.timings import Timings


def summarise(measurement: Measurement, macs: dict[int, Macs]) -> list[Row]:
    """Return a row for each subject that was read at least once.

    Args:
        measurement: complete or interrupted.
        macs: by index of the subject; empty where they cannot be counted.
    """
    subjects = measurement.subjects
    bases = {s.target: i for i, s in enumerate(subjects) if s.spec.kind == "baseline"}
    first = next(iter(bases.values()), 0)
    rows = []
    for index, subject in enumerate(subjects):
        if not subject.readings:
            continue
        base = bases[subject.target]
        plain = subjects[base]
        ratio = _speedup(plain, subject, measurement.plan.seed)
        promised = promise(macs[base], macs[index]) if macs else None
        timings = [reading.timings for reading in subject.readings.values()]
        latency = quantiles([timing.total for timing in timings])
        rows.append(
            Row(
                id=f"{subject.target}/{subject.spec.label}",
                target=subject.target,
                kind=subject.spec.kind,
                label=subject.spec.label,
                num_inference_steps=subject.spec.num_inference_steps,
                gate_step=subject.spec.gate_step,
                **subject.spec.intervals,
                evaluations=dict(Counter(step.phase for step in timings[0].steps)),
                latencies_s=[timing.total for timing in timings],
                latency=latency,
                phases=phase_quantiles(timings),
                stages=stage_quantiles(timings),
                images_per_second=measurement.plan.batch / latency.p50,
                speedup=ratio,
                speedup_over_first=_speedup(subjects[first], subject, measurement.plan.seed),
                macs=macs.get(index),
                promised=promised,
                efficiency=ratio.value / promised.all_stages if ratio and promised else None,
                similarity=_similarity(plain, subject),
                adherence=_adherence(measurement.contestants[subject.target], subject),
            )
        )
    return rows


def phase_quantiles(timings: Sequence[Timings]) -> dict[str, Quantiles]:
    """Percentiles of one step's denoiser, by phase, over all steps of all runs."""
    seconds: dict[str, list[float]] = {}
    for timing in timings:
        for step in timing.steps:
            seconds.setdefault(step.phase, []).append(step.denoiser)
    return {phase: quantiles(values) for phase, values in seconds.items()}


def stage_quantiles(timings: Sequence[Timings]) -> dict[str, Quantiles]:
    """Percentiles of what each stage took of a call; `host` is the time outside of engines."""
    stages: dict[str, list[float]] = {}
    for timing in timings:
        solver = sum(step.solver for step in timing.steps)
        parts = {
            "text_encoder": timing.text_encoder,
            "denoiser": sum(step.denoiser for step in timing.steps),
            "solver": solver,
            "vae_decoder": timing.vae_decoder,
            "host": timing.outside_engines - solver,
        }
        for stage, seconds in parts.items():
            stages.setdefault(stage, []).append(seconds)
    return {stage: quantiles(values) for stage, values in stages.items()}


def _shared_rounds(one: Subject, other: Subject) -> list[int]:
    return sorted(one.readings.keys() & other.readings.keys())


def _speedup(plain: Subject, subject: Subject, seed: int) -> Interval | None:
    if plain is subject:
        return Interval(value=1.0, low=None, high=None)
    rounds = _shared_rounds(plain, subject)
    if not rounds:
        return None
    readings = [[s.readings[r].timings.total for r in rounds] for s in (plain, subject)]
    return speedup(*readings, seed=seed)


def _similarity(plain: Subject, subject: Subject) -> Similarity | None:
    rounds = _shared_rounds(plain, subject)
    if not rounds:
        return None
    references, images = (
        np.concatenate([s.readings[r].images for r in rounds]) for s in (plain, subject)
    )
    return similarity(list(references), list(images))


def _adherence(contestant: Contestant, subject: Subject) -> Adherence | None:
    count = len(subject.judged)
    if not count or count < len(contestant.judging):
        return None
    share = adherence(subject.judged, contestant.judging)
    return Adherence(share=share, prompts=count)
