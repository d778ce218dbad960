"""Guidance of 1 or less: the prompt's pass alone, as in diffusers.

The graphs always run both passes of classifier-free guidance. Told the prompt's conditions as the
negative ones, both are the prompt's pass, and so are the caches; the scale is 1 then.
"""

from __future__ import annotations

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.runtime.conditioning import Motion


def by_prompt_alone(manifest: Manifest, scale: float) -> bool:
    """Whether a prompt's conditions take the place of its negative ones.

    Not of a video, whose graphs have zeros there: at a scale of 1 they do not count either, except
    in the cache, which is the mean of both passes.
    """
    return manifest.takes_negative and scale <= 1


def effective_scale(manifest: Manifest, scale: float) -> float:
    """Return the scale that the graphs are given for an image."""
    return 1.0 if by_prompt_alone(manifest, scale) else scale


def frame_scales(last: np.ndarray, motion: Motion, frames: int) -> np.ndarray:
    """Return the scales of a video's frames [B, F] f32, rising from the first to the last [B] f32.

    As in diffusers, a video is not guided where none of them is above 1.
    """
    first = np.full_like(last, np.float32(motion.min_guidance_scale))
    scales = np.linspace(first, last, frames, axis=1, dtype=np.float32)
    scales[scales.max(axis=1) <= 1] = 1
    return scales
