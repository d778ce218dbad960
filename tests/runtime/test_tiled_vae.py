"""Tiles of large images against diffusers' tiled autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.oracle.tiled_vae import blended_tiles
from tgate_export.bundle.manifest import Latents
from tgate_export.bundle.tiles import Tiles, default_tile, overlap_of, starts
from tgate_export.families.tiny import randomized, small_vae
from tgate_export.runtime.tiles import Tiling, decode_tiles, encode_tiles

SCALE = 2  # pixels of a side for one latent
TILE = 16  # pixels


@pytest.fixture(scope="module")
def vae() -> Any:
    torch.manual_seed(0)
    return randomized(small_vae()).eval().requires_grad_(False)


def tiling(height: int, width: int) -> Tiling:
    """Of an image whose sides are given in latents."""

    class Manifest:
        latents = Latents(channels=4, downscale=SCALE)

    tiles = Tiles(size=TILE, overlap=overlap_of(TILE))
    return Tiling.of(Manifest(), tiles, height * SCALE, width * SCALE)  # type: ignore[arg-type]


def on_tiles(run: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return lambda cuts: list(run(torch.from_numpy(np.stack(cuts))).numpy())


def decoder(vae: Any) -> Any:
    return on_tiles(lambda tile: vae.decode(tile).sample.permute(0, 2, 3, 1) / 2 + 0.5)


def encoder(vae: Any) -> Any:
    return on_tiles(lambda tile: vae.encode(2 * tile.permute(0, 3, 1, 2) - 1).latent_dist.mode())


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (5, (0,)),
        (8, (0,)),
        (9, (0, 1)),
        (14, (0, 6)),
        (15, (0, 6, 7)),
        (20, (0, 6, 12)),
        (256, (*range(0, 248, 6), 248)),
    ],
)
def test_tiles_begin_every_so_many(length: int, expected: tuple[int, ...]) -> None:
    assert starts(length, 8, 2) == expected


def test_whole_up_to_a_size() -> None:
    assert [default_tile(*size) for size in ((1024, 1024), (1032, 8), (8, 2048))] == [0, 512, 512]


def diffusers_tiles(vae: Any) -> Any:
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // SCALE
    return vae


def alike(side: int) -> int:
    """Return up to where tiles along a side are diffusers' own, in latents."""
    narrower = [at for at in range(0, side, 6) if at and at + 8 > side]
    shifted = [side - 8] if side > 8 and (side - 8) % 6 else []
    return min(*narrower, *shifted, side, side)


# Latents: sides where tiles end with the image, and where they do not; one that is one tile.
SIZES = [(14, 20), (15, 19), (9, 8), (6, 23)]


@pytest.mark.parametrize("size", SIZES)
def test_decoded_as_diffusers_does(vae: Any, size: tuple[int, int]) -> None:
    latents = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1))
    where = tiling(*size)
    found = np.stack(decode_tiles(where, latents.numpy(), decoder(vae)))
    expected = blended_tiles(
        vae, latents, lambda tile: vae.decode(tile).sample, where.tops, where.lefts,
        (where.height, where.width), SCALE,
    )  # fmt: skip
    expected = (expected / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    # diffusers itself goes on with tiles that are narrower, up to the edges; before these its are
    # the same.
    try:
        theirs = diffusers_tiles(vae).decode(latents).sample / 2 + 0.5
    finally:
        vae.disable_tiling()
    theirs = theirs.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    rows, columns = (alike(side) * SCALE for side in size)
    np.testing.assert_allclose(found[:, :rows, :columns], theirs[:, :rows, :columns], atol=1e-5)
    whole = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(whole - found).max() > 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_encoded_as_diffusers_does(vae: Any, size: tuple[int, int]) -> None:
    height, width = (side * SCALE for side in size)
    images = torch.rand(2, height, width, 3, generator=torch.Generator().manual_seed(1))
    where = tiling(*size)
    found = np.stack(encode_tiles(where, images.numpy(), encoder(vae)))
    pixels = 2 * images.permute(0, 3, 1, 2) - 1
    expected = blended_tiles(
        vae, pixels, lambda tile: vae.encode(tile).latent_dist.mode(), where.tops, where.lefts,
        (where.height, where.width), 1, read=SCALE,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
