"""Every parameter of a run, declared once (no torch).

A bundle's manifest has a table of those that it takes (`Manifest.parameters`), with its own
defaults and limits; Python's signature, the command line's options, Triton's inputs and what C++
accepts follow from the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

# integer, number   a value
# choice            one of some names
# pair              two integers, [height, width] or [top, left]
# image             a picture [H, W, 3]; see `runtime.images`
Type = Literal["integer", "number", "choice", "pair", "image"]
Number = Annotated[int, Field(ge=-(2**63), lt=2**64)] | Annotated[float, Field(allow_inf_nan=False)]


SYNTAXES = ("plain", "a1111")  # of prompts
_LARGEST = (2 - 2**-23) * 2.0**127  # number of 32 bits


class Parameter(BaseModel):
    """What a caller may set for a run.

    Attributes:
        type: of a value.
        default: what stands for a value that is not given; None where the run makes one up, or
            takes none.
        min: smallest value.
        max: largest value.
        above: values are larger than this.
        choices: the names that a choice may be.
        scaled: the default keeps its place in a run of another number of steps.
        per: a value holds for the whole call, or each prompt may have its own.
        unit: of a value.
        because: why a value cannot be smaller.
        help: one line for people, read by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Type
    default: Number | str | tuple[int, int] | None = None
    min: Number | None = None
    max: Number | None = None
    above: Number | None = None
    choices: tuple[str, ...] = ()
    scaled: bool = False
    per: Literal["call", "prompt"] = "call"
    unit: str = ""
    because: str = ""
    help: str = ""

    @model_serializer(mode="wrap")
    def _brief(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is as it is by default: tables are read by people, too."""
        usual = {name: field.default for name, field in type(self).model_fields.items()}
        return {
            name: value for name, value in serialize(self).items() if value not in (usual[name], [])
        }

    def fault(self, value: Any) -> str:
        """Return what is wrong with a value, as in "must be 0 to 1, got 2"; "" when it is fine."""
        if self.type == "choice":
            return "" if value in self.choices else f"must be one of {', '.join(self.choices)}"
        if self.type == "pair":
            return "" if _is_pair(value) else f"must be two whole numbers of pixels, got {value!r}"
        if self.type == "image":
            return ""  # whoever loads it finds out
        whole = self.type == "integer"
        if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
            return f"must be {'a whole' if whole else 'a'} number, got {value!r}"
        return self._limit_fault(value)

    def _limit_fault(self, value: Any) -> str:
        inside = (
            (self.above is None or value > self.above)
            and (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
        )
        if inside:
            return "" if _is_finite(value) else f"must be a finite number, got {value}"
        if self.min is not None and self.max is not None:
            return f"must be {self.min} to {self.max}, got {value}"
        limits = {"above": self.above, "at least": self.min, "at most": self.max}
        said = " and ".join(f"{how} {limit}" for how, limit in limits.items() if limit is not None)
        return f"must be {said}, got {value}{f': {self.because}' if self.because else ''}"


class Declared(Parameter):
    """A parameter that this package knows.

    Attributes:
        short: its name where names are short: an option of the command line, an input of Triton.
        inert: values up to this, or this name, change nothing, so that bundles without the
            parameter accept them.
        absent: why a bundle has none.
    """

    short: str = ""
    inert: int | float | str | None = None
    absent: str = "this bundle has none"


def _is_finite(value: Any) -> bool:
    """Return whether a number is finite in the 32 bits that tensors have for it."""
    return bool(-_LARGEST <= value <= _LARGEST)


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(
            isinstance(side, Integral) and not isinstance(side, bool) and int(side) >= 0
            for side in value
        )
    )


_SDXL = "it is for SDXL, and this bundle's model is not told it"
_REFINER = "it is for SDXL's refiner, and this bundle's model is not told it"
_VIDEO = "this bundle makes no videos"
_NEWER = (
    "this bundle was built without classifier-free guidance, or by an earlier version and is to be "
    "built again"
)
_IMAGE = "this bundle's runs begin with no image"

PARAMETERS: Mapping[str, Declared] = {
    "num_inference_steps": Declared(
        type="integer", min=1, short="steps", help="Denoising steps.",
    ),
    "gate_step": Declared(
        type="integer", min=1, scaled=True,
        because="the first step always computes cross-attention, its outputs are what the gated "
        "steps reuse",
        help="First step that reuses cross-attention and drops guidance; at the number of steps or "
        "more there is none. PNDM evaluates once more before step 0. By default the bundle's, "
        "scaled to the number of steps.",
    ),
    "sp_interval": Declared(
        type="integer", min=1, because="1 computes self-attention in every step",
        help="Before the gate step, compute self-attention in steps that are multiples of this and "
        "reuse it in between; 1: compute it in every step.",
    ),
    "fi_interval": Declared(
        type="integer", min=1, because="1 computes self-attention in every step",
        help="From the gate step on, compute self-attention in steps that are multiples of this "
        "and reuse it in between; 1: compute it in every step.",
    ),
    "warm_up": Declared(
        type="integer", min=0,
        help="Compute self-attention in steps 0 to this one, whatever the interval before the gate "
        "step.",
    ),
    "guidance_scale": Declared(
        type="number", per="prompt", inert=1,
        absent="this bundle was built without guidance",
        help="Weight of classifier-free guidance before the gate step. At 1 or less a prompt is "
        "generated without guidance and its negative prompt is ignored, as in diffusers.",
    ),
    "guidance_rescale": Declared(
        type="number", default=0.0, min=0, max=1, inert=0,
        absent="this bundle's guidance is never rescaled",
        help="0 to 1: rescale guidance towards the standard deviation that it would have without "
        "(arXiv 2305.08891), against overexposure.",
    ),
    # Twice what either number makes up for: more only adds errors (docs/methods.md).
    "cache_blend": Declared(
        type="number", per="prompt", default=0.5, min=0, max=2, absent=_NEWER,
        help="0 to 2: what gated steps reuse of attention is (1 - blend) of the unconditional "
        "output and blend of the conditional one; 0.5, their mean, is the official method, 1 the "
        "conditional one alone.",
    ),
    "guidance_carry": Declared(
        type="number", per="prompt", default=0.0, min=0, max=2, inert=0, absent=_NEWER,
        help="0 to 2: how much of the guidance of the last step before the gate is added to every "
        "step from the gate on; 0, nothing, is the official method, 1 all of it.",
    ),
    "clip_skip": Declared(
        type="integer", default=0, min=0, inert=0,
        absent="this bundle's text encoder cannot skip layers",
        help="Skip this many of the CLIP text encoder's last layers; negative prompts skip none, "
        "as in diffusers.",
    ),
    "prompt_syntax": Declared(
        type="choice", default="plain", choices=SYNTAXES, inert="plain",
        absent="this bundle's text encoder is not CLIP, or an earlier version built it and it is "
        "to be built again",
        help="How prompts are read. plain: as they are, as in diffusers; a1111: with weights such "
        "as (word:1.3), BREAK and chunks of tokens, as in A1111's web UI.",
    ),
    "scheduler": Declared(
        type="choice", help='Sampler that the bundle holds, such as "ddim" or "dpm++2m".',
    ),
    "original_size": Declared(
        type="pair", unit="pixels", absent=_SDXL,
        help="SDXL: (height, width) that the model is told the image had before scaling; by "
        "default the image's own.",
    ),
    "crops_coords_top_left": Declared(
        type="pair", default=(0, 0), unit="pixels", absent=_SDXL,
        help="SDXL: (top, left) of the crop that the model is told.",
    ),
    "target_size": Declared(
        type="pair", unit="pixels", absent=_SDXL,
        help="SDXL: (height, width) that the model is told; by default the image's own.",
    ),
    "aesthetic_score": Declared(
        type="number", default=6.0, absent=_REFINER,
        help="SDXL refiner: how beautiful the model is told that the picture is, about 1 to 10.",
    ),
    "negative_aesthetic_score": Declared(
        type="number", default=2.5, absent=_REFINER,
        help="SDXL refiner: how beautiful the model is told that what it is to avoid is; from the "
        "gate on this is what it is told.",
    ),
    "image": Declared(
        type="image", per="prompt", absent=_IMAGE,
        help="What a video is made from; or, for a bundle built with image-to-image, what to begin "
        "with instead of noise. Its size is that of the result.",
    ),
    "strength": Declared(
        type="number", default=0.8, above=0, max=1, absent=_IMAGE,
        help="How much of the image is generated anew: the last int(steps * strength) steps run, "
        "and the gate step counts those.",
    ),
    "fps": Declared(
        type="integer", default=7, min=1, unit="frames a second", absent=_VIDEO,
        help="Of a video: frames a second that the model is told.",
    ),
    "motion_bucket_id": Declared(
        type="integer", default=127, min=0, absent=_VIDEO,
        help="Of a video: how much is to move, about 0 to 255.",
    ),
    "noise_aug_strength": Declared(
        type="number", default=0.02, min=0, absent=_VIDEO,
        help="Of a video: standard deviation of the noise on its image in [-1, 1]; more gives more "
        "motion and less likeness.",
    ),
    "min_guidance_scale": Declared(
        type="number", default=1.0, absent=_VIDEO,
        help="Of a video: the first frame's guidance scale, which rises to that of the last. Where "
        "neither is above 1 no frame is guided.",
    ),
}  # fmt: skip


# Arguments of the second pass of a picture that is made small first; they are in no bundle's table.
HIRES = ("hires", "hires_strength", "hires_steps", "hires_upscaler")
# How a picture is enlarged before its second pass: its latents, or for the last one its pixels; and
# what AUTOMATIC1111's web UI calls it.
UPSCALERS: Mapping[str, str] = {
    "latent": "Latent", "latent-bicubic": "Latent (bicubic)", "latent-nearest": "Latent (nearest)",
    "lanczos": "Lanczos",
}  # fmt: skip


def short_name(name: str) -> str:
    """Return what a parameter is called on the command line and by Triton."""
    declared = PARAMETERS.get(name)
    return (declared.short if declared else "") or name


def table_entry(name: str, **changes: Any) -> Parameter:
    """Return a declared parameter as a bundle's table has it, with its own default and limits."""
    declared = PARAMETERS[name]
    fields = {field: getattr(declared, field) for field in Parameter.model_fields}
    return Parameter.model_validate(fields | changes)
