"""A tiny pipeline of Stable Video Diffusion."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from tgate_export.families.names import NAMED_MODELS
from tgate_export.families.tiny import TinyPipeline, randomized, scheduler_config

FRAMES = 3
WIDTH = 24  # of the image encoder's output


def _svd() -> Any:
    """Attention over space and time at two levels."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=224, patch_size=56, projection_dim=WIDTH,
    )  # fmt: skip
    return StableVideoDiffusionPipeline(
        vae=randomized(
            AutoencoderKLTemporalDecoder(
                block_out_channels=(32, 32),
                layers_per_block=1,
                down_block_types=("DownEncoderBlock2D",) * 2,
                latent_channels=4,
                sample_size=16,
                force_upcast=True,
            )
        ),
        image_encoder=randomized(CLIPVisionModelWithProjection(vision)),
        unet=randomized(
            UNetSpatioTemporalConditionModel(
                sample_size=8,
                num_frames=FRAMES,
                block_out_channels=(32, 64),
                layers_per_block=1,
                down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
                up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
                num_attention_heads=(2, 4),
                cross_attention_dim=WIDTH,
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=3 * 8,
            )
        ),
        scheduler=EulerDiscreteScheduler.from_config(scheduler_config("svd")),
        feature_extractor=CLIPImageProcessor.from_pretrained(
            NAMED_MODELS["svd"].directory / "feature_extractor"
        ),
    )


PIPELINES = (TinyPipeline("svd", "Stable Video Diffusion", _svd, video=True),)
