"""A tiny SDXL refiner."""

from __future__ import annotations

from typing import Any

from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

from tgate_export.families.stable_diffusion_xl.tiny import (
    WIDTHS,
    small_sdxl_unet,
    small_second_clip,
)
from tgate_export.families.tiny import (
    TinyPipeline,
    clip_tokenizer,
    randomized,
    scheduler_config,
    small_vae,
)


def _refiner() -> Any:
    """One text encoder, and the latents of the tiny SDXL."""
    return StableDiffusionXLImg2ImgPipeline(
        vae=randomized(small_vae(scaling_factor=0.13025, force_upcast=True)),
        text_encoder=None,
        text_encoder_2=small_second_clip(),
        tokenizer=None,
        tokenizer_2=clip_tokenizer(pad_token="!"),
        unet=small_sdxl_unet(2, WIDTHS[1], time_ids=5),
        scheduler=EulerDiscreteScheduler.from_config(scheduler_config("sdxl")),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


PIPELINES = (TinyPipeline("sdxl-refiner", "SDXL refiner", _refiner, refiner=True),)
