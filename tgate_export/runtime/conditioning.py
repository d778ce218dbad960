"""Denoiser inputs that the host computes from image sizes (see `manifest.HostInput`)."""

from __future__ import annotations

import numpy as np

from tgate_export.bundle.manifest import HostInput


def host_input(kind: HostInput, batch: int, height: int, width: int) -> np.ndarray:
    """Return [B, n] f32 for images of `height` x `width` pixels that were never cropped.

    SDXL's `time_ids` (arXiv 2307.01952, section 2.2) are the original size, the top left corner
    of the crop and the target size; PixArt-alpha's (arXiv 2310.00426) are the size and its ratio.
    """
    values = {
        "time_ids": (height, width, 0, 0, height, width),
        "resolution": (height, width),
        "aspect_ratio": (height / width,),
    }[kind]
    return np.tile(np.array(values, dtype=np.float32), (batch, 1))
