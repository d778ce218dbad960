"""A tiled autoencoder in plain PyTorch, whose tiles diffusers itself blends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


@torch.no_grad()
def blended_tiles(
    vae: Any,
    planes: torch.Tensor,
    run: Callable[[torch.Tensor], torch.Tensor],
    tops: Sequence[int],
    lefts: Sequence[int],
    tile: tuple[int, int],
    made: int,
    *,
    read: int = 1,
) -> torch.Tensor:
    """Return what becomes of planes [B, C, h, w] tile by tile, as `AutoencoderKL.tiled_decode`.

    Other than there all tiles are of one size, so that the last ones overlap by more.

    Args:
        vae: an `AutoencoderKL`, which blends.
        planes: latents, or pixels in [-1, 1].
        run: decodes or encodes a tile.
        tops: first rows of tiles, in latents.
        lefts: first columns.
        tile: height and width of a tile, in latents.
        made: rows of the result for one latent.
        read: rows of the planes for one latent.
    """
    height, width = tile
    rows = [
        [
            run(
                planes[
                    :, :,
                    top * read : (top + height) * read,
                    left * read : (left + width) * read,
                ]
            )
            for left in lefts
        ]
        for top in tops
    ]  # fmt: skip
    results = []
    for i, row in enumerate(rows):
        line = []
        for j, part in enumerate(row):
            if i:
                overlap = (tops[i - 1] + height - tops[i]) * made
                part = vae.blend_v(rows[i - 1][j], part, overlap)
            if j:
                overlap = (lefts[j - 1] + width - lefts[j]) * made
                part = vae.blend_h(row[j - 1], part, overlap)
            down = ((tops[i + 1] - tops[i]) if i + 1 < len(tops) else height) * made
            across = ((lefts[j + 1] - lefts[j]) if j + 1 < len(lefts) else width) * made
            line.append(part[:, :, :down, :across])
        results.append(torch.cat(line, dim=3))
    return torch.cat(results, dim=2)
