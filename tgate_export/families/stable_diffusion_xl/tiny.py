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


def small_sdxl_unet(layers: Any, width: int, *, time_ids: int) -> Any:
    """Return a random UNet of SDXL's kind: cross-attention at one level.

    Args:
        layers: of attention in a block, or in those of each level.
        width: of the text.
        time_ids: numbers that it embeds beside the pooled text.
    """
    return randomized(
        small_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            transformer_layers_per_block=layers,
            use_linear_projection=True,
            cross_attention_dim=width,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=time_ids * 8 + POOLED,
        )
    )


def small_second_clip() -> Any:
    """Return a random text encoder of those that are the second of SDXL."""
    return randomized(
        small_clip(CLIPTextModelWithProjection, WIDTHS[1], projection_dim=POOLED, eos_token_id=2)
    )


def _sdxl() -> Any:
    """Two text encoders of different widths; cross-attention at one level, two layers deep."""
    return StableDiffusionXLPipeline(
        vae=randomized(small_vae(scaling_factor=0.13025, force_upcast=True)),
        text_encoder=randomized(small_clip(CLIPTextModel, WIDTHS[0])),
        text_encoder_2=small_second_clip(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad_token="!"),
        unet=small_sdxl_unet((1, 2), sum(WIDTHS), time_ids=6),
        scheduler=EulerDiscreteScheduler.from_config(scheduler_config("sdxl")),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


PIPELINES = (TinyPipeline("sdxl", "Stable Diffusion XL", _sdxl),)
