"""Denoiser inputs that the host computes from what a call says (see `manifest.HostInput`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tgate_export.bundle.manifest import HostInput


@dataclass(frozen=True)
class MicroConditioning:
    """What a model is told of an image's size, in pixels: (height, width), and (top, left)."""

    size: tuple[int, int]
    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def of(cls, height: int, width: int) -> MicroConditioning:
        """An image that was never scaled or cropped."""
        size = (height, width)
        return cls(size, original=size, crop=(0, 0), target=size)


@dataclass(frozen=True)
class Motion:
    """What a video model is told of its video, with the defaults of diffusers.

    Attributes:
        fps: frames a second.
        motion_bucket_id: how much moves; about 0 to 255.
        noise_aug_strength: standard deviation of the noise that is added to the image, which is in
            [-1, 1] then: more of it gives more motion, and less likeness.
        min_guidance_scale: guidance scale of the first frame; it rises to that of the last.
    """

    fps: int = 7
    motion_bucket_id: int = 127
    noise_aug_strength: float = 0.02
    min_guidance_scale: float = 1.0


def host_input(
    kind: HostInput, batch: int, told: MicroConditioning, motion: Motion | None = None
) -> np.ndarray:
    """Return [B, n] f32.

    SDXL's `time_ids` (arXiv 2307.01952, section 2.2) are the original size, the top left corner
    of the crop and the target size; PixArt-alpha's (arXiv 2310.00426) are the size and its ratio.
    Stable Video Diffusion (arXiv 2311.15127) was trained with one frame a second less.
    """
    motion = motion or Motion()
    height, width = told.size
    values = {
        "time_ids": (*told.original, *told.crop, *told.target),
        "resolution": (height, width),
        "aspect_ratio": (height / width,),
        "video_ids": (motion.fps - 1, motion.motion_bucket_id, motion.noise_aug_strength),
    }[kind]
    return np.tile(np.array(values, dtype=np.float32), (batch, 1))
