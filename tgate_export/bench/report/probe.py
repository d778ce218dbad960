"""The page of `probe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tgate_export.bench.report.charts import convergence, gate_quality
from tgate_export.bench.report.page import render, slider
from tgate_export.bench.result import ProbeResult
from tgate_export.bench.tables import facts, probe_tables

SHOWN = 4
"""Prompts whose pictures are shown."""


def probe_page(result: ProbeResult, pictures: Mapping[int, Sequence[np.ndarray]]) -> str:
    """Return the report as one HTML file that loads nothing.

    Args:
        result: what was found.
        pictures: by gate step, 8 bits; the ungated under the number of steps.
    """
    settings = result.settings
    steps = settings.num_inference_steps
    gates = {gate.gate_step: gate for gate in result.gates}
    sliders = []
    if gates:
        lines = {
            gate: f"SSIM {entry.similarity.ssim:.3f}, PSNR {entry.similarity.psnr_db:.1f} dB"
            + (f", adherence {entry.adherence.share:.1%}" if entry.adherence else "")
            for gate, entry in gates.items()
        }
        start = result.suggested_gate_step or max(gates)
        shown = {gate: pictures[gate] for gate in gates}
        prompts = settings.prompts[:SHOWN]
        sliders = [slider(result.bundle, prompts, pictures[steps], shown, lines, start)]
    return render(
        "probe.html.j2",
        title=f"Probe: {result.bundle}",
        result=result,
        created=result.created,
        summary=f"{steps} steps, {settings.scheduler}, guidance {settings.guidance_scale:g}, "
        f"{settings.backend}; {len(settings.prompts)} prompts, seed {settings.seed}.",
        complete=result.complete,
        sliders=sliders,
        charts=[
            ("Where cross-attention converges", convergence(result)),
            ("What a gate changes", gate_quality(result)),
        ],
        tables=probe_tables(result),
        notes=[],
        machine=facts(result.machine),
    )
