"""Stable Video Diffusion: a UNet over space and time that is told its first frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tgate_export.bundle.manifest import Defaults, Size
from tgate_export.bundle.origins import FromFormula, FromGraph
from tgate_export.common.errors import ModelError
from tgate_export.families.spec import Family, declared
from tgate_export.families.unets import context_width
from tgate_export.methods.conditioning import Condition, Conditioning

if TYPE_CHECKING:
    from torch import nn

    from tgate_export.families.loading import Components
    from tgate_export.families.source import ModelSource

# diffusers' pipeline: guidance rises from 1 at the first frame to 3 at the last.
DEFAULTS = Defaults(num_inference_steps=25, gate_step=10, guidance_scale=3.0, scheduler="euler")
_EMBEDS = "image_embeds"


def _conditioning(source: ModelSource) -> Conditioning:
    unet, vae = source.config("unet"), source.config("vae")
    image = (vae["latent_channels"], "latent_height", "latent_width")
    conditions = (
        Condition(_EMBEDS, (1, context_width(unet)), unconditional="zeros"),
        Condition(
            "image_latents",
            image,
            unconditional="zeros",
            gated=True,
            origin=FromGraph(graph="vae_encoder", output="image_latents"),
        ),
        Condition("added_time_ids", (3,), gated=True, origin=FromFormula(formula="video_ids")),
    )
    return Conditioning(conditions, _predict, frames=unet["num_frames"], single_token=_EMBEDS)


def _predict(unet: Any, sample: Any, timestep: Any, conditions: Mapping[str, Any]) -> Any:
    """Call the UNet, whose sample is [B, F, C, h, w], with the image beside every frame."""
    import torch

    frames = unet.config.num_frames
    noisy = sample.unflatten(1, (frames, -1))
    image = conditions["image_latents"].to(sample.dtype)[:, None].expand(-1, frames, -1, -1, -1)
    embeds = conditions.get(_EMBEDS)
    if embeds is None:  # not read: dead code
        embeds = sample.new_zeros((sample.shape[0], 1, context_width(unet.config)))
    noise_pred = unet(
        torch.cat([noisy, image], dim=2),
        timestep,
        encoder_hidden_states=embeds,
        added_time_ids=conditions["added_time_ids"],
        return_dict=False,
    )[0]
    return noise_pred.flatten(1, 2)


def _prompt_encoder(source: ModelSource, parts: Components, _size: Size) -> nn.Module:
    from tgate_export.families.stable_video_diffusion.modules import ClipImageEncoder

    normalization = source.config("feature_extractor")
    return ClipImageEncoder(
        parts["image_encoder"], normalization["image_mean"], normalization["image_std"]
    )


def _vae_decoder(source: ModelSource, parts: Components) -> nn.Module:
    from tgate_export.families.stable_video_diffusion.modules import VideoVaeDecoder

    return VideoVaeDecoder(parts["vae"], source.config("unet")["num_frames"])


def _check(source: ModelSource) -> None:
    unet, vae = source.config("unet"), source.config("vae")
    encoder = source.config("image_encoder")
    if unet.get("in_channels") != 2 * vae["latent_channels"]:
        raise ModelError(
            f"{source.model}: its UNet takes {unet.get('in_channels')} channels, not those of "
            "noisy frames and an image: it belongs to another pipeline"
        )
    if context_width(unet) != encoder.get("projection_dim"):
        raise ModelError(
            f"{source.model}: its UNet reads images of width {context_width(unet)} and "
            f"its image encoder writes {encoder.get('projection_dim')}: they belong to different "
            "pipelines"
        )


FAMILY = Family(
    name="stable-video-diffusion",
    title="Stable Video Diffusion",
    pipelines=("StableVideoDiffusionPipeline",),
    weights={
        "image_encoder": "transformers.CLIPVisionModelWithProjection",
        "unet": "diffusers.UNetSpatioTemporalConditionModel",
        "vae": "diffusers.AutoencoderKLTemporalDecoder",
    },
    extras=("feature_extractor",),
    denoiser="unet",
    tokenizers=lambda _source: (),
    defaults=DEFAULTS,
    check=_check,
    conditioning=_conditioning,
    prompt_encoder=_prompt_encoder,
    vae_decoder=_vae_decoder,
    parameters=lambda _source: declared(
        "image", "fps", "motion_bucket_id", "noise_aug_strength", "min_guidance_scale"
    ),
    size=(1024, 576),
    dynamic_size=False,
    vae_upcast=True,
    # The others do not give the times that it was trained with, a quarter of log sigma.
    samplers=("euler",),
)
