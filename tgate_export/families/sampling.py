"""How a model without a name is sampled: by its own sampler; LCMs in few steps (no torch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tgate_export.bundle.manifest import Defaults
from tgate_export.bundle.sampler_names import SAMPLERS
from tgate_export.common.errors import ModelError
from tgate_export.common.hints import Argument, Hint
from tgate_export.families.names import NAMED_MODELS, named_by_hub_id

if TYPE_CHECKING:
    from tgate_export.families.source import ModelSource

# Samplers of a bundle by the class whose configuration, whatever it says, they follow.
_BY_CLASS = {
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-a",
    "DEISMultistepScheduler": "deis",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "DDPMScheduler": "ddpm",
    "LMSDiscreteScheduler": "lms",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2-a",
    "DPMSolverSDEScheduler": "dpm++sde",
    "EDMEulerScheduler": "edm-euler",
    "EDMDPMSolverMultistepScheduler": "edm-dpm++2m",
}
# Models that these sample are preconditioned in another way: no other sampler runs them, and
# they run no other model.
_EDM = {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}
# Names of those that have an order.
_DPM = {
    "DPMSolverMultistepScheduler": "dpm++{}m",
    "DPMSolverSinglestepScheduler": "dpm++{}s",
    "EDMDPMSolverMultistepScheduler": "edm-dpm++{}m",
}
_LCM_PIPELINE = "LatentConsistencyModelPipeline"
_LCM_OF = {"stable-diffusion": "lcm-sd15", "stable-diffusion-xl": "lcm-sdxl"}


def own_scheduler(source: ModelSource) -> str | None:
    """Return the class of a pipeline's scheduler, as diffusers finds it."""
    entry = source.index().get("scheduler")
    if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str):
        return entry[1]
    name = source.config("scheduler").get("_class_name")
    return name if isinstance(name, str) else None


def own_sampler(source: ModelSource) -> str | None:
    """Return the sampler that does what a pipeline's own scheduler does, if there is one."""
    scheduler, config = own_scheduler(source), source.config("scheduler")
    if scheduler == "PNDMScheduler":
        name = "pndm" if config.get("skip_prk_steps") else None
    elif scheduler in _DPM:
        name = _dpm(config, _DPM[scheduler])
    else:
        name = _BY_CLASS.get(scheduler or "")
    allowed = source.family.samplers
    return name if allowed is None or name in allowed else None


def _dpm(config: dict[str, Any], names: str) -> str | None:
    algorithms = {"dpmsolver++": "", "sde-dpmsolver++": "-sde"}
    algorithm = algorithms.get(config.get("algorithm_type", "dpmsolver++"))
    types = {"midpoint": ""} | ({"heun": "-heun"} if algorithm else {})
    solver_type = types.get(config.get("solver_type", "midpoint"))
    if algorithm is None or solver_type is None:
        return None
    name = names.format(config.get("solver_order", 2)) + algorithm + solver_type
    return name if name in (*SAMPLERS, "edm-dpm++2m") else None


def samplers(source: ModelSource) -> tuple[str, ...] | None:
    """Return the samplers that serve a model; all when None.

    Raises:
        ModelError: its own is the only one that would do, and cannot be compiled.
    """
    scheduler = own_scheduler(source)
    if scheduler not in _EDM:
        return source.family.samplers
    name = own_sampler(source)
    if name is None:
        raise ModelError(
            f"{source.model} is sampled by {scheduler} with a configuration that cannot be "
            "compiled (scheduler/scheduler_config.json): only algorithm_type dpmsolver++, "
            "solver_type midpoint and solver_order 2 of SDXL and Stable Diffusion can"
        )
    return (name,)


def own_defaults(source: ModelSource) -> Defaults:
    """Return how a model without a name is sampled unless told otherwise.

    By its own sampler; where that is PNDM, which diffusers gives to models that name no other, by
    its family's. An LCM takes the few steps of its kind, and without an embedded guidance scale it
    needs no guidance.
    """
    defaults, name = source.family.defaults, own_sampler(source)
    if source.pipeline == _LCM_PIPELINE or name == "lcm":
        like = NAMED_MODELS[_LCM_OF.get(source.family.name, "lcm-sd15")].defaults
        scale = {} if source.guidance == "embedded" else {"guidance_scale": 1.0}
        return like.model_copy(update=scale)
    if name in (None, "pndm"):
        return defaults
    return defaults.model_copy(update={"scheduler": name})


def sampling_notes(source: ModelSource) -> Iterator[Hint]:
    """Say what of a model's sampling its folder does not tell, or a bundle cannot do.

    Nothing of models with a name, whose defaults were chosen, and of what packaged configurations
    say for a checkpoint in one file.
    """
    if source.kind in ("packaged", "random") or named_by_hub_id(source.model):
        return
    if source.single and source.single.configuration.name:
        return
    default, scheduler, name = source.defaults, own_scheduler(source), own_sampler(source)
    if scheduler is not None and default.scheduler != name:
        known = "a bundle has no such sampler" if name is None else Argument("scheduler", name)
        yield (
            f"its own sampler is {scheduler} (",
            known,
            f"): the default is {default.scheduler}",
        )
    config = source.config("scheduler")
    few_steps = default.num_inference_steps < source.family.defaults.num_inference_steps
    if (
        config.get("timestep_spacing") == "trailing"
        and not config.get("rescale_betas_zero_snr")
        and source.guidance == "classifier-free"
        and not few_steps
    ):
        yield (
            "its timesteps are trailing, as those of models distilled to a few steps (Turbo, "
            "Lightning): if it is one, build with ",
            Argument("guidance", "none"),
            " and generate with its ",
            Argument("num_inference_steps"),
        )
