"""From readings to rows: medians, ratios, similarity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tgate_export.bench.bound import judge
from tgate_export.bench.measure import Measurement, Variant
from tgate_export.bench.result import BenchRow, Interval, Macs, Quality, Quantiles
from tgate_export.bench.statistics import quantiles, speedup
from tgate_export.bench.step_times import evaluations_of
from tgate_export.bench.work import expected_speedup
from tgate_export.runtime.timings import Timings


def summarise(measurement: Measurement, macs: dict[int, Macs]) -> list[BenchRow]:
    """Return a row for each variant that was read at least once.

    Args:
        measurement: complete or interrupted.
        macs: by index of the variant; empty where they cannot be counted.
    """
    variants = measurement.variants
    bases = {s.target: i for i, s in enumerate(variants) if s.spec.kind == "baseline"}
    first = next(iter(bases.values()), 0)
    rows = []
    for index, variant in enumerate(variants):
        if not variant.readings:
            continue
        base = bases[variant.target]
        plain = variants[base]
        ratio = _speedup(plain, variant, measurement.plan.seed)
        expected = expected_speedup(macs[base], macs[index]) if macs else None
        timings = [reading.timings for reading in variant.readings.values()]
        latency = quantiles([timing.total for timing in timings])
        rows.append(
            BenchRow(
                id=f"{variant.target}/{variant.spec.label}",
                target=variant.target,
                kind=variant.spec.kind,
                label=variant.spec.label,
                num_inference_steps=variant.spec.num_inference_steps,
                parameters=dict(variant.spec.parameters),
                evaluations=evaluations_of(timings[0]),
                latencies_s=[timing.total for timing in timings],
                latency=latency,
                phases=phase_quantiles(timings),
                stages=stage_quantiles(timings),
                images_per_second=measurement.plan.batch / latency.p50,
                speedup=ratio,
                speedup_over_first=_speedup(variants[first], variant, measurement.plan.seed),
                macs=macs.get(index),
                expected_speedup=expected,
                efficiency=ratio.value / expected.all_stages if ratio and expected else None,
                quality=_quality(measurement, plain, variant),
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
        sampler = sum(step.sampler for step in timing.steps)
        parts = {
            "text_encoder": timing.text_encoder,
            "denoiser": sum(step.denoiser for step in timing.steps),
            "sampler": sampler,
            "vae_decoder": timing.vae_decoder,
            "host": timing.outside_engines - sampler,
        }
        for stage, seconds in parts.items():
            stages.setdefault(stage, []).append(seconds)
    return {stage: quantiles(values) for stage, values in stages.items()}


def _shared_rounds(one: Variant, other: Variant) -> list[int]:
    return sorted(one.readings.keys() & other.readings.keys())


def _speedup(plain: Variant, variant: Variant, seed: int) -> Interval | None:
    if plain is variant:
        return Interval(value=1.0, low=None, high=None)
    rounds = _shared_rounds(plain, variant)
    if not rounds:
        return None
    readings = [[s.readings[r].timings.total for r in rounds] for s in (plain, variant)]
    return speedup(*readings, seed=seed)


def _quality(measurement: Measurement, plain: Variant, variant: Variant) -> Quality | None:
    """Judge the pictures for adherence where there are any, else those of the rounds.

    Every row of a target is judged by the same pictures: of rounds that all of them have.
    """
    setup = measurement.setups[variant.target]
    if setup.judging:
        if len(variant.judged) < len(setup.judging):
            return None
        return judge(plain.judged, variant.judged, setup.judging, setup.bound)
    rows = [other for other in measurement.variants if other.target == variant.target]
    rounds = sorted(set.intersection(*(set(row.readings) for row in rows)))
    if not rounds:
        return None
    references, images = (
        list(np.concatenate([row.readings[number].images for number in rounds]))
        for row in (plain, variant)
    )
    return judge(references, images, (), setup.bound)
