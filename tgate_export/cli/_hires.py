"""Options of a second, larger pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from tgate_export.parameters import UPSCALERS

HIRES_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--hires",
        metavar="SCALE|WxH",
        help="Make the picture in --size first, and then so many times as large, or in that size, "
        "beginning with the small one enlarged. For a bundle with a dynamic size. Beside --from, 1 "
        "leaves it out.",
    ),
    click.option(
        "--hires-strength",
        type=float,
        help="Of --hires: how much is generated anew, as --strength. Default: 0.7.",
    ),
    click.option(
        "--hires-steps", type=int, help="Of --hires: steps of the second pass. Default: --steps."
    ),
    click.option(
        "--hires-upscaler",
        type=click.Choice(tuple(UPSCALERS)),
        help="Of --hires: how the small picture is enlarged, as latents (the first is bilinear) or "
        "in pixels (lanczos), for a bundle built with --image-to-image. Default: latent.",
    ),
)
