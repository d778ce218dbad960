"""A tiny pipeline of Stable Diffusion XL."""

from __future__ import annotations

from typing import Any

from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tgate_export.families.tiny import (
    TinyPipeline,
    clip_tokenizer,
    randomized,
    scheduler_config,
    small_clip,
    small_unet,
    small_vae,
)

WIDTHS, POOLED = (32, 48), 24  # of the text encoders' outputs


def _sdxl() -> Any:
    """Two text encoders of different widths; cross-attention at one level, two layers deep."""
    first, second = WIDTHS
    return StableDiffusionXLPipeline(
        vae=randomized(small_vae(scaling_factor=0.13025, force_upcast=True)),
        text_encoder=randomized(small_clip(CLIPTextModel, first)),
        text_encoder_2=randomized(
            small_clip(CLIPTextModelWithProjection, second, projection_dim=POOLED, eos_token_id=2)
        ),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad_token="!"),
        unet=randomized(
            small_unet(
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=(2, 4),
                transformer_layers_per_block=(1, 2),
                use_linear_projection=True,
                cross_attention_dim=sum(WIDTHS),
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + POOLED,
            )
        ),
        scheduler=EulerDiscreteScheduler.from_config(scheduler_config("sdxl")),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


PIPELINES = (TinyPipeline("sdxl", "Stable Diffusion XL", _sdxl),)
