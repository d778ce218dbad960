"""Denoiser inputs that the host computes from image sizes (see `manifest.HostInput`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tgate_export.bundle.manifest import HostInput


@dataclass(frozen=True)
class ImageSize:
    """What a model is told of an image's size, in pixels: (height, width), and (top, left)."""

    size: tuple[int, int]
    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def of(cls, height: int, width: int) -> ImageSize:
        """An image that was never scaled or cropped."""
        size = (height, width)
        return cls(size, original=size, crop=(0, 0), target=size)


def host_input(kind: HostInput, batch: int, told: ImageSize) -> np.ndarray:
    """Return [B, n] f32.

    SDXL's `time_ids` (arXiv 2307.01952, section 2.2) are the original size, the top left corner
    of the crop and the target size; PixArt-alpha's (arXiv 2310.00426) are the size and its ratio.
    """
    height, width = told.size
    values = {
        "time_ids": (*told.original, *told.crop, *told.target),
        "resolution": (height, width),
        "aspect_ratio": (height / width,),
    }[kind]
    return np.tile(np.array(values, dtype=np.float32), (batch, 1))
