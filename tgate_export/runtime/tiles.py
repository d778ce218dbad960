"""Running a graph of the VAE on tiles of large images, and blending what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.tiles import Tiles, starts

Run = Callable[[list[np.ndarray]], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of one image size lie, in latents.

    Attributes:
        tops: first rows of tiles.
        lefts: first columns.
        height: of a tile.
        width: of a tile.
        downscale: pixels of a side for one latent.
    """

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    height: int
    width: int
    downscale: int

    @classmethod
    def of(cls, manifest: Manifest, tiles: Tiles, height: int, width: int) -> Tiling:
        """Place the tiles of images of some pixels."""
        scale = manifest.latents.downscale
        size, overlap = tiles.size // scale, tiles.overlap // scale
        tops, lefts = (starts(side // scale, size, overlap) for side in (height, width))
        return cls(tops, lefts, min(size, height // scale), min(size, width // scale), scale)


def decode_tiles(tiling: Tiling, latents: Iterable[np.ndarray], run: Run) -> list[np.ndarray]:
    """Return images [H, W, 3] f32 in [0, 1] of latents [C, h, w].

    Args:
        tiling: where tiles lie.
        latents: of each image.
        run: decodes a tile of each; its values may lie outside [0, 1].
    """
    planes = [np.moveaxis(each, 0, -1) for each in latents]

    def run_planes(cuts: list[np.ndarray]) -> Sequence[np.ndarray]:
        return run([np.ascontiguousarray(np.moveaxis(cut, -1, 0)) for cut in cuts])

    wholes = _blended(tiling, planes, run_planes, read=1, made=tiling.downscale)
    return [np.clip(whole, 0.0, 1.0, out=whole) for whole in wholes]


def encode_tiles(tiling: Tiling, images: Iterable[np.ndarray], run: Run) -> list[np.ndarray]:
    """Return latents [C, h, w] f32 of images [H, W, 3] f32 in [0, 1]; see `decode_tiles`."""

    def run_planes(cuts: list[np.ndarray]) -> Sequence[np.ndarray]:
        made = run([np.ascontiguousarray(cut) for cut in cuts])
        return [np.moveaxis(each, 0, -1).copy() for each in made]

    wholes = _blended(tiling, list(images), run_planes, read=tiling.downscale, made=1)
    return [np.ascontiguousarray(np.moveaxis(whole, -1, 0)) for whole in wholes]


def _blended(
    tiling: Tiling, planes: list[np.ndarray], run: Run, *, read: int, made: int
) -> list[np.ndarray]:
    """Run tiles of planes [h, w, C], row by row, and put together what becomes of them.

    Args:
        tiling: where tiles lie.
        planes: one for each image.
        run: takes a tile of each.
        read: numbers along a side of a plane for one latent.
        made: numbers along a side of the results for one latent.
    """
    canvases = [_Canvas(tiling, made) for _ in planes]
    for top in tiling.tops:
        rows = slice(top * read, (top + tiling.height) * read)
        for left in tiling.lefts:
            columns = slice(left * read, (left + tiling.width) * read)
            results = run([plane[rows, columns] for plane in planes])
            for canvas, result in zip(canvases, results, strict=True):
                canvas.add(result, top * made, left * made)
    return [canvas.whole for canvas in canvases]


class _Canvas:
    """What tiles make of one image: each fades in over those above and left of it.

    As in diffusers' `AutoencoderKL.tiled_decode`, a tile is first blended with the one above it,
    and then with the one to its left, and these are blended already.
    """

    def __init__(self, tiling: Tiling, scale: int) -> None:
        self._sides = (
            (tiling.tops[-1] + tiling.height) * scale,
            (tiling.lefts[-1] + tiling.width) * scale,
        )
        self._above: dict[int, tuple[int, np.ndarray]] = {}  # by the first column: row, tile
        self._before: tuple[int, int, np.ndarray] | None = None  # row, column, tile
        self.whole = np.zeros(0, np.float32)

    def add(self, tile: np.ndarray, top: int, left: int) -> None:
        """Put a tile [h, w, C], which is changed, in its place."""
        if not self.whole.size:
            self.whole = np.zeros((*self._sides, tile.shape[2]), np.float32)
        if left in self._above:
            row, above = self._above[left]
            _fade(above[top - row :], tile)
        if self._before is not None and self._before[0] == top:
            _, column, before = self._before
            _fade(before[:, left - column :].swapaxes(0, 1), tile.swapaxes(0, 1))
        self._above[left] = top, tile
        self._before = top, left, tile
        height, width, _ = tile.shape
        self.whole[top : top + height, left : left + width] = tile


def _fade(old: np.ndarray, new: np.ndarray) -> None:
    """Let the beginning of a tile fade in over the end of the one before it, along rows."""
    length = len(old)
    share = (np.arange(length, dtype=np.float32) / np.float32(length))[:, None, None]
    new[:length] = old * (1 - share) + new[:length] * share
