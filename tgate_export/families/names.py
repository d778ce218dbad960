"""The model names that `build_bundle` knows, and where their defaults come from."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tgate_export.bundle.manifest import Defaults, Guidance
from tgate_export.common.errors import InvalidRequestError
from tgate_export.families import (
    pixart,
    stable_diffusion,
    stable_diffusion_xl,
    stable_video_diffusion,
)

# diffusers' upsampler changes its path at 64 samples, and guidance doubles the batch.
MAX_BATCH = 31

_PACKAGE = Path(__file__).resolve().parent.parent
_CONFIGS = Path(__file__).resolve().parent / "configs"


@dataclass(frozen=True)
class NamedModel:
    """A model that can be built by name.

    Attributes:
        name: what `build_bundle` takes as a model.
        family: the family module that loads it.
        summary: one line for people.
        directory: packaged pipeline; only its configuration when `hub_id` is set.
        hub_id: Hugging Face id of the pretrained weights; None when they are packaged.
        denoiser_parameters: weights of the denoiser.
        size: default width and height in pixels.
        defaults: how it is sampled unless told otherwise.
        origin: where the defaults come from.
        shared: components whose configuration is another packaged pipeline's -> its folder.
        guidance: "none" for a model that was distilled to need none.
    """

    name: str
    family: str
    summary: str
    directory: Path
    hub_id: str | None
    denoiser_parameters: int
    size: tuple[int, int]
    defaults: Defaults
    origin: str
    shared: Mapping[str, Path] = field(default_factory=dict)
    guidance: Guidance = "classifier-free"


_TGATE = "T-GATE paper and README: 25 steps, gate step 10"
_TGATE_LCM = "T-GATE README: 4 steps, gate step 1; diffusers: guidance, sampler"
_TURBO = "model card: 1 to 4 steps without guidance; gate step 2 is ours"
_LCM = {"num_inference_steps": 4, "gate_step": 1, "scheduler": "lcm"}
_FEW_STEPS = {"num_inference_steps": 4, "gate_step": 2, "guidance_scale": 1.0}
_DIFFUSERS_PIXART = "T-GATE page of diffusers: 25 steps, gate step 8; diffusers: guidance, sampler"

_SDXL_PARTS = dict.fromkeys(("text_encoder", "text_encoder_2", "vae"), _CONFIGS / "sdxl")

NAMED_MODELS = {
    model.name: model
    for model in (
        NamedModel(
            name="shapes",
            family="stable-diffusion",
            summary="small demo pipeline in this package: 'a red circle on a blue background'",
            directory=_PACKAGE / "data" / "shapes",
            hub_id=None,
            denoiser_parameters=4_242_568,
            size=(64, 64),
            defaults=stable_diffusion.DEFAULTS.model_copy(update={"guidance_scale": 5.0}),
            origin="measured with scripts/evaluate_shapes.py",
        ),
        NamedModel(
            name="sd15",
            family="stable-diffusion",
            summary="Stable Diffusion 1.5",
            directory=_CONFIGS / "sd15",
            hub_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
            denoiser_parameters=859_520_964,
            size=(512, 512),
            defaults=stable_diffusion.DEFAULTS,
            origin=f"{_TGATE}; diffusers: guidance",
        ),
        NamedModel(
            name="sd21",
            family="stable-diffusion",
            summary="Stable Diffusion 2.1, 768 pixels, v prediction",
            directory=_CONFIGS / "sd21",
            hub_id="stabilityai/stable-diffusion-2-1",
            denoiser_parameters=865_910_724,
            size=(768, 768),
            defaults=stable_diffusion.DEFAULTS,
            shared={"vae": _CONFIGS / "sd15"},
            origin=f"{_TGATE}; diffusers: guidance",
        ),
        NamedModel(
            name="sdxl",
            family="stable-diffusion-xl",
            summary="Stable Diffusion XL base 1.0",
            directory=_CONFIGS / "sdxl",
            hub_id="stabilityai/stable-diffusion-xl-base-1.0",
            denoiser_parameters=2_567_463_684,
            size=(1024, 1024),
            defaults=stable_diffusion_xl.DEFAULTS,
            origin=f"{_TGATE}; diffusers: guidance, sampler",
        ),
        NamedModel(
            name="sd-turbo",
            family="stable-diffusion",
            summary="SD-Turbo: Stable Diffusion 2.1 distilled to a few steps without guidance",
            directory=_CONFIGS / "sd-turbo",
            hub_id="stabilityai/sd-turbo",
            denoiser_parameters=865_910_724,
            size=(512, 512),
            defaults=stable_diffusion.DEFAULTS.model_copy(
                update={**_FEW_STEPS, "scheduler": "euler"}
            ),
            shared={"text_encoder": _CONFIGS / "sd21", "vae": _CONFIGS / "sd15"},
            guidance="none",
            origin=_TURBO,
        ),
        NamedModel(
            name="sdxl-turbo",
            family="stable-diffusion-xl",
            summary="SDXL-Turbo: SDXL distilled to a few steps without guidance",
            directory=_CONFIGS / "sdxl-turbo",
            hub_id="stabilityai/sdxl-turbo",
            denoiser_parameters=2_567_463_684,
            size=(512, 512),
            defaults=stable_diffusion_xl.DEFAULTS.model_copy(
                update={**_FEW_STEPS, "scheduler": "euler-a"}
            ),
            shared=_SDXL_PARTS,
            guidance="none",
            origin=_TURBO,
        ),
        NamedModel(
            name="lcm-sd15",
            family="stable-diffusion",
            summary="LCM Dreamshaper v7: Stable Diffusion 1.5 with an embedded guidance scale",
            directory=_CONFIGS / "lcm-sd15",
            hub_id="SimianLuo/LCM_Dreamshaper_v7",
            denoiser_parameters=859_602_884,
            size=(768, 768),
            defaults=stable_diffusion.DEFAULTS.model_copy(update={**_LCM, "guidance_scale": 8.5}),
            shared={"text_encoder": _CONFIGS / "sd15", "vae": _CONFIGS / "sd15"},
            origin=_TGATE_LCM,
        ),
        NamedModel(
            name="lcm-sdxl",
            family="stable-diffusion-xl",
            summary="LCM SDXL with an embedded guidance scale (a UNet in the pipeline of sdxl)",
            directory=_CONFIGS / "lcm-sdxl",
            hub_id="latent-consistency/lcm-sdxl",
            denoiser_parameters=2_567_545_604,
            size=(1024, 1024),
            defaults=stable_diffusion_xl.DEFAULTS.model_copy(
                update={**_LCM, "guidance_scale": 8.0}
            ),
            shared=_SDXL_PARTS,
            origin=_TGATE_LCM,
        ),
        NamedModel(
            name="pixart-alpha",
            family="pixart",
            summary="PixArt-alpha, 1024 pixels",
            directory=_CONFIGS / "pixart-alpha",
            hub_id="PixArt-alpha/PixArt-XL-2-1024-MS",
            denoiser_parameters=611_349_152,
            size=(1024, 1024),
            defaults=pixart.DEFAULTS,
            origin=_DIFFUSERS_PIXART,
            shared={"vae": _CONFIGS / "sd15"},
        ),
        NamedModel(
            name="pixart-sigma",
            family="pixart",
            summary="PixArt-Sigma, 1024 pixels, 300 tokens",
            directory=_CONFIGS / "pixart-sigma",
            hub_id="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
            denoiser_parameters=610_856_096,
            size=(1024, 1024),
            defaults=pixart.DEFAULTS,
            origin=_DIFFUSERS_PIXART,
            shared={
                "text_encoder": _CONFIGS / "pixart-alpha",
                "scheduler": _CONFIGS / "pixart-alpha",
                "vae": _CONFIGS / "sdxl",
            },
        ),
        NamedModel(
            name="svd",
            family="stable-video-diffusion",
            summary="Stable Video Diffusion, 14 frames from an image",
            directory=_CONFIGS / "svd",
            hub_id="stabilityai/stable-video-diffusion-img2vid",
            denoiser_parameters=1_524_623_082,
            size=(1024, 576),
            defaults=stable_video_diffusion.DEFAULTS,
            origin=f"{_TGATE}; diffusers: guidance, sampler",
        ),
    )
}


def named_by_hub_id(hub_id: str) -> dict[str, Any]:
    """Return `defaults` and `guidance` of the named model with these weights, if there is one."""
    for model in NAMED_MODELS.values():
        if model.hub_id is not None and model.hub_id.lower() == hub_id.lower():
            return {"defaults": model.defaults, "guidance": model.guidance}
    return {}


def unknown_model(model: str) -> InvalidRequestError:
    """Return the error for a model that is neither a name, a folder that is there nor an id."""
    if Path(model).is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        return InvalidRequestError(f"{model}: no such folder; give a diffusers folder")
    near = difflib.get_close_matches(model.lower(), NAMED_MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(NAMED_MODELS)}."
    return InvalidRequestError(
        f"unknown model {model!r}: {hint} It can also be a diffusers folder or a "
        "Hugging Face id (owner/name)"
    )
