"""The bundle of a tiny pipeline whose VAE takes tiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.once import made_once
from tgate_export.build.build import build_bundle
from tgate_export.bundle.manifest import Range

# Of 19 x 14 latents: the last column of tiles is moved, and the last row is not.
WIDTH, HEIGHT, TILE = 38, 28, 16
TOPS, LEFTS, SIDES = (0, 6), (0, 6, 11), (8, 8)


def tiled_bundle(factory: pytest.TempPathFactory, pipeline: Path) -> Path:
    """Build the tiny Stable Diffusion of a folder, once; not to be changed."""
    sides = Range(min=WIDTH, opt=WIDTH, max=WIDTH), Range(min=HEIGHT, opt=HEIGHT, max=HEIGHT)
    with tiny.only_samplers("ddim", "euler"):
        return made_once(
            factory, "bundles/tiled",
            lambda out: build_bundle(
                str(pipeline), size=sides, image_to_image=True, vae_tile=TILE, out=out
            ),
        )  # fmt: skip
