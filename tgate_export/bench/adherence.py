"""Does a picture show what its caption says? An independent checker for the `shapes` world.

It sees pixels only: it names the two colours by the nearest palette entry, cuts the shape out,
brings it to a standard position and size, and names it by the best overlap with drawn templates.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tgate_export.data.shapes_world import (
    COLOURS,
    PALETTE,
    SHAPES,
    Scene,
    all_scenes,
    coverage,
)

MIN_AREA = 0.01
"""Least share of the picture that something must cover to count as a shape."""
MIN_OVERLAP = 0.75
"""Least intersection over union with a template: below it the picture shows no known shape.

The templates overlap each other by 0.59 (cross, triangle) to 0.83 (circle, square); drawn
shapes, blurred and noisy, stay above 0.85.
"""
_GRID = 48
_REACH = 2.0
"""Half the side of the normalised window, in root-mean-square radii of the shape."""


@dataclass(frozen=True)
class Found:
    """What a picture shows; `shape` and `colour` are None where nothing was recognised.

    `overlap` is the intersection over union with the best template, 0..1.
    """

    shape: str | None
    colour: str | None
    background: str
    overlap: float = 0.0


@dataclass(frozen=True)
class Adherence:
    """Shares of pictures, 0..1, that show what their captions say: in all, and by field."""

    overall: float
    shape: float
    colour: float
    background: float


def check(image: NDArray[np.uint8]) -> Found:
    """Name what a picture `[height, width, 3]` (sRGB, 0..255) shows."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"expected uint8 [height, width, 3], found {image.dtype} {list(image.shape)}"
        )
    names = _nearest_colours(image)
    border = max(1, round(0.04 * min(image.shape[:2])))
    inside = np.zeros(names.shape, dtype=bool)
    inside[border:-border, border:-border] = True
    background = _most_common(names[~inside])
    others = names[names != background]
    if others.size < MIN_AREA * names.size:
        return Found(None, None, COLOURS[background])
    colour = _most_common(others)
    mask = _cut_out(image, COLOURS[colour], COLOURS[background])
    if mask.mean() < MIN_AREA:
        return Found(None, COLOURS[colour], COLOURS[background])
    normalised = _normalise(mask)
    overlaps = [_overlap(normalised, template) for template in _templates()]
    best = int(np.argmax(overlaps))
    shape = SHAPES[best] if overlaps[best] >= MIN_OVERLAP else None
    return Found(shape, COLOURS[colour], COLOURS[background], overlaps[best])


def breakdown(images: Iterable[NDArray[np.uint8]], captions: Sequence[str]) -> Adherence:
    """Compare pictures with their captions, field by field.

    Raises:
        ValueError: a caption is not of this world, or there are not as many as pictures.
    """
    found = [check(image) for image in images]
    if len(found) != len(captions) or not found:
        raise ValueError(f"expected one caption a picture, found {len(captions)} for {len(found)}")
    hits = np.array([_compare(*pair) for pair in zip(found, map(_parse, captions), strict=True)])
    shape, colour, background = (float(share) for share in hits.mean(axis=0))
    return Adherence(float(hits.all(axis=1).mean()), shape, colour, background)


def adherence(images: Iterable[NDArray[np.uint8]], captions: Sequence[str]) -> float:
    """Share of pictures, 0..1, whose shape and both colours are what the caption says."""
    return breakdown(images, captions).overall


def _compare(found: Found, wanted: Scene) -> tuple[bool, bool, bool]:
    return (
        found.shape == wanted.shape,
        found.colour == wanted.colour,
        found.background == wanted.background,
    )


@cache
def _scenes_by_caption() -> dict[str, Scene]:
    return {scene.caption: scene for scene in all_scenes()}


def _parse(caption: str) -> Scene:
    try:
        return _scenes_by_caption()[caption]
    except KeyError:
        raise ValueError(
            f'expected "a COLOUR SHAPE on a COLOUR background", found {caption!r}; '
            f"shapes: {', '.join(SHAPES)}; colours: {', '.join(COLOURS)}"
        ) from None


def _nearest_colours(image: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Index in `COLOURS` of each pixel's nearest palette entry, `[height, width]`."""
    palette = np.asarray(list(PALETTE.values()), dtype=np.float32)
    distances = ((image[:, :, None, :].astype(np.float32) - palette) ** 2).sum(axis=-1)
    nearest: NDArray[np.intp] = distances.argmin(axis=-1)
    return nearest


def _most_common(names: NDArray[np.intp]) -> int:
    return int(np.bincount(names, minlength=len(COLOURS)).argmax())


def _cut_out(image: NDArray[np.uint8], colour: str, background: str) -> NDArray[np.bool_]:
    """Pixels nearer to the shape's colour than to the background's, on the line between both."""
    back = np.asarray(PALETTE[background], dtype=np.float32)
    line = np.asarray(PALETTE[colour], dtype=np.float32) - back
    mask: NDArray[np.bool_] = (image.astype(np.float32) - back) @ line > 0.5 * (line @ line)
    return mask


def _normalise(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Resample to `[48, 48]` around the centroid, scaled by the root-mean-square radius."""
    y, x = np.nonzero(mask)
    cy, cx = y.mean(), x.mean()
    radius = np.sqrt(((y - cy) ** 2 + (x - cx) ** 2).mean())
    steps = (np.arange(_GRID) + 0.5) / _GRID * 2.0 - 1.0
    rows, columns = cy + _REACH * radius * steps, cx + _REACH * radius * steps
    half = _interpolate(mask.astype(np.float32), rows)
    return _interpolate(half.T, columns).T


def _interpolate(values: NDArray[np.float32], at: NDArray[np.float64]) -> NDArray[np.float32]:
    """Linear interpolation along the first axis; zero outside."""
    padded = np.pad(values, ((1, 1), (0, 0)))
    at = np.clip(at + 1.0, 0.0, len(padded) - 1.001)
    low = at.astype(np.intp)
    weight = (at - low).astype(np.float32)[:, None]
    return padded[low] * (1.0 - weight) + padded[low + 1] * weight


@cache
def _templates() -> tuple[NDArray[np.float32], ...]:
    """The normalised shapes, in the order of `SHAPES`."""
    scenes = [Scene(shape, "black", "white", size=24.0) for shape in SHAPES]
    return tuple(_normalise(coverage(scene, image_size=256) > 0.5) for scene in scenes)


def _overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Intersection over union of soft masks, 0..1."""
    return float(np.minimum(one, other).sum() / np.maximum(one, other).sum())
