"""SDXL's refiner: the second text encoder alone, and an aesthetic score as a condition.

It was trained for the last fifth of a run (arXiv 2307.01952, section 2.5): it goes on from a
picture, or from latents of the base model that have noise left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tgate_export.bundle.manifest import Size
from tgate_export.bundle.origins import FromFormula
from tgate_export.families.spec import Family, declared
from tgate_export.families.stable_diffusion_xl.spec import (
    DEFAULTS,
    check_parts,
    pooled_width,
    predict,
)
from tgate_export.families.unets import (
    clip_layers,
    clip_tokenizers,
    clip_tokens,
    context_width,
)
from tgate_export.families.vae import KL, TINY
from tgate_export.methods.conditioning import Condition, Conditioning

if TYPE_CHECKING:
    from torch import nn

    from tgate_export.families.loading import Components
    from tgate_export.families.source import ModelSource

TIME_IDS = 5
ENCODER = "_2"  # how the names of its text encoder and of its tokenizer end


def _conditioning(source: ModelSource) -> Conditioning:
    width = context_width(source.config("unet"))
    return Conditioning(
        (
            Condition(
                "prompt_embeds",
                (clip_tokens(source, ENCODER), width),
                unconditional="negative",
                chunks=1,
            ),
            Condition("text_embeds", (pooled_width(source),), unconditional="negative", gated=True),
            Condition(
                "time_ids",
                (TIME_IDS,),
                unconditional="negative",
                gated=True,
                origin=FromFormula(formula="aesthetic_ids"),
                negative_origin=FromFormula(formula="negative_aesthetic_ids"),
            ),
        ),
        predict,
        rescale=True,
    )


def _prompt_encoder(source: ModelSource, parts: Components, _size: Size) -> nn.Module:
    from tgate_export.families.stable_diffusion_xl_refiner.modules import SecondClipTextEncoder

    return SecondClipTextEncoder(parts["text_encoder_2"], _clip_skips(source))


def _clip_skips(source: ModelSource) -> int:
    return max(0, clip_layers(source, f"text_encoder{ENCODER}") - 2)


def _check(source: ModelSource) -> None:
    check_parts(
        source, TIME_IDS,
        "pooled text, sizes and an aesthetic score",
        "requires_aesthetics_score of model_index.json is not this UNet's",
    )  # fmt: skip


FAMILY = Family(
    name="stable-diffusion-xl-refiner",
    title="SDXL refiner",
    pipelines=("StableDiffusionXLImg2ImgPipeline",),
    weights={
        "text_encoder_2": "transformers.CLIPTextModelWithProjection",
        "unet": "diffusers.UNet2DConditionModel",
        "vae": KL,
    },
    denoiser="unet",
    tokenizers=lambda source: clip_tokenizers(source, (ENCODER,)),
    defaults=DEFAULTS,
    check=_check,
    conditioning=_conditioning,
    prompt_encoder=_prompt_encoder,
    parameters=lambda _source: declared(
        "original_size", "crops_coords_top_left", "aesthetic_score", "negative_aesthetic_score"
    ),
    aesthetic=True,
    image_to_image=True,
    clip_skips=_clip_skips,
    vaes=(KL, TINY),
    vae_upcast=True,
    latents_by_channel=True,
)
