"""The page of `probe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tgate_export.bench.report.charts import convergence, frontiers
from tgate_export.bench.report.page import chooser, render
from tgate_export.bench.result import ProbeResult
from tgate_export.bench.tables import facts, probe_tables

SHOWN = 4
"""Prompts whose pictures are shown."""


def probe_page(result: ProbeResult, pictures: Mapping[str, Sequence[np.ndarray]]) -> str:
    """Return the report as one HTML file that loads nothing.

    Args:
        result: what was found.
        pictures: by id of the row, 8 bits.
    """
    settings = result.settings
    use = result.answer.use
    found = chooser(result.bundle, settings.prompts[:SHOWN], result.rows, pictures, use)
    return render(
        "base.html.j2",
        title=f"Probe: {result.bundle}",
        result=result,
        answers=[result.answer],
        gate_command=result.gate_command if result.gate_command != result.answer.command else None,
        created=result.created,
        summary=f"What keeps the quality: {result.bound.text}.",
        method=f"{settings.num_inference_steps} steps, {settings.scheduler}, guidance "
        f"{settings.guidance_scale:g}, {settings.backend}; {len(settings.prompts)} prompts, "
        f"seed {settings.seed}, calls of {settings.batch}.",
        complete=result.complete,
        frontiers=frontiers(result.rows, [use], [""] * len(result.rows)),
        choosers=[found] if found else [],
        charts=[convergence(result)],
        tables=probe_tables(result),
        used=[row.label for row in result.rows if row.id == use],
        notes=[],
        machine=facts(result.machine),
    )
