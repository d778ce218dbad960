"""Guidance of 1 or less: the prompt's pass alone, as in diffusers.

The graphs always run both passes of classifier-free guidance. Told the prompt's conditions as the
negative ones, both are the prompt's pass, and so are the caches; the scale is 1 then.
"""

from __future__ import annotations

import numpy as np

from tgate_export.bundle.manifest import Manifest


def by_prompt_alone(manifest: Manifest, scale: float) -> bool:
    """Whether a prompt's conditions take the place of its negative ones.

    Not of a video, whose graphs have zeros there: at a scale of 1 they do not count either, except
    in the cache, which is the mean of both passes.
    """
    return manifest.takes_negative and scale <= 1


def effective_scale(manifest: Manifest, scale: float) -> float:
    """Return the scale that the graphs are given for an image."""
    return 1.0 if by_prompt_alone(manifest, scale) else scale


def frame_scales(first: float, last: float, frames: int) -> np.ndarray:
    """Return the scales of a video's frames [F] f32, rising from the first to the last.

    As in diffusers, a video is not guided where none of them is above 1.
    """
    scales = np.linspace(np.float32(first), np.float32(last), frames, dtype=np.float32)
    return np.ones_like(scales) if scales.max() <= 1 else scales
