"""Where the labels of points go, so that none lies on another, on a point, or outside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CHARACTER = 0.62
"""Width of a character in font sizes: no less than what the fonts of a page need on average."""
HEIGHT = 1.3
"""Height of a line in font sizes."""
_DISTANCES = (0, 8, 16, 26, 38, 52, 70, 90, 115)
# Degrees, 0 is right: above and below first, as curves are flatter than steep.
_DIRECTIONS = (90, 270, 45, 315, 135, 225, 0, 180)


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Tell whether the insides share a point."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def holds(self, other: Box) -> bool:
        """Tell whether the other lies inside."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


@dataclass(frozen=True)
class Label:
    """A placed text: its box, and whether it is so far off that a line has to lead to it."""

    box: Box
    far: bool


def place_labels(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    inside: Box,
    *,
    font_size: float,
    radius: float,
) -> list[Label | None]:
    """Return a place for each text beside its point, in pixels; None where there is no room.

    Args:
        points: (x, y) of the markers.
        texts: as many; an earlier one chooses first.
        inside: what labels may not leave.
        font_size: of the texts, pixels.
        radius: of the markers, with some air.
    """
    markers = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    taken: list[Box] = []
    placed: list[Label | None] = []
    for (x, y), text in zip(points, texts, strict=True):
        label = None
        for box, far in _candidates(x, y, text, font_size, radius):
            free = not any(box.meets(other) for other in [*markers, *taken])
            if free and inside.holds(box):
                label = Label(box, far)
                taken.append(box)
                break
        placed.append(label)
    return placed


def _candidates(
    x: float, y: float, text: str, font_size: float, radius: float
) -> list[tuple[Box, bool]]:
    half_width, half_height = CHARACTER * font_size * len(text) / 2, HEIGHT * font_size / 2
    found = []
    for distance in _DISTANCES:
        for degrees in _DIRECTIONS:
            across, up = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            centre_x = x + across * (radius + distance) + half_width * _sign(across)
            centre_y = y - up * (radius + distance) - half_height * _sign(up)
            box = Box(
                centre_x - half_width, centre_y - half_height,
                centre_x + half_width, centre_y + half_height,
            )  # fmt: skip
            found.append((box, distance > 8))
    return found


def _sign(value: float) -> float:
    return 0.0 if abs(value) < 1e-9 else math.copysign(1.0, value)
