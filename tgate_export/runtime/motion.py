"""What a call says of a video, checked before it runs."""

from __future__ import annotations

import math

from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.conditioning import Motion


def make_motion(
    manifest: Manifest,
    *,
    fps: int | None,
    motion_bucket_id: int | None,
    noise_aug_strength: float | None,
    min_guidance_scale: float | None,
) -> Motion | None:
    """Fill in what a video model is told; None for images.

    Raises:
        InvalidRequestError: names the argument and what it may be.
    """
    given = {
        "fps": fps,
        "motion_bucket_id": motion_bucket_id,
        "noise_aug_strength": noise_aug_strength,
        "min_guidance_scale": min_guidance_scale,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if manifest.latents.frames is None:
        for name, value in given.items():
            raise InvalidRequestError(
                f"{name} {value} has no effect: a {manifest.family} bundle draws no videos; "
                "leave it out"
            )
        return None
    motion = Motion(**given)  # type: ignore[arg-type]
    for name, smallest in (("fps", 1), ("motion_bucket_id", 0), ("noise_aug_strength", 0)):
        value = getattr(motion, name)
        if not (math.isfinite(value) and value >= smallest):
            raise InvalidRequestError(f"{name} must be at least {smallest}, got {value}")
    if not math.isfinite(motion.min_guidance_scale):
        raise InvalidRequestError(
            f"min_guidance_scale must be a finite number, got {motion.min_guidance_scale}"
        )
    return motion
