"""The samplers that users can name (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tgate_export.common.errors import InvalidRequestError


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler that users can name.

    Attributes:
        scheduler_class: the diffusers class.
        overrides: what differs from the pipeline's own scheduler configuration.
    """

    scheduler_class: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


_DPM = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
SAMPLERS: dict[str, SamplerSpec] = {
    "ddim": SamplerSpec("DDIMScheduler"),
    "euler": SamplerSpec("EulerDiscreteScheduler"),
    "euler-karras": SamplerSpec("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "dpm++2m": SamplerSpec("DPMSolverMultistepScheduler", {**_DPM, "solver_order": 2}),
    "dpm++2m-karras": SamplerSpec(
        "DPMSolverMultistepScheduler", {**_DPM, "solver_order": 2, "use_karras_sigmas": True}
    ),
    "dpm++3m": SamplerSpec("DPMSolverMultistepScheduler", {**_DPM, "solver_order": 3}),
    "deis": SamplerSpec("DEISMultistepScheduler"),
    "unipc": SamplerSpec("UniPCMultistepScheduler"),
    "euler-a": SamplerSpec("EulerAncestralDiscreteScheduler"),
    "lcm": SamplerSpec("LCMScheduler"),
    "pndm": SamplerSpec("PNDMScheduler", {"skip_prk_steps": True}),
}
# For models that are preconditioned as arXiv 2206.00364 does it, and for no others.
EDM_SAMPLERS: dict[str, SamplerSpec] = {
    "edm-euler": SamplerSpec("EDMEulerScheduler"),
    "edm-dpm++2m": SamplerSpec("EDMDPMSolverMultistepScheduler", {**_DPM, "solver_order": 2}),
}


def sampler_spec(name: str) -> SamplerSpec:
    """Return what a sampler's name stands for.

    Raises:
        InvalidRequestError: for an unknown name.
    """
    known = {**SAMPLERS, **EDM_SAMPLERS}
    if name not in known:
        raise InvalidRequestError(f"unknown scheduler {name!r}; choose from {', '.join(SAMPLERS)}")
    return known[name]
