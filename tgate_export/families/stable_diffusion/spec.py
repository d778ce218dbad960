"""Stable Diffusion 1.x and 2.x: a UNet, a KL autoencoder and one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tgate_export.bundle.manifest import Defaults, Size
from tgate_export.common.errors import ModelError
from tgate_export.families.spec import Family
from tgate_export.families.unets import (
    check_unet,
    clip_layers,
    clip_tokenizers,
    clip_tokens,
    context_width,
    guidance_embedding,
)
from tgate_export.families.vae import KL, TINY
from tgate_export.methods.conditioning import Condition, Conditioning

if TYPE_CHECKING:
    from torch import nn

    from tgate_export.families.loading import Components
    from tgate_export.families.source import ModelSource

DEFAULTS = Defaults(num_inference_steps=25, gate_step=10, guidance_scale=7.5, scheduler="ddim")


def _conditioning(source: ModelSource) -> Conditioning:
    unet = source.config("unet")
    width = context_width(unet)
    embeds = Condition(
        "prompt_embeds", (clip_tokens(source), width), unconditional="negative", chunks=1
    )
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


def _predict_upcast(unet: Any, sample: Any, timestep: Any, conditions: Mapping[str, Any]) -> Any:
    from tgate_export.methods.upcast import AttentionInFloat32

    with AttentionInFloat32():
        return _predict(unet, sample, timestep, conditions)


def _prompt_encoder(source: ModelSource, parts: Components, _size: Size) -> nn.Module:
    from tgate_export.families.stable_diffusion.modules import ClipTextEncoder

    return ClipTextEncoder(parts["text_encoder"], _clip_skips(source))


def _clip_skips(source: ModelSource) -> int:
    return clip_layers(source, "text_encoder") - 1


def _check(source: ModelSource) -> None:
    check_unet(source, {})
    if source.config("text_encoder").get("use_attention_mask"):
        raise ModelError(
            f"{source.model}: its text encoder does not read padding (use_attention_mask in "
            "text_encoder/config.json), which is not supported"
        )


FAMILY = Family(
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
        "vae": KL,
    },
    denoiser="unet",
    tokenizers=clip_tokenizers,
    defaults=DEFAULTS,
    check=_check,
    conditioning=_conditioning,
    prompt_encoder=_prompt_encoder,
    image_to_image=True,
    loras=True,
    embeddings=True,
    vaes=(KL, TINY),
    clip_skips=_clip_skips,
)
