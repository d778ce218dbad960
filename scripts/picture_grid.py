"""Lay out pictures in rows and columns with labels; used by the scripts that make figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, LABEL, LINE = 128, 290, 21


def picture_grid(
    columns: Sequence[Sequence[str]], rows: Sequence[tuple[str, Sequence[np.ndarray]]]
) -> Image.Image:
    """Draw one row of pictures under each other row.

    Args:
        columns: a title and the smaller lines below it.
        rows: a label, and for every column a picture [H, W, 3] in [0, 1].
    """
    step = CELL + 8
    header = 18 + LINE * max(map(len, columns))
    canvas = Image.new("RGB", (LABEL + step * len(columns), header + step * len(rows)), "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(15)
    for column, lines in enumerate(columns):
        for line, text in enumerate(lines):
            at = (LABEL + column * step + 2, 10 + line * LINE)
            pen.text(at, text, "gray" if line else "black", font)
    for row, (label, images) in enumerate(rows):
        pen.text((8, header + row * step + CELL // 2 - 18), label, "black", font)
        for column, image in enumerate(images):
            tile = Image.fromarray((image * 255).round().astype(np.uint8))
            tile = tile.resize((CELL, CELL), Image.Resampling.LANCZOS)
            canvas.paste(tile, (LABEL + column * step, header + row * step))
    return canvas
