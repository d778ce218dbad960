"""The page of `bench`."""

from __future__ import annotations

from typing import Any

from tgate_export.bench.compare import Comparison
from tgate_export.bench.report.charts import frontiers, stage_bars
from tgate_export.bench.report.page import chooser, render
from tgate_export.bench.result import BenchRow
from tgate_export.bench.tables import facts, settings_line, tables

SHOWN = 4
"""Prompts whose pictures are shown of each target."""


def bench_page(comparison: Comparison) -> str:
    """Return the report as one HTML file that loads nothing."""
    result = comparison.result
    several = len(result.targets) > 1
    use = {answer.target: answer.use for answer in result.answers}

    def name(row: BenchRow) -> str:
        return f"{row.target}: {row.label}" if several else row.label

    bars, bars_legend = stage_bars(result.rows, name)
    choosers = [_chooser(comparison, target.id, use[target.id]) for target in result.targets]
    bounds = {target.bound.text: None for target in result.targets}
    return render(
        "bench.html.j2",
        title="Bench: " + " and ".join(target.id for target in result.targets),
        result=result,
        answers=result.answers,
        gate_command=None,
        created=result.created,
        summary=f"What keeps the quality: {'; '.join(bounds)}.",
        method=settings_line(result),
        complete=result.complete,
        frontiers=frontiers(
            result.rows,
            list(use.values()),
            [f"{row.target}: " * several for row in result.rows],
        ),
        choosers=[entry for entry in choosers if entry],
        charts=[],
        bars=bars,
        bars_legend=bars_legend,
        tables=tables(result),
        used=[name(row) for row in result.rows if row.id in use.values()],
        notes=result.notes,
        machine=facts(result.machine),
    )


def _chooser(comparison: Comparison, target: str, use: str | None) -> dict[str, Any] | None:
    """Pictures of rounds that every row of a target has; None where there are none."""
    variants = [s for s in comparison.measurement.variants if s.target == target]
    rounds = sorted(set.intersection(*(set(variant.readings) for variant in variants)))[:SHOWN]
    setup = comparison.measurement.setups[target]
    batch = comparison.result.settings.batch
    rows = [row for row in comparison.result.rows if row.target == target]
    labels = {row.label: row.id for row in rows}
    pictures = {
        labels[variant.spec.label]: [variant.readings[number].images[0] for number in rounds]
        for variant in variants
        if rounds
    }
    prompts = [setup.prompts[number * batch % len(setup.prompts)] for number in rounds]
    return chooser(target, prompts, rows, pictures, use)
