"""The page of `bench`."""

from __future__ import annotations

from typing import Any

from tgate_export.bench.compare import Comparison
from tgate_export.bench.measure import Variant
from tgate_export.bench.report.charts import frontier, stage_bars
from tgate_export.bench.report.page import render, slider
from tgate_export.bench.tables import facts, interval, milliseconds, settings_line, tables

SHOWN = 4
"""Prompts whose pictures are shown of each target."""


def bench_page(comparison: Comparison) -> str:
    """Return the report as one HTML file that loads nothing."""
    result = comparison.result
    several = len(result.targets) > 1
    names = [f"{row.target}: {row.label}" if several else row.label for row in result.rows]
    sliders = [_slider(comparison, target.id) for target in result.targets]
    return render(
        "bench.html.j2",
        title="Bench: " + " and ".join(target.id for target in result.targets),
        result=result,
        created=result.created,
        summary=settings_line(result),
        complete=result.complete,
        sliders=[entry for entry in sliders if entry],
        charts=[
            ("Latency and quality", frontier(result.rows, several)),
            ("Where the time goes", stage_bars(result.rows, names)),
        ],
        tables=tables(result),
        notes=result.notes,
        machine=facts(result.machine),
    )


def _slider(comparison: Comparison, target: str) -> dict[str, Any] | None:
    """Pictures of rounds that every gate of a target has; None where there are none."""
    variants = [s for s in comparison.measurement.variants if s.target == target]
    plain = next(s for s in variants if s.spec.kind == "baseline")
    gated = {s.spec.gate_step: s for s in variants if s.spec.kind == "gated" and s.spec.gate_step}
    rounds = set(plain.readings)
    for variant in gated.values():
        rounds &= variant.readings.keys()
    shown = sorted(rounds)[:SHOWN]
    if not gated or not shown:
        return None
    setup = comparison.measurement.setups[target]
    batch = comparison.result.settings.batch

    def pictures(variant: Variant) -> list[Any]:
        return [variant.readings[number].images[0] for number in shown]

    rows = {
        row.gate_step: row
        for row in comparison.result.rows
        if row.target == target and row.kind == "gated"
    }
    lines = {}
    for gate in gated:
        row = rows[gate]
        ssim = f", SSIM {row.similarity.ssim:.3f}" if row.similarity else ""
        lines[gate] = f"{milliseconds(row.latency.p50)} ms, {interval(row.speedup)}{ssim}"
    return slider(
        target,
        [setup.prompts[number * batch % len(setup.prompts)] for number in shown],
        pictures(plain),
        {gate: pictures(variant) for gate, variant in gated.items()},
        lines,
        sorted(gated)[len(gated) // 2],
    )
