"""Lay out pictures in rows and columns with labels; used by the scripts that make figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, LABEL, HEADER = 128, 290, 60


def picture_grid(
    columns: Sequence[tuple[str, str]], rows: Sequence[tuple[str, Sequence[np.ndarray]]]
) -> Image.Image:
    """Draw one row of pictures under each other row.

    Args:
        columns: a title and a smaller line below it.
        rows: a label, and for every column a picture [H, W, 3] in [0, 1].
    """
    step = CELL + 8
    canvas = Image.new("RGB", (LABEL + step * len(columns), HEADER + step * len(rows)), "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(15)
    for column, (title, subtitle) in enumerate(columns):
        pen.text((LABEL + column * step + 2, 10), title, "black", font)
        pen.text((LABEL + column * step + 2, 32), subtitle, "gray", font)
    for row, (label, images) in enumerate(rows):
        pen.text((8, HEADER + row * step + CELL // 2 - 18), label, "black", font)
        for column, image in enumerate(images):
            tile = Image.fromarray((image * 255).round().astype(np.uint8))
            tile = tile.resize((CELL, CELL), Image.Resampling.LANCZOS)
            canvas.paste(tile, (LABEL + column * step, HEADER + row * step))
    return canvas
