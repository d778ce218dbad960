"""What a run made, in the form that its caller asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.runtime.request import Request


def as_asked(manifest: Manifest, request: Request, results: np.ndarray) -> list[Any] | np.ndarray:
    """Return a request's results in its output type.

    Args:
        manifest: the bundle's.
        request: see `Request.output_type`.
        results: images [B, H, W, 3] in [0, 1], of videos [B, F, H, W, 3]; for "latent" the samples
            [B, C, h, w], whose channels are of all frames.
    """
    if request.output_type == "latent":
        return results.reshape(manifest.latents.unfolded(results.shape))
    return to_pil(results) if request.output_type == "pil" else results


def to_pil(images: np.ndarray) -> list[Any]:
    """Convert images [B, H, W, 3] in [0, 1] to 8-bit PIL images, rounding as diffusers does.

    Videos [B, F, H, W, 3] become lists of them.
    """
    from PIL import Image

    if images.ndim == 5:
        return [to_pil(video) for video in images]
    return [Image.fromarray(image) for image in (images * 255).round().astype(np.uint8)]
