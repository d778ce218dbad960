"""Tiny pipelines of Stable Diffusion 1.x and 2.x, and of models distilled from them."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from transformers import CLIPTextModel

from tgate_export.families.tiny import (
    TinyPipeline,
    clip_tokenizer,
    randomized,
    scheduler_config,
    small_clip,
    small_unet,
    small_vae,
)

WIDTH = 32  # of the text encoder's output
ONE_LEVEL = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH,
}


def _sd15() -> Any:
    """Cross-attention at two levels."""
    return _pipeline(
        small_unet(
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            attention_head_dim=4,  # diffusers' name for the number of heads: 8 and 16 channels each
            cross_attention_dim=WIDTH,
        ),
        small_vae(),
        small_clip(CLIPTextModel, WIDTH, num_hidden_layers=2),
        PNDMScheduler.from_config(scheduler_config("sd15")),
    )


def _sd21() -> Any:
    """V prediction, linear projections, attention upcast."""
    return _pipeline(
        small_unet(
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            upcast_attention=True,
            **ONE_LEVEL,
        ),
        small_vae(),
        small_clip(CLIPTextModel, WIDTH, hidden_act="gelu"),
        DDIMScheduler.from_config(scheduler_config("sd21")),
        pad_token="!",
    )


def _lcm() -> Any:
    """The UNet takes the guidance scale as an embedding."""
    return _pipeline(
        small_unet(attention_head_dim=4, time_cond_proj_dim=17, **ONE_LEVEL),
        small_vae(),
        small_clip(CLIPTextModel, WIDTH),
        DDIMScheduler.from_config(scheduler_config("sd21"), prediction_type="epsilon"),
    )


def _pipeline(unet: Any, vae: Any, text_encoder: Any, scheduler: Any, **special: str) -> Any:
    randomized(unet, vae, text_encoder)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=clip_tokenizer(**special),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


PIPELINES = (
    TinyPipeline("sd15", "Stable Diffusion 1.x", _sd15),
    TinyPipeline("sd21", "Stable Diffusion 2.x", _sd21),
    TinyPipeline("lcm", "Latent consistency (embedded guidance)", _lcm, guidance="embedded"),
    TinyPipeline("turbo", "Turbo (no guidance)", _sd15, guidance="none"),
)
