"""The charts of the reports: quality against time, convergence, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from markupsafe import Markup

from tgate_export.bench.report.labels import place_labels
from tgate_export.bench.report.svg import FONT_SIZE, Axes, axes, chart
from tgate_export.bench.result import BenchRow, Interval, ProbeResult, Quality, Row
from tgate_export.bench.rows import unofficial
from tgate_export.bench.statistics import mean_difference, share_interval
from tgate_export.bench.tables import milliseconds, short_name

COLOURS = 7
"""Classes `c0` to `c6` of the style sheet."""
Metric = Literal["adherence", "ssim"]


@dataclass(frozen=True)
class Point:
    """One row in a frontier: time in ms, quality, their intervals, and where it belongs."""

    label: str
    title: str
    curve: str
    plain: bool
    chosen: bool
    ms: Interval
    quality: Interval


def frontiers(
    rows: Sequence[Row], chosen: Sequence[str | None], prefixes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return quality against time for each metric, with a legend.

    Args:
        rows: of all targets.
        chosen: ids of the rows that are recommended.
        prefixes: of each row's curve: the target where there are several.
    """
    metrics: dict[Metric, str] = {
        "adherence": "Adherence, % of pictures that show the prompt",
        "ssim": "SSIM to the pictures of all steps",
    }
    found = []
    for metric, name in metrics.items():
        points = [
            _point(row, metric, prefix, row.id in chosen, rows)
            for row, prefix in zip(rows, prefixes, strict=True)
            if _value(row.quality, metric) is not None
        ]
        if not points:
            continue
        pictures = next(row.quality.similarity.images for row in rows if row.quality)
        found.append(
            {
                "title": "Quality against time: " + {"adherence": "adherence"}.get(metric, "SSIM"),
                "chart": _frontier(metric, name, points),
                "legend": _legend(points),
                "note": f"Each point: {pictures} picture{'s' * (pictures != 1)}. "
                "Thin bars: 95 % intervals. Ring: what to use. Up and left is better.",
            }
        )
    return found


def _frontier(metric: Metric, name: str, points: Sequence[Point]) -> Markup:
    curves = list(dict.fromkeys(point.curve for point in points))
    unit = 100 if metric == "adherence" else 1
    x_range = _padded([point.ms.value for point in points], 0.08)
    low, high = _padded([unit * point.quality.value for point in points], 0.15)

    def plot(width: float, height: float) -> Axes:
        found = axes(width, height, x_range, (low, high), ("time, ms", name), "{:g}".format)
        for index, curve in enumerate(curves):
            members = sorted(
                (point for point in points if point.curve == curve), key=lambda p: p.ms.value
            )
            line = [(point.ms.value, unit * point.quality.value) for point in members]
            found.line(line, f"curve s{index % COLOURS}")
        for point in points:
            _bars(found, point, unit, f"bar s{curves.index(point.curve) % COLOURS}")
        for point in points:
            x, y = point.ms.value, unit * point.quality.value
            classes = f"f{curves.index(point.curve) % COLOURS}"
            found.marker(x, y, classes, point.plain, point.title)
            if point.chosen:
                found.ring(x, y)
        _labels(found, points, unit)
        return found

    return chart(f"frontier-{metric}", f"{name}, against time", 340, plot)


def _labels(found: Axes, points: Sequence[Point], unit: float) -> None:
    # What is recommended has its label in any case.
    order = sorted(points, key=lambda point: not point.chosen)
    places = [(found.x(point.ms.value), found.y(unit * point.quality.value)) for point in order]
    around = replace(found.box, right=found.box.right + 8)  # the edge of the chart
    placed = place_labels(
        places, [point.label for point in order], around, font_size=FONT_SIZE, radius=8
    )
    for point, place, label in zip(order, places, placed, strict=True):
        if label is None:
            continue
        box = label.box
        middle = (box.top + box.bottom) / 2
        centre = (box.left + box.right) / 2
        if label.far:
            end = (min(max(place[0], box.left), box.right), min(max(place[1], box.top), box.bottom))
            found.segment(place, end, "leader")
        found.text(
            centre, middle, point.label, "middle", "label chosen" if point.chosen else "label"
        )


def _bars(found: Axes, point: Point, unit: float, classes: str) -> None:
    x, y = point.ms, point.quality
    if x.low is not None and x.high is not None:
        at = found.y(unit * y.value)
        found.segment((found.x.clipped(x.low), at), (found.x.clipped(x.high), at), classes)
    if y.low is not None and y.high is not None:
        across = found.x(x.value)
        low, high = found.y.clipped(unit * y.low), found.y.clipped(unit * y.high)
        found.segment((across, low), (across, high), classes)


def _point(row: Row, metric: Metric, prefix: str, chosen: bool, rows: Sequence[Row]) -> Point:
    quality = _value(row.quality, metric)
    if quality is None:
        raise ValueError(f"{row.id} was not judged by {metric}")
    plain = not row.parameters
    words = unofficial(row.parameters)
    curve = prefix + ("no gate" if plain else "gated" + f", {words}" * bool(words))
    return Point(
        label=short_name(row).partition(",")[0],  # the curve says the rest
        title=f"{prefix}{row.label}: {milliseconds(row.latency.p50)} ms",
        curve=curve, plain=plain, chosen=chosen, ms=_time(row), quality=quality,
    )  # fmt: skip


def _time(row: Row) -> Interval:
    """Median ms, and the interval of the speed-up as times: of the baseline's median."""
    value, ratio = 1e3 * row.latency.p50, row.speedup
    if ratio is None or not ratio.low or not ratio.high:
        return Interval(value=value, low=None, high=None)
    base = value * ratio.value
    return Interval(value=value, low=base / ratio.high, high=base / ratio.low)


def _value(quality: Quality | None, metric: Metric) -> Interval | None:
    if quality is None:
        return None
    if metric == "ssim":
        ssims = quality.similarity.ssims
        return mean_difference(ssims, [0.0] * len(ssims))
    return share_interval(quality.adherence.each) if quality.adherence else None


def _legend(points: Sequence[Point]) -> list[dict[str, Any]]:
    shapes = {point.curve: point.plain for point in points}
    return [
        {"name": curve, "colour": index % COLOURS, "square": plain}
        for index, (curve, plain) in enumerate(shapes.items())
    ]


def _padded(values: Sequence[float], part: float) -> tuple[float, float]:
    """Return the range of values with some air, also where all are the same."""
    low, high = min(values), max(values)
    air = part * (high - low) or 0.05 * abs(high) or 1.0
    return low - air, high + air


def convergence(result: ProbeResult) -> dict[str, Any]:
    """Return the relative change of every layer's cross-attention output, and their mean."""
    highest = max((value for curve in result.curves for value in curve.change), default=1.0)
    last = max(2, len(result.mean_change))
    gate = (result.suggested or {}).get("gate_step")
    name = "Relative change of cross-attention since the last step"

    def plot(width: float, height: float) -> Axes:
        found = axes(
            width, height, (1, last), (0, 1.05 * highest or 1.0), ("step", name), "{:g}".format
        )
        for curve in result.curves:
            found.line(list(enumerate(curve.change, 1)), "curve thin s4")
        found.line(list(enumerate(result.mean_change, 1)), "curve thick s0")
        if gate:
            at = found.x.clipped(gate)
            found.segment((at, found.box.top), (at, found.box.bottom), "gate")
        return found

    legend = [{"name": "mean", "colour": 0}, {"name": "each layer", "colour": 4}]
    note = f"Dotted: the suggested gate, step {gate}." if gate else ""
    return {
        "title": "Where cross-attention converges",
        "chart": chart("convergence", name, 300, plot),
        "legend": [entry | {"square": True} for entry in legend],
        "note": note,
    }


def stage_bars(
    rows: Sequence[BenchRow], namer: Callable[[BenchRow], str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return median ms of every phase's steps and of every other stage by row, and a legend."""
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
    # Steps first: they lie side by side, and are most of it.
    names = dict.fromkeys(part for entry in parts for part in entry)
    order = sorted(names, key=lambda part: not part.endswith(" steps"))
    longest = max((sum(max(0.0, v) for v in entry.values()) for entry in parts), default=0) or 1.0
    bars = [
        {
            "name": namer(row),
            "total": f"{milliseconds(row.latency.p50)} ms",
            "parts": [
                {
                    "colour": order.index(part) % COLOURS,
                    "share": 100 * max(0.0, entry[part]) / longest,
                    "text": f"{part}: {milliseconds(entry[part])} ms",
                }
                for part in order
                if part in entry
            ],
        }
        for row, entry in zip(rows, parts, strict=True)
    ]
    legend = [
        {"name": part, "colour": index % COLOURS, "square": True}
        for index, part in enumerate(order)
    ]
    return bars, legend
