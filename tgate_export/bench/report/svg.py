"""Axes and marks as inline SVG. Colours and fonts are the page's, by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from tgate_export.bench.report.labels import Box

FONT_SIZE = 12.0
WIDTHS = {"wide": 576.0, "narrow": 358.0}
"""Of a chart, pixels, by the class of the page that shows it: text is never scaled to fit."""
_RADIUS = 5.0


@dataclass(frozen=True)
class Scale:
    """Data to pixels, linear."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def clipped(self, value: float) -> float:
        """Return the pixel of a value, or of the nearest end."""
        return self(min(max(value, self.low), self.high))

    def ticks(self, count: int) -> list[float]:
        """Return about so many round numbers between the ends."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [step * index for index in range(first, last + 1)]


@dataclass
class Axes:
    """A plot with both axes, to which marks are added.

    Attributes:
        x: scale across.
        y: scale upwards.
        box: the plot's area.
        parts: elements, in order.
    """

    x: Scale
    y: Scale
    box: Box
    parts: list[Markup] = field(default_factory=list)

    def line(self, points: Sequence[tuple[float, float]], classes: str) -> None:
        """Connect points in data units."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.parts.append(Markup('<polyline points="{}" class="{}"/>').format(path, classes))

    def segment(self, start: tuple[float, float], end: tuple[float, float], classes: str) -> None:
        """Connect two points in pixels."""
        self.parts.append(
            Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
                *start, *end, classes
            )
        )

    def marker(self, x: float, y: float, classes: str, square: bool, title: str) -> None:
        """Mark a point in data units: a disc, or a square."""
        at_x, at_y = self.x(x), self.y(y)
        shape = (
            Markup('<rect x="{:.1f}" y="{:.1f}" width="{}" height="{}" class="{}">').format(
                at_x - _RADIUS + 0.5, at_y - _RADIUS + 0.5, 9, 9, classes
            )
            if square
            else Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}" class="{}">').format(
                at_x, at_y, _RADIUS, classes
            )
        )
        end = "</rect>" if square else "</circle>"
        self.parts.append(shape + Markup("<title>{}</title>").format(title) + Markup(end))

    def ring(self, x: float, y: float) -> None:
        """Set a point in data units apart."""
        self.parts.append(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="10" class="ring"/>').format(
                self.x(x), self.y(y)
            )
        )

    def text(self, x: float, y: float, content: str, anchor: str, classes: str = "") -> None:
        """Write in pixels; `y` is the middle of the line."""
        self.parts.append(
            Markup('<text x="{:.1f}" y="{:.1f}" dy=".35em" text-anchor="{}" class="{}">{}</text>')
            .format(x, y, anchor, classes, content)
        )  # fmt: skip


def axes(
    width: float,
    height: float,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    names: tuple[str, str],
    y_format: Callable[[float], str],
) -> Axes:
    """Return a plot with ticks, grid and names of both axes.

    Args:
        width: pixels.
        height: pixels.
        x_range: data at the left and right end.
        y_range: data at the lower and upper end.
        names: of the axes.
        y_format: writes a tick of the y axis.
    """
    box = Box(46.0, 30.0, width - 8.0, height - 44.0)
    x = Scale(*x_range, box.left, box.right)
    y = Scale(*y_range, box.bottom, box.top)
    found = Axes(x, y, box)
    for tick in y.ticks(5):
        found.segment((box.left, y(tick)), (box.right, y(tick)), "grid")
        found.text(box.left - 7, y(tick), y_format(tick), "end", "tick")
    for tick in x.ticks(max(3, round(width / 90))):
        found.segment((x(tick), box.bottom), (x(tick), box.bottom + 4), "axis")
        found.text(x(tick), box.bottom + 14, f"{tick:g}", "middle", "tick")
    found.segment((box.left, box.bottom), (box.right, box.bottom), "axis")
    found.text(0, 10, names[1], "start", "name")
    found.text(box.right, height - 9, names[0], "end", "name")
    return found


def chart(name: str, title: str, height: float, plot: Callable[[float, float], Axes]) -> Markup:
    """Return a chart once for each width; a style sheet shows one of them.

    Args:
        name: of the ids, unique in the page.
        title: read aloud.
        height: pixels.
        plot: adds all marks, given a width and a height.
    """
    found = Markup("")
    for kind, width in WIDTHS.items():
        inner = Markup("").join(plot(width, height).parts)
        found += Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0:g} {1:g}" role="img" '
            'class="{2}" aria-labelledby="{3}-{2}"><title id="{3}-{2}">{4}</title>{5}</svg>'
        ).format(width, height, kind, name, escape(title), inner)
    return found
