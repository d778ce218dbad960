"""Very small random pipelines of the true architecture kinds.

Every bias and norm weight is random: with their usual zeros and ones, tensors that are mixed up
would go unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from tgate_export.bundle.manifest import Range
from tgate_export.families.names import NAMED_MODELS
from tgate_export.families.random_tokenizers import byte_tokenizer, letter_tokenizer
from tgate_export.samplers import specs

SEED = 20240414
CONFIGS = {name: model.directory for name, model in NAMED_MODELS.items()}
VOCABULARY, TOKENS = 514, 77
FRAMES = 3


def save_sdxl(folder: Path) -> None:
    """Two text encoders of different widths; cross-attention at one level, two layers deep."""
    with _seeded():
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(scaling_factor=0.13025, force_upcast=True),
            text_encoder=_clip(CLIPTextModel, 32),
            text_encoder_2=_clip(
                CLIPTextModelWithProjection, 48, projection_dim=24, eos_token_id=2
            ),
            tokenizer=byte_tokenizer(VOCABULARY, TOKENS),
            tokenizer_2=byte_tokenizer(VOCABULARY, TOKENS, pad_token="!"),
            unet=_randomized(
                UNet2DConditionModel(
                    sample_size=8,
                    block_out_channels=(32, 64),
                    layers_per_block=1,
                    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                    attention_head_dim=(2, 4),
                    transformer_layers_per_block=(1, 2),
                    use_linear_projection=True,
                    cross_attention_dim=32 + 48,
                    addition_embed_type="text_time",
                    addition_time_embed_dim=8,
                    projection_class_embeddings_input_dim=6 * 8 + 24,
                    norm_num_groups=8,
                )
            ),
            scheduler=EulerDiscreteScheduler.from_config(_scheduler("sdxl")),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)


def save_sd21(folder: Path) -> None:
    """Stable Diffusion 2.1: v prediction, linear projections, attention upcast."""
    with _seeded():
        pipeline = StableDiffusionPipeline(
            vae=_vae(scaling_factor=0.18215),
            text_encoder=_clip(CLIPTextModel, 32, hidden_act="gelu"),
            tokenizer=byte_tokenizer(VOCABULARY, TOKENS, pad_token="!"),
            unet=_randomized(
                UNet2DConditionModel(
                    sample_size=8,
                    block_out_channels=(32, 64),
                    layers_per_block=1,
                    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                    attention_head_dim=(2, 4),
                    use_linear_projection=True,
                    upcast_attention=True,
                    cross_attention_dim=32,
                    norm_num_groups=8,
                )
            ),
            scheduler=DDIMScheduler.from_config(_scheduler("sd21")),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)


def save_lcm(folder: Path) -> None:
    """Stable Diffusion whose UNet takes the guidance scale as an embedding, as LCM's."""
    with _seeded():
        pipeline = StableDiffusionPipeline(
            vae=_vae(scaling_factor=0.18215),
            text_encoder=_clip(CLIPTextModel, 32),
            tokenizer=byte_tokenizer(VOCABULARY, TOKENS),
            unet=_randomized(
                UNet2DConditionModel(
                    sample_size=8,
                    block_out_channels=(32, 64),
                    layers_per_block=1,
                    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                    attention_head_dim=4,
                    cross_attention_dim=32,
                    norm_num_groups=8,
                    time_cond_proj_dim=17,
                )
            ),
            scheduler=DDIMScheduler.from_config(_scheduler("sd21"), prediction_type="epsilon"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)


def save_pixart_alpha(folder: Path) -> None:
    """Told its size (which diffusers does for a sample size of 128 only); learned variance."""
    _save_pixart(folder, PixArtAlphaPipeline, sample_size=128, scaling_factor=0.18215)


def save_pixart_sigma(folder: Path) -> None:
    """Not told its size; 300 tokens."""
    _save_pixart(folder, PixArtSigmaPipeline, sample_size=8, scaling_factor=0.13025)


def _save_pixart(folder: Path, cls: Any, sample_size: int, scaling_factor: float) -> None:
    with _seeded():
        pipeline = cls(
            tokenizer=letter_tokenizer(),
            text_encoder=_randomized(
                T5EncoderModel(
                    T5Config(
                        vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                        feed_forward_proj="gated-gelu",
                    )
                )
            ),
            vae=_vae(scaling_factor=scaling_factor),
            transformer=_strengthened(
                _randomized(
                    PixArtTransformer2DModel(
                        sample_size=sample_size,
                        num_layers=3,
                        num_attention_heads=3,
                        attention_head_dim=8,
                        cross_attention_dim=24,
                        caption_channels=32,
                    )
                )
            ),
            scheduler=DPMSolverMultistepScheduler.from_config(_scheduler("pixart-alpha")),
        )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)


def save_svd(folder: Path) -> None:
    """Three frames; attention over space and time at two levels."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=224, patch_size=56, projection_dim=24,
    )  # fmt: skip
    with _seeded():
        pipeline = StableVideoDiffusionPipeline(
            vae=_randomized(
                AutoencoderKLTemporalDecoder(
                    block_out_channels=(32, 32),
                    layers_per_block=1,
                    down_block_types=("DownEncoderBlock2D",) * 2,
                    latent_channels=4,
                    sample_size=16,
                    force_upcast=True,
                )
            ),
            image_encoder=_randomized(CLIPVisionModelWithProjection(vision)),
            unet=_randomized(
                UNetSpatioTemporalConditionModel(
                    sample_size=8,
                    num_frames=FRAMES,
                    block_out_channels=(32, 64),
                    layers_per_block=1,
                    down_block_types=(
                        "CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"
                    ),
                    up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
                    num_attention_heads=(2, 4),
                    cross_attention_dim=24,
                    addition_time_embed_dim=8,
                    projection_class_embeddings_input_dim=3 * 8,
                )
            ),
            scheduler=EulerDiscreteScheduler.from_config(_scheduler("svd")),
            feature_extractor=CLIPImageProcessor.from_pretrained(
                CONFIGS["svd"] / "feature_extractor"
            ),
        )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)


@dataclass(frozen=True)
class Tiny:
    """How a pipeline is saved, and how it is built: images of 16 x 16 pixels, 1 or 2 at a time."""

    save: Callable[[Path], None]
    batch: Range


# A dynamic batch takes the exporter twice as long: once for each architecture.
DYNAMIC, FIXED = Range(min=1, opt=2, max=2), Range(min=2, opt=2, max=2)
PIPELINES = {
    "sdxl": Tiny(save_sdxl, DYNAMIC),
    "sd21": Tiny(save_sd21, FIXED),
    "pixart-alpha": Tiny(save_pixart_alpha, DYNAMIC),
    "pixart-sigma": Tiny(save_pixart_sigma, FIXED),
}
SIZE = (Range(min=16, opt=16, max=16),) * 2


@contextmanager
def only_samplers(*names: str) -> Iterator[None]:
    """Let builds compile these alone: all of them take half a minute, and minutes with starts."""
    chosen = {name: specs.SAMPLERS[name] for name in names}
    with mock.patch.object(specs, "SAMPLERS", chosen):
        yield


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


def _randomized(module: Any) -> Any:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                centre = 1.0 if name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.1 * torch.randn_like(parameter))
    return module


def _strengthened(transformer: Any) -> Any:
    """Let the text have a say: random attention averages it away."""
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if ".attn2." in name and parameter.ndim == 2:
                parameter.mul_(4)
    return transformer


def _vae(**config: Any) -> Any:
    return _randomized(
        AutoencoderKL(
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=16,
            **config,
        )
    )


def _clip(cls: Any, width: int, **changes: Any) -> Any:
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKENS,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": VOCABULARY - 1,
    }
    return _randomized(cls(CLIPTextConfig(**(config | changes))))


def _scheduler(name: str) -> dict[str, Any]:
    path = CONFIGS[name] / "scheduler" / "scheduler_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config
