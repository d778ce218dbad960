"""The little world of the demo pipeline: one flat shape on a flat background, and its caption.

Colours sit near the corners of the RGB cube, so that naming a colour by its nearest palette entry
leaves no doubt: the closest two are more than 130 apart in Euclidean RGB distance.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

IMAGE_SIZE = 64
"""Width and height of a picture, in pixels."""

PALETTE: dict[str, tuple[int, int, int]] = {
    "black": (24, 24, 28),
    "white": (244, 244, 240),
    "red": (226, 48, 44),
    "green": (40, 178, 72),
    "blue": (44, 72, 214),
    "yellow": (246, 222, 56),
    "cyan": (48, 208, 224),
    "magenta": (232, 64, 200),
}
COLOURS: tuple[str, ...] = tuple(PALETTE)
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")

MIN_SIZE, MAX_SIZE = 15.0, 24.0
"""Range of half the bounding box's side, in pixels."""
MARGIN = 3.0
"""Least distance between a shape's bounding box and the picture's border, in pixels."""

_SUPERSAMPLING = 4
_ARM = 0.36
"""Half the width of a cross's arm, relative to half its side."""

# Outlines in the unit box [-1, 1]^2, y pointing down.
_OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1), (1, 1), (-1, 1)),
    "cross": (
        (-_ARM, -1),
        (_ARM, -1),
        (_ARM, -_ARM),
        (1, -_ARM),
        (1, _ARM),
        (_ARM, _ARM),
        (_ARM, 1),
        (-_ARM, 1),
        (-_ARM, _ARM),
        (-1, _ARM),
        (-1, -_ARM),
        (-_ARM, -_ARM),
    ),
}


@dataclass(frozen=True)
class Scene:
    """One picture: what its caption says, and what the caption leaves free.

    `center` is (x, y) and `size` half the side of the shape's bounding box, both in pixels.
    """

    shape: str
    colour: str
    background: str
    center: tuple[float, float] = (IMAGE_SIZE / 2, IMAGE_SIZE / 2)
    size: float = 18.0

    @property
    def caption(self) -> str:
        """What the picture is called."""
        return caption(self.shape, self.colour, self.background)


def caption(shape: str, colour: str, background: str) -> str:
    """The caption of every picture with this shape and these colours."""
    return f"a {colour} {shape} on a {background} background"


def all_scenes() -> tuple[Scene, ...]:
    """One centred scene for each of the 224 captions, in a fixed order."""
    return tuple(
        Scene(shape, colour, background)
        for shape, colour, background in product(SHAPES, COLOURS, COLOURS)
        if colour != background
    )


def all_captions() -> tuple[str, ...]:
    """The 224 captions, in the order of `all_scenes`."""
    return tuple(scene.caption for scene in all_scenes())


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene drawn uniformly over shapes, pairs of different colours, sizes and positions."""
    shape = SHAPES[rng.integers(len(SHAPES))]
    colour, background = rng.choice(len(COLOURS), size=2, replace=False)
    size = float(rng.uniform(MIN_SIZE, MAX_SIZE))
    low, high = size + MARGIN, IMAGE_SIZE - size - MARGIN
    x, y = rng.uniform(low, high, size=2)
    return Scene(shape, COLOURS[colour], COLOURS[background], (float(x), float(y)), size)


def coverage(scene: Scene, image_size: int = IMAGE_SIZE) -> NDArray[np.float32]:
    """How much of each pixel the shape covers: `[image_size, image_size]` in 0..1, anti-aliased."""
    side = image_size * _SUPERSAMPLING
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    scale = side / IMAGE_SIZE
    x, y, size = scene.center[0] * scale, scene.center[1] * scale, scene.size * scale
    if scene.shape == "circle":
        draw.ellipse((x - size, y - size, x + size - 1, y + size - 1), fill=255)
    else:
        # PIL counts the end of a line in; half a sample less keeps the outline centred.
        outline = [(x + u * size - 0.5, y + v * size - 0.5) for u, v in _OUTLINES[scene.shape]]
        draw.polygon(outline, fill=255)
    return np.asarray(mask.reduce(_SUPERSAMPLING), dtype=np.float32) / 255.0


def render(scene: Scene, image_size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """The scene as a picture: `[image_size, image_size, 3]`, sRGB, 0..255."""
    alpha = coverage(scene, image_size)[..., None]
    front = np.asarray(PALETTE[scene.colour], dtype=np.float32)
    back = np.asarray(PALETTE[scene.background], dtype=np.float32)
    return np.rint(alpha * front + (1.0 - alpha) * back).astype(np.uint8)
