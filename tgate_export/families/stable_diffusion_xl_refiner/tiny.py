"""A tiny SDXL refiner."""

from __future__ import annotations

from typing import Any

from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline
from transformers import CLIPTextModelWithProjection

from tgate_export.families.tiny import (
    TinyPipeline,
    clip_tokenizer,
    randomized,
    scheduler_config,
    small_clip,
    small_unet,
    small_vae,
)

WIDTH, POOLED = 48, 24  # of the text encoder's outputs


def _refiner() -> Any:
    """One text encoder, and the latents of the tiny SDXL."""
    return StableDiffusionXLImg2ImgPipeline(
        vae=randomized(small_vae(scaling_factor=0.13025, force_upcast=True)),
        text_encoder=None,
        text_encoder_2=randomized(
            small_clip(CLIPTextModelWithProjection, WIDTH, projection_dim=POOLED, eos_token_id=2)
        ),
        tokenizer=None,
        tokenizer_2=clip_tokenizer(pad_token="!"),
        unet=randomized(
            small_unet(
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=(2, 4),
                transformer_layers_per_block=2,
                use_linear_projection=True,
                cross_attention_dim=WIDTH,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=5 * 8 + POOLED,
            )
        ),
        scheduler=EulerDiscreteScheduler.from_config(scheduler_config("sdxl")),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


PIPELINES = (TinyPipeline("sdxl-refiner", "SDXL refiner", _refiner, refiner=True),)
