"""Charts as inline SVG, by matplotlib. Text stays text, in the page's own font and colour."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from tgate_export.bench.result import ProbeResult, Row

# Okabe and Ito's palette: told apart also by people who see fewer colours.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7a7a7a")
_MARKERS = {"baseline": "*", "gated": "o", "version_2": "D", "fewer_steps": "s"}
_KINDS = {
    "baseline": "no gate", "gated": "gated", "version_2": "gated, self-attention reused",
    "fewer_steps": "fewer plain steps",
}  # fmt: skip
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def frontier(rows: Sequence[Row], several: bool) -> Markup:
    """Latency against similarity (1 - SSIM, so that the best corner is the lower left)."""

    def draw(axes: Any) -> None:
        targets = list(dict.fromkeys(row.target for row in rows))
        for row in rows:
            if row.similarity is None:
                continue
            x, y = 1e3 * row.latency.p50, row.similarity.ssim
            colour = COLOURS[targets.index(row.target) % len(COLOURS)]
            filled = colour if row.kind != "fewer_steps" else "white"
            axes.plot(x, y, _MARKERS[row.kind], color=colour, markerfacecolor=filled, markersize=9)
            if row.kind != "baseline":
                short = f"gate {row.gate_step}" if row.gate_step else f"{row.num_inference_steps}"
                axes.annotate(short, (x, y), textcoords="offset points", xytext=(7, -11), size=9)
        axes.set_xlabel("latency p50, ms")
        axes.set_ylabel("SSIM to ungated")
        axes.margins(0.12)
        for kind in dict.fromkeys(row.kind for row in rows):
            filled = "white" if kind == "fewer_steps" else "#555"
            axes.plot([], [], _MARKERS[kind], color="#555", markerfacecolor=filled,
                      label=_KINDS[kind])  # fmt: skip
        if several:
            for index, target in enumerate(targets):
                axes.plot([], [], "-", color=COLOURS[index % len(COLOURS)], label=target)
        axes.legend(loc="lower right", fontsize=9)

    return _svg("frontier", "Latency against similarity to the ungated picture", draw)


def stage_bars(rows: Sequence[Row], names: Sequence[str]) -> Markup:
    """Median seconds of every phase's steps and of every other stage, stacked by row."""
    parts: list[dict[str, float]] = []
    for row in rows:
        steps = {
            f"{phase} steps": row.evaluations[phase] * entry.p50
            for phase, entry in row.phases.items()
        }
        others = {
            stage.replace("_", " "): entry.p50
            for stage, entry in row.stages.items()
            if stage != "denoiser"
        }
        parts.append(steps | others)

    def draw(axes: Any) -> None:
        left = [0.0] * len(rows)
        order = dict.fromkeys(part for entry in parts for part in entry)
        # Steps first: they lie side by side, and are most of it.
        for index, part in enumerate(sorted(order, key=lambda part: not part.endswith(" steps"))):
            widths = [1e3 * max(0.0, entry.get(part, 0.0)) for entry in parts]
            colour = COLOURS[index % len(COLOURS)]
            axes.barh(names, widths, left=left, label=part, color=colour, height=0.65)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("ms of a call (medians)")
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=3, fontsize=9)

    height = 1.9 + 0.34 * len(rows)
    return _svg("stages", "Where the time goes, by row and stage", draw, height)


def convergence(result: ProbeResult) -> Markup:
    """Relative change of every layer's cross-attention output, and their mean."""

    def draw(axes: Any) -> None:
        steps = range(1, len(result.mean_change) + 1)
        for index, curve in enumerate(result.curves):
            label = "each layer" if index == 0 else None
            axes.plot(steps, curve.change, color=COLOURS[4], alpha=0.6, linewidth=1, label=label)
        axes.plot(steps, result.mean_change, color=COLOURS[0], linewidth=2.4, label="mean")
        _gate_line(axes, result)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel("relative change since the last step")
        axes.legend(fontsize=9)

    return _svg("convergence", "Change of cross-attention from step to step", draw)


def gate_quality(result: ProbeResult) -> Markup:
    """SSIM, and adherence where it was judged, by gate step."""

    def draw(axes: Any) -> None:
        gates = [gate.gate_step for gate in result.gates]
        axes.plot(gates, [gate.shown.ssim for gate in result.gates], "o-", color=COLOURS[0],
                  markersize=5, label="SSIM to ungated")  # fmt: skip
        judged = [(gate.gate_step, gate.adherence.share) for gate in result.gates if gate.adherence]
        if judged:
            axes.plot(*zip(*judged, strict=True), "s--", color=COLOURS[5], markersize=5,
                      label="adherence")  # fmt: skip
        _gate_line(axes, result)
        axes.set_ylim(top=1.02)
        axes.set_xlabel("gate step")
        axes.legend(loc="lower right", fontsize=9)

    return _svg("quality", "Similarity and adherence by gate step", draw)


def _gate_line(axes: Any, result: ProbeResult) -> None:
    if result.suggested_gate_step:
        axes.axvline(
            result.suggested_gate_step, color="#555", linestyle=":", label="suggested gate"
        )


def _svg(name: str, title: str, draw: Any, height: float = 3.6) -> Markup:
    """Draw on new axes, and return an `<svg>` that scales with the page and has a title."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(6.4, height), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        nothing: Mapping[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    # A document has each id once; every chart of matplotlib's has a `figure_1`.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', _root(name, title), text, count=1)
    return Markup(text)


def _root(name: str, title: str) -> str:
    return (
        rf'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        rf'\1 role="img" aria-labelledby="{name}-title"><title id="{name}-title">'
        rf"{escape(title)}</title>"
    )
