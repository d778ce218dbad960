"""How the VAE's graphs are run on large images: tile by tile. Pure."""

from __future__ import annotations

from pydantic import Field

from tgate_export.bundle.fields import BundleModel, Positive

# The ability that a reader of bundles with tiles needs.
ABILITY = "tiles"
# Images with sides up to this many pixels are decoded whole unless a build is told otherwise, and
# larger ones in tiles of so many.
WHOLE, DEFAULT_TILE = 1024, 512


class Tiles(BundleModel):
    """How a graph of the VAE is run on images that are larger than a tile.

    Tiles begin every `size - overlap` pixels, and the last one ends where the image does. Where two
    overlap, one fades into the other, linearly from its last pixel but one to the other's first.
    """

    size: Positive = Field(description="sides of a tile in pixels; of a smaller image its own")
    overlap: Positive = Field(description="of neighbouring tiles, in pixels: at least so many")

    def count(self, height: int, width: int) -> int:
        """Return how many tiles an image has."""
        rows, columns = (starts(side, self.size, self.overlap) for side in (height, width))
        return len(rows) * len(columns)


def default_tile(height: int, width: int) -> int:
    """Return the sides of tiles for images up to a size in pixels; 0 to decode them whole."""
    return DEFAULT_TILE if max(height, width) > WHOLE else 0


def overlap_of(tile: int) -> int:
    """Return by how much tiles overlap: a quarter, as in diffusers' `tiled_decode`."""
    return tile // 4


def starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Return where tiles begin along a side; all lengths in the same unit."""
    if length <= tile:
        return (0,)
    return (*range(0, length - tile, tile - overlap), length - tile)
