"""What one call asks for, completed with the bundle's defaults and checked before it runs."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tgate_export.bundle.manifest import Manifest, Range
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.conditioning import MicroConditioning, Motion
from tgate_export.runtime.guidance import by_prompt_alone
from tgate_export.runtime.host_arrays import host_array
from tgate_export.runtime.images import load_images
from tgate_export.runtime.motion import make_motion
from tgate_export.runtime.prompts import Embeds, Prompts, count, negative, positive, repeat
from tgate_export.steps.step_plan import check_step_plan

OUTPUT_TYPES = ("pil", "np", "latent")
DEFAULT_STRENGTH = 0.8  # as in diffusers


@dataclass(frozen=True)
class Request:
    """A checked call: one prompt, negative prompt, guidance scale and latents for each image.

    Without negative prompts the negative text conditions are zeros, or the prompts' own where
    nothing is guided.
    """

    images: int
    prompts: Prompts
    negative_prompts: Prompts | None
    num_inference_steps: int
    gate_step: int
    sp_interval: int
    fi_interval: int
    warm_up: int
    guidance_scales: tuple[float, ...]
    guidance_rescale: float
    clip_skip: int
    scheduler: str
    seed: int
    height: int
    width: int
    micro_conditioning: MicroConditioning
    image: np.ndarray | None
    strength: float | None
    motion: Motion | None
    latents: np.ndarray | None
    output_type: str

    @property
    def first_step(self) -> int:
        """Steps that are left out of `num_inference_steps` because the run begins with an image."""
        if self.strength is None:
            return 0
        return self.num_inference_steps - executed_steps(self.num_inference_steps, self.strength)


def make_request(
    manifest: Manifest,
    prompt: str | Sequence[str] | None = None,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    prompt_embeds: Embeds | None = None,
    negative_prompt_embeds: Embeds | None = None,
    num_inference_steps: int | None = None,
    gate_step: int | None = None,
    sp_interval: int | None = None,
    fi_interval: int | None = None,
    warm_up: int | None = None,
    guidance_scale: float | Sequence[float] | None = None,
    guidance_rescale: float = 0.0,
    clip_skip: int = 0,
    scheduler: str | None = None,
    seed: int | None = None,
    num_images_per_prompt: int = 1,
    height: int | None = None,
    width: int | None = None,
    original_size: tuple[int, int] | None = None,
    crops_coords_top_left: tuple[int, int] | None = None,
    target_size: tuple[int, int] | None = None,
    image: Any = None,
    strength: float | None = None,
    fps: int | None = None,
    motion_bucket_id: int | None = None,
    noise_aug_strength: float | None = None,
    min_guidance_scale: float | None = None,
    latents: np.ndarray | None = None,
    output_type: str = "pil",
) -> Request:
    """Complete and check a call; see `TGatePipeline.__call__`.

    Raises:
        InvalidRequestError: names the argument and what it may be.
    """
    motion = make_motion(
        manifest,
        fps=fps,
        motion_bucket_id=motion_bucket_id,
        noise_aug_strength=noise_aug_strength,
        min_guidance_scale=min_guidance_scale,
    )
    pictures = None
    sides = manifest.size.height.max, manifest.size.width.max
    if motion is not None:
        if image is None:
            raise InvalidRequestError("image is missing: a video is drawn from one")
        pictures = load_images(image, largest=sides)
    prompts = positive(manifest, prompt, prompt_embeds, pictures)
    number = count(prompts)
    negatives = negative(manifest, negative_prompt, negative_prompt_embeds, number)
    if num_images_per_prompt < 1:
        raise InvalidRequestError(f"num_images must be at least 1, got {num_images_per_prompt}")
    defaults = manifest.defaults
    steps = defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
    sp_interval = defaults.sp_interval if sp_interval is None else sp_interval
    fi_interval = defaults.fi_interval if fi_interval is None else fi_interval
    strength = _strength(manifest, image, strength, steps)
    if gate_step is None:
        # The default gate keeps its place when fewer or more steps are executed.
        executed = steps if strength is None else executed_steps(steps, strength)
        scaled = round(defaults.gate_step * executed / defaults.num_inference_steps)
        gate_step = max(1, scaled, defaults.warm_up if warm_up is None else warm_up)
    if warm_up is None:
        warm_up = min(defaults.warm_up, max(gate_step, 0))
    try:
        check_step_plan(gate_step, sp_interval, fi_interval, warm_up)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from None
    scales = _guidance_scales(manifest, guidance_scale, number)
    if all(by_prompt_alone(manifest, scale) for scale in scales):
        negatives = None  # ignored
    name = defaults.scheduler if scheduler is None else scheduler
    if name not in manifest.samplers:
        raise InvalidRequestError(
            f"unknown scheduler {name!r}: this bundle has {', '.join(manifest.samplers)}"
        )
    largest = manifest.samplers[name].max_steps
    if not 1 <= steps <= largest:
        raise InvalidRequestError(f"steps must be 1 to {largest}, got {steps}")
    if seed is None:
        seed = secrets.randbits(32)
    if not 0 <= seed < 2**64:
        raise InvalidRequestError(f"seed must be 0 to 2^64 - 1, got {seed}")
    if output_type not in OUTPUT_TYPES:
        raise InvalidRequestError(
            f"unknown output_type {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}"
        )
    if image is not None:
        pictures = load_images(image, number, sides)
    if pictures is not None:
        height, width = _image_sides(pictures, height, width)
    height = _side("height", height, manifest.size.height, manifest.size.multiple)
    width = _side("width", width, manifest.size.width, manifest.size.multiple)
    images = number * num_images_per_prompt
    return Request(
        images=images,
        prompts=repeat(prompts, num_images_per_prompt),
        negative_prompts=None if negatives is None else repeat(negatives, num_images_per_prompt),
        num_inference_steps=steps,
        gate_step=gate_step,
        sp_interval=sp_interval,
        fi_interval=fi_interval,
        warm_up=warm_up,
        guidance_scales=tuple(np.repeat(scales, num_images_per_prompt).tolist()),
        guidance_rescale=_guidance_rescale(manifest, guidance_rescale),
        clip_skip=_clip_skip(manifest, clip_skip, prompt_embeds),
        scheduler=name,
        seed=seed,
        height=height,
        width=width,
        micro_conditioning=MicroConditioning(
            size=(height, width),
            original=_told(manifest, "original_size", original_size) or (height, width),
            crop=_told(manifest, "crops_coords_top_left", crops_coords_top_left) or (0, 0),
            target=_told(manifest, "target_size", target_size) or (height, width),
        ),
        image=None if pictures is None else np.repeat(pictures, num_images_per_prompt, axis=0),
        strength=strength,
        motion=motion,
        latents=_latents(manifest, latents, images, height, width),
        output_type=output_type,
    )


def check_split(manifest: Manifest, images: int) -> None:
    """Refuse a number of images that calls of the bundle's batch cannot make without padding.

    Raises:
        InvalidRequestError: says how many to ask for.
    """
    rest = images % manifest.batch.max  # images of the last call
    if 0 < rest < manifest.batch.min:
        raise InvalidRequestError(
            f"{images} image(s) cannot be split into batches of {manifest.batch}, which this "
            f"bundle was built for: ask for {images - rest + manifest.batch.min} in all"
        )


def executed_steps(steps: int, strength: float) -> int:
    """Return how many of the steps run when an image is noised that far, as in diffusers."""
    return min(int(steps * strength), steps)


def _strength(manifest: Manifest, image: Any, value: float | None, steps: int) -> float | None:
    """Return how much of an image is to be drawn anew; None without one, and for a video."""
    if manifest.latents.frames is not None:
        if value is not None:
            raise InvalidRequestError(f"strength {value} has no effect on a video: leave it out")
        return None
    if image is None:
        if value is not None:
            raise InvalidRequestError(f"strength {value} has no effect without an image")
        return None
    strength = DEFAULT_STRENGTH if value is None else float(value)
    if not 0 < strength <= 1:
        raise InvalidRequestError(f"strength must be above 0 and at most 1, got {strength}")
    if steps >= 1 and executed_steps(steps, strength) < 1:
        raise InvalidRequestError(
            f"strength {strength} of {steps} steps leaves no step to run: raise one of them"
        )
    return strength


def _image_sides(images: np.ndarray, height: int | None, width: int | None) -> tuple[int, int]:
    """Return the size of the images, which is the size of the run."""
    found = images.shape[1], images.shape[2]
    if (height or found[0], width or found[1]) != found:
        raise InvalidRequestError(
            f"the image is {found[1]}x{found[0]}, asked for is {width or found[1]}x"
            f"{height or found[0]}: scale or crop the image to it"
        )
    return found


def _guidance_scales(
    manifest: Manifest, value: float | Sequence[float] | None, prompts: int
) -> list[float]:
    """Return one guidance scale for each prompt."""
    given = value is not None
    if value is None:
        value = manifest.defaults.guidance_scale
    scales = [float(scale) for scale in value] if isinstance(value, Sequence) else [float(value)]
    for scale in scales:
        if not math.isfinite(scale):
            raise InvalidRequestError(f"guidance_scale must be a finite number, got {scale}")
        if given and manifest.guidance == "none" and scale > 1:
            raise InvalidRequestError(
                f"guidance_scale {scale} has no effect: this bundle was built without guidance; "
                "leave it out"
            )
    if len(scales) not in (1, prompts):
        raise InvalidRequestError(
            f"{len(scales)} guidance scales for {prompts} prompts: give one, or one each"
        )
    return scales * prompts if len(scales) == 1 else scales


def _guidance_rescale(manifest: Manifest, value: float) -> float:
    if not 0 <= value <= 1:
        raise InvalidRequestError(f"guidance_rescale must be 0 to 1, got {value}")
    takes = any(tensor.name == "guidance_rescale" for tensor in manifest.graph("full").inputs)
    if value and not takes:
        raise InvalidRequestError(
            f"guidance_rescale {value} has no effect: {_without(manifest)}; leave it out"
        )
    return float(value)


def _clip_skip(manifest: Manifest, value: int, prompt_embeds: Embeds | None) -> int:
    if value and prompt_embeds is not None:
        raise InvalidRequestError(f"clip_skip {value} has no effect on prompt_embeds: leave it out")
    if value > 0 and not manifest.clip_skips:
        raise InvalidRequestError(
            f"clip_skip {value} has no effect: a {manifest.family} bundle's text encoder cannot "
            "skip layers; leave it out"
        )
    if not 0 <= value <= manifest.clip_skips:
        raise InvalidRequestError(f"clip_skip must be 0 to {manifest.clip_skips}, got {value}")
    return value


def _without(manifest: Manifest) -> str:
    if manifest.guidance == "classifier-free":
        return f"guidance of a {manifest.family} bundle is never rescaled"
    return "this bundle was built without classifier-free guidance"


def _told(manifest: Manifest, name: str, value: tuple[int, int] | None) -> tuple[int, int] | None:
    """Check a size or a corner that only a model with SDXL's `time_ids` is told."""
    if value is None:
        return None
    if "time_ids" not in manifest.conditioning.values():
        raise InvalidRequestError(
            f"{name} is for SDXL: this bundle's family is {manifest.family}, which is not told it"
        )
    pair = tuple(value)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 0 for side in pair):
        raise InvalidRequestError(f"{name} must be two whole numbers of pixels, got {value!r}")
    return pair


def _side(name: str, value: int | None, allowed: Range, multiple: int) -> int:
    if value is None:
        return allowed.opt
    if value not in allowed:
        raise InvalidRequestError(
            f"{name} {value} does not fit: this bundle was built for {name} {allowed}"
        )
    if value % multiple:
        raise InvalidRequestError(
            f"{name} {value} is not a multiple of {multiple}: "
            f"try {value // multiple * multiple or multiple}"
        )
    return value


def _latents(
    manifest: Manifest, latents: np.ndarray | None, images: int, height: int, width: int
) -> np.ndarray | None:
    if latents is None:
        return None
    array = host_array(latents, "latents")
    space = manifest.latents
    sides = height // space.downscale, width // space.downscale
    folded = (images, space.channels, *sides)
    shape: tuple[int, ...] = folded
    if space.frames is not None:
        shape = (images, space.frames, space.channels // space.frames, *sides)
    if array.shape != shape:
        raise InvalidRequestError(
            f"latents have shape {list(array.shape)}, expected {list(shape)} for "
            f"{images} image(s) of {width}x{height}"
        )
    if not np.isfinite(array).all():
        raise InvalidRequestError("latents hold values that are not finite")
    return array.astype(np.float32).reshape(folded)
