"""Stable Diffusion XL: two text encoders, their pooled output, and sizes as conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tgate_export.bundle.manifest import Defaults, Size
from tgate_export.bundle.origins import FromFormula
from tgate_export.common.errors import ModelError
from tgate_export.families.spec import Family, declared
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

DEFAULTS = Defaults(num_inference_steps=25, gate_step=10, guidance_scale=5.0, scheduler="euler")
TIME_IDS = 6
ENCODERS = ("", "_2")  # how the names of a text encoder and of its tokenizer end


def pooled_width(source: ModelSource) -> int:
    """Return the width of the pooled text."""
    return int(source.config("text_encoder_2")["projection_dim"])


def _conditioning(source: ModelSource) -> Conditioning:
    width = context_width(source.config("unet"))
    return Conditioning(
        (
            Condition(
                "prompt_embeds", (clip_tokens(source), width), unconditional="negative", chunks=1
            ),
            Condition("text_embeds", (pooled_width(source),), unconditional="negative", gated=True),
            Condition(
                "time_ids",
                (TIME_IDS,),
                unconditional="negative",
                gated=True,
                origin=FromFormula(formula="time_ids"),
            ),
        ),
        predict,
        rescale=True,
    )


def predict(unet: Any, sample: Any, timestep: Any, conditions: Mapping[str, Any]) -> Any:
    """Call the UNet; see `Predict`."""
    return unet(
        sample,
        timestep,
        timestep_cond=guidance_embedding(unet, conditions, sample.dtype),
        encoder_hidden_states=conditions.get("prompt_embeds"),
        # The UNet concatenates the two and rounds afterwards: in f32 no type has to be promoted.
        added_cond_kwargs={
            "text_embeds": conditions["text_embeds"].float(),
            "time_ids": conditions["time_ids"],
        },
        return_dict=False,
    )[0]


def _prompt_encoder(source: ModelSource, parts: Components, _size: Size) -> nn.Module:
    from tgate_export.families.stable_diffusion_xl.modules import DualClipTextEncoder

    return DualClipTextEncoder(parts["text_encoder"], parts["text_encoder_2"], _clip_skips(source))


def _clip_skips(source: ModelSource) -> int:
    layers = min(clip_layers(source, f"text_encoder{suffix}") for suffix in ENCODERS)
    return max(0, layers - 2)


def _check(source: ModelSource) -> None:
    lengths = [clip_tokens(source, suffix) for suffix in ENCODERS]
    if len(set(lengths)) > 1:
        raise ModelError(
            f"{source.model}: its text encoders take {lengths[0]} and {lengths[1]} tokens, and its "
            "UNet reads both side by side: one of their tokenizers belongs to another pipeline"
        )
    check_parts(
        source, TIME_IDS,
        "pooled text and sizes",
        "a refiner, which takes an aesthetic score, says so in its model_index.json "
        "(requires_aesthetics_score)",
    )  # fmt: skip


def check_parts(source: ModelSource, time_ids: int, takes: str, otherwise: str) -> None:
    """Refuse a UNet of other conditions, and a VAE without a mean and deviation for each channel.

    Args:
        source: the pipeline.
        time_ids: numbers that the UNet embeds beside the pooled text.
        takes: what these and the text are.
        otherwise: why a UNet may take others.

    Raises:
        ModelError: a part belongs to another pipeline.
    """
    check_unet(source, {"addition_embed_type": "text_time"})
    unet = source.config("unet")
    found = unet.get("projection_class_embeddings_input_dim")
    expected = time_ids * int(unet.get("addition_time_embed_dim") or 0) + pooled_width(source)
    if found != expected:
        raise ModelError(
            f"{source.model}: its UNet takes {found} values of {takes}, expected {expected}: "
            f"{otherwise}"
        )
    vae = source.config("vae")
    for name in ("latents_mean", "latents_std"):
        values = vae.get(name)
        if values is not None and len(values) != vae["latent_channels"]:
            raise ModelError(
                f"{source.model}: vae/config.json has {len(values)} {name}, expected one for each "
                f"of {vae['latent_channels']} channels: it belongs to another pipeline"
            )


def _zero_negative(source: ModelSource) -> bool:
    return bool(source.index().get("force_zeros_for_empty_prompt", True))


FAMILY = Family(
    name="stable-diffusion-xl",
    title="Stable Diffusion XL",
    pipelines=("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
    weights={
        "text_encoder": "transformers.CLIPTextModel",
        "text_encoder_2": "transformers.CLIPTextModelWithProjection",
        "unet": "diffusers.UNet2DConditionModel",
        "vae": KL,
    },
    denoiser="unet",
    tokenizers=lambda source: clip_tokenizers(source, ENCODERS),
    defaults=DEFAULTS,
    check=_check,
    conditioning=_conditioning,
    prompt_encoder=_prompt_encoder,
    parameters=lambda _source: declared("original_size", "crops_coords_top_left", "target_size"),
    image_to_image=True,
    loras=True,
    embeddings=True,
    vaes=(KL, TINY),
    clip_skips=_clip_skips,
    vae_upcast=True,
    latents_by_channel=True,
    zero_negative=_zero_negative,
)
