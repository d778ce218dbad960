"""The samplers that users can name, as diffusers' schedulers (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tgate_export.bundle.sampler_names import SAMPLERS as NAMES
from tgate_export.bundle.sampler_names import SIGMAS, SPACINGS, USUAL, parse_name
from tgate_export.common.errors import InvalidRequestError


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler that users can name.

    Attributes:
        scheduler_class: the diffusers class.
        overrides: what differs from the pipeline's own scheduler configuration.
        timesteps: what `set_timesteps` takes in place of a number of steps: "timesteps" or
            "sigmas", and their values; none for the number.
    """

    scheduler_class: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    timesteps: Mapping[str, list[float]] = field(default_factory=dict)


_DPM = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "solver_order": 2}
_SDE = {**_DPM, "algorithm_type": "sde-dpmsolver++"}
_CLASSES: dict[str, SamplerSpec] = {
    "ddim": SamplerSpec("DDIMScheduler"),
    "euler": SamplerSpec("EulerDiscreteScheduler"),
    "dpm++2m": SamplerSpec("DPMSolverMultistepScheduler", _DPM),
    "dpm++3m": SamplerSpec("DPMSolverMultistepScheduler", {**_DPM, "solver_order": 3}),
    "deis": SamplerSpec("DEISMultistepScheduler"),
    "unipc": SamplerSpec("UniPCMultistepScheduler"),
    "euler-a": SamplerSpec("EulerAncestralDiscreteScheduler"),
    "lcm": SamplerSpec("LCMScheduler"),
    "pndm": SamplerSpec("PNDMScheduler", {"skip_prk_steps": True}),
    "ddpm": SamplerSpec("DDPMScheduler"),
    "lms": SamplerSpec("LMSDiscreteScheduler"),
    "heun": SamplerSpec("HeunDiscreteScheduler"),
    "dpm2": SamplerSpec("KDPM2DiscreteScheduler"),
    "dpm2-a": SamplerSpec("KDPM2AncestralDiscreteScheduler"),
    "dpm++2s": SamplerSpec("DPMSolverSinglestepScheduler", _DPM),
    "dpm++sde": SamplerSpec("DPMSolverSDEScheduler"),
    "dpm++2m-sde": SamplerSpec("DPMSolverMultistepScheduler", _SDE),
    "dpm++2m-sde-heun": SamplerSpec("DPMSolverMultistepScheduler", {**_SDE, "solver_type": "heun"}),
    "dpm++3m-sde": SamplerSpec("DPMSolverMultistepScheduler", {**_SDE, "solver_order": 3}),
    "tcd": SamplerSpec("TCDScheduler"),
}
# For models that are preconditioned as arXiv 2206.00364 does it, and for no others.
EDM_SAMPLERS: dict[str, SamplerSpec] = {
    "edm-euler": SamplerSpec("EDMEulerScheduler"),
    "edm-dpm++2m": SamplerSpec("EDMDPMSolverMultistepScheduler", _DPM),
}
# Families -> the 10 steps that arXiv 2404.14507 found for them.
AYS: Mapping[str, list[float]] = {
    "stable-diffusion": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
    "stable-diffusion-xl": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
}


def sampler_spec(name: str, family: str = "stable-diffusion") -> SamplerSpec:
    """Return what a sampler's name stands for.

    Args:
        name: see `bundle.sampler_names`.
        family: of the model, which "Align Your Steps" depends on.

    Raises:
        InvalidRequestError: for an unknown name, or steps that were not found for the family.
    """
    if name in EDM_SAMPLERS:
        return EDM_SAMPLERS[name]
    parsed = parse_name(name)
    if parsed is None:
        raise InvalidRequestError(f"unknown scheduler {name!r}; choose from {', '.join(NAMES)}")
    spec = _CLASSES[parsed.sampler]
    overrides = dict(spec.overrides)
    lists: dict[str, list[float]] = {}
    for part in parsed.parts:
        if part in SIGMAS:
            overrides |= {f"use_{each}_sigmas": each == part for each in SIGMAS}
        elif part in SPACINGS:
            overrides["timestep_spacing"] = part
        elif part == "zsnr":
            overrides["rescale_betas_zero_snr"] = True
        elif family not in AYS:
            raise InvalidRequestError(f"{name}: no such steps were found for {family} models")
        else:
            lists["timesteps"] = AYS[family]
    if parsed.kind:
        # Of sigmas diffusers takes the last one, too.
        end = [0.0] if parsed.kind == "sigmas" else []
        lists[parsed.kind] = [*parsed.values, *end]
    if lists:  # diffusers takes none where the configuration spaces them
        overrides |= {
            f"use_{each}_sigmas": False for each in SIGMAS if each in NAMES[parsed.sampler]
        }
    return replace(spec, overrides=overrides, timesteps=lists)


# What a build compiles unless it is told more.
SAMPLERS: dict[str, SamplerSpec] = {name: sampler_spec(name) for name in USUAL}
