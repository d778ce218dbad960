"""Stable Diffusion 1.x and 2.x: a UNet, a KL autoencoder and one CLIP text encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tgate_export.bundle.manifest import Defaults, Size
from tgate_export.common.errors import ModelError
from tgate_export.families.base import Family, TokenizerSpec
from tgate_export.families.tokenizer_files import longest_text
from tgate_export.methods.conditioning import GUIDANCE_SCALE, Condition, Conditioning

if TYPE_CHECKING:
    from torch import nn

    from tgate_export.families.loading import Components
    from tgate_export.families.source import ModelSource

DEFAULTS = Defaults(num_inference_steps=25, gate_step=10, guidance_scale=7.5, scheduler="ddim")
CLIP_TOKENIZER = "transformers.CLIPTokenizer"


def clip_tokens(source: ModelSource, suffix: str = "") -> int:
    """Return how many tokens a CLIP text encoder is given.

    As many as its tokenizer says (`model_max_length`), as in diffusers; no more than it has
    positions for, which fails there.
    """
    positions = int(source.config(f"text_encoder{suffix}")["max_position_embeddings"])
    told = longest_text(source.folder(f"tokenizer{suffix}"))
    return positions if told is None else min(told, positions)


def clip_layers(source: ModelSource, encoder: str) -> int:
    """Return how many layers a CLIP text encoder has."""
    return int(source.config(encoder)["num_hidden_layers"])


def context_width(unet: Mapping[str, Any]) -> int:
    """Return the width of what a UNet's cross-attention reads, which a list gives a level."""
    width = unet.get("cross_attention_dim", 1280)
    return int(width[0] if isinstance(width, (list, tuple)) else width)


def _tokenizers(source: ModelSource) -> tuple[TokenizerSpec, ...]:
    tokens = clip_tokens(source)
    return (TokenizerSpec("input_ids", "tokenizer", CLIP_TOKENIZER, "text_encoder", tokens),)


def _conditioning(source: ModelSource) -> Conditioning:
    unet = source.config("unet")
    width = context_width(unet)
    embeds = Condition("prompt_embeds", (clip_tokens(source), width), unconditional="negative")
    if unet.get("upcast_attention"):
        return Conditioning((embeds,), _predict_upcast, float32_attention=True, rescale=True)
    return Conditioning((embeds,), _predict, rescale=True)


def _predict(unet: Any, sample: Any, timestep: Any, conditions: Mapping[str, Any]) -> Any:
    return unet(
        sample,
        timestep,
        timestep_cond=guidance_embedding(unet, conditions, sample.dtype),
        encoder_hidden_states=conditions.get("prompt_embeds"),
        return_dict=False,
    )[0]


def guidance_embedding(unet: Any, conditions: Mapping[str, Any], dtype: Any) -> Any:
    """Return sines and cosines of the guidance scale [B, time_cond_proj_dim], None if unused.

    Of the sample's dtype and not the weights', which may be computed with in another.
    arXiv 2310.04378, and `get_guidance_scale_embedding(guidance_scale - 1)` of diffusers.
    """
    width = unet.config.time_cond_proj_dim
    if width is None:
        return None
    import torch

    half = width // 2
    frequencies = torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (conditions[GUIDANCE_SCALE] - 1.0)[:, None] * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(embedding, (0, width % 2)).to(dtype)


def _predict_upcast(unet: Any, sample: Any, timestep: Any, conditions: Mapping[str, Any]) -> Any:
    from tgate_export.methods.upcast import AttentionInFloat32

    with AttentionInFloat32():
        return _predict(unet, sample, timestep, conditions)


def _prompt_encoder(_source: ModelSource, parts: Components, _size: Size) -> nn.Module:
    from tgate_export.families.modules import ClipTextEncoder

    encoder: Any = parts["text_encoder"]
    return ClipTextEncoder(encoder, encoder.config.num_hidden_layers - 1)


def _clip_skips(source: ModelSource) -> int:
    return clip_layers(source, "text_encoder") - 1


def check_unet(source: ModelSource, supported: Mapping[str, object]) -> None:
    """Refuse a UNet that takes more than the noisy sample, the time and what is `supported`.

    Raises:
        ModelError: names the entry of its configuration.
    """
    unet, vae = source.config("unet"), source.config("vae")
    for key in (
        "addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type",
        "encoder_hid_dim",
    ):  # fmt: skip
        if unet.get(key) != supported.get(key):
            raise ModelError(
                f"{source.model}: its UNet takes more than text and time ({key} is "
                f"{unet.get(key)!r}), which is not supported"
                if unet.get(key) is not None
                else f"{source.model}: its UNet lacks {key} {supported[key]!r}, which a "
                f"{source.pipeline} needs: it belongs to another pipeline"
            )
    if unet.get("in_channels") != vae.get("latent_channels"):
        raise ModelError(
            f"{source.model}: its UNet takes {unet.get('in_channels')} channels and its VAE gives "
            f"{vae.get('latent_channels')}: inpainting and other image-conditioned UNets are not "
            "supported"
        )


def _check(source: ModelSource) -> None:
    check_unet(source, {})
    if source.config("text_encoder").get("use_attention_mask"):
        raise ModelError(
            f"{source.model}: its text encoder does not read padding (use_attention_mask in "
            "text_encoder/config.json), which is not supported"
        )


STABLE_DIFFUSION = Family(
    name="stable-diffusion",
    title="Stable Diffusion 1.x and 2.x",
    pipelines=(
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "LatentConsistencyModelPipeline",
    ),
    weights={
        "text_encoder": "transformers.CLIPTextModel",
        "unet": "diffusers.UNet2DConditionModel",
        "vae": "diffusers.AutoencoderKL",
    },
    denoiser="unet",
    tokenizers=_tokenizers,
    defaults=DEFAULTS,
    check=_check,
    conditioning=_conditioning,
    prompt_encoder=_prompt_encoder,
    image_to_image=True,
    clip_skips=_clip_skips,
)
