"""What one call asks for, completed with the bundle's defaults and checked before it runs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.enlarge import enlarged_latents, enlarged_pictures
from tgate_export.runtime.guidance import by_prompt_alone
from tgate_export.runtime.hires import Hires, HiresArguments, second_pass
from tgate_export.runtime.images import load_images
from tgate_export.runtime.noise import SECOND_PASS
from tgate_export.runtime.parameter_values import (
    executed_steps,
    method_values,
    parameter_values,
)
from tgate_export.runtime.partial_run import Refined, check_parts, executed_of
from tgate_export.runtime.prompts import (
    SYNTAX,
    Embeds,
    Prompts,
    check_syntax,
    count,
    encoder_values,
    negative,
    positive,
    repeat,
)
from tgate_export.runtime.request_arrays import (
    image_sides,
    latents_of_image,
    load_pictures,
    side,
    starting_latents,
)
from tgate_export.runtime.sampler_choice import most_steps

OUTPUT_TYPES = ("pil", "np", "latent")


@dataclass(frozen=True)
class Request:
    """A checked call: one prompt, negative prompt, value and picture for each image.

    Without negative prompts the negative text conditions are zeros, or the prompts' own where
    nothing is guided.

    Attributes:
        images: how many.
        prompts: texts, or embeddings.
        negative_prompts: as the prompts.
        values: of the bundle's parameters but pictures, one for each image.
        pictures: [images, H, W, 3] f32 in [0, 1], by parameter.
        begins_with_image: the run begins with a noised image instead of with noise alone.
        seed: of the noise.
        height: pixels.
        width: pixels.
        latents: starting latents [images, C, h, w] f32 of unit variance, instead of a seed.
        output_type: "pil", "np" or "latent".
        image_latents: [images, C, h, w] f32 that the run begins with, instead of a picture that the
            VAE encodes.
        hires: the second pass, if there is one; see `passes`.
        noise_offset: 0, or `SECOND_PASS`: which of the seed's noise is the run's.
        denoising_start: part of the run after which it begins, with a sample that has the noise of
            that moment.
        denoising_end: part of the run after which it ends, with a sample that has noise left.
        refined: who went on from there, where that is known.
    """

    images: int
    prompts: Prompts
    negative_prompts: Prompts | None
    values: Mapping[str, tuple[Any, ...]]
    pictures: Mapping[str, np.ndarray]
    begins_with_image: bool
    seed: int
    height: int
    width: int
    latents: np.ndarray | None
    output_type: str
    image_latents: np.ndarray | None = None
    hires: Hires | None = None
    noise_offset: int = 0
    denoising_start: float | None = None
    denoising_end: float | None = None
    refined: Refined | None = None

    def value(self, name: str) -> Any:
        """Return the first image's value of a parameter; None for one that the bundle lacks."""
        return self.values[name][0] if name in self.values else None

    @property
    def num_inference_steps(self) -> int:
        """Denoising steps, those that are left out included."""
        return int(self.value("num_inference_steps"))

    @property
    def scheduler(self) -> str:
        """The sampler's name."""
        return str(self.value("scheduler"))

    @property
    def gate_step(self) -> int:
        """First step that is gated."""
        return int(self.value("gate_step"))

    @property
    def guidance_scales(self) -> tuple[float, ...]:
        """Each image's; 1 where the bundle has no guidance."""
        return self.values.get("guidance_scale", (1.0,) * self.images)

    @property
    def first_step(self) -> int:
        """Steps that are left out of `num_inference_steps` because the run begins with an image."""
        if not self.begins_with_image:
            return 0
        steps = self.num_inference_steps
        return steps - executed_steps(steps, self.value("strength"))

    @property
    def encodes_image(self) -> bool:
        """Whether the run begins with an image that the VAE encodes."""
        if self.hires is not None:  # of a second pass, which may not have its image yet
            return self.begins_with_image and self.hires.in_pixels
        return self.begins_with_image and self.image_latents is None

    @property
    def passes(self) -> tuple[Request, ...]:
        """The runs that it takes, one after another: itself, or a small one and a large one.

        The large one gets what it begins with by `after`.
        """
        hires = self.hires
        if hires is None:
            return (self,)
        first = replace(self, hires=None, output_type="np" if hires.in_pixels else "latent")
        second = replace(
            self,
            values={**self.values, **{n: (v,) * self.images for n, v in hires.values.items()}},
            pictures={
                name: enlarged_pictures(found, hires.height, hires.width)
                for name, found in self.pictures.items()
            },
            begins_with_image=True, height=hires.height, width=hires.width, latents=None,
            noise_offset=SECOND_PASS,
        )  # fmt: skip
        return first, second

    def after(self, made: np.ndarray, downscale: int) -> Request:
        """Return the second pass with what it begins with.

        Args:
            made: by the first pass: latents [images, C, h, w], or pictures [images, H, W, 3].
            downscale: pixels of a side for one latent.
        """
        assert self.hires is not None  # it is the second pass
        if self.hires.in_pixels:
            pictures = enlarged_pictures(made, self.height, self.width)
            return replace(self, pictures={**self.pictures, "image": pictures})
        sides = self.height // downscale, self.width // downscale
        return replace(self, image_latents=enlarged_latents(made, *sides, self.hires.upscaler))


def make_request(
    manifest: Manifest,
    prompt: str | Sequence[str] | None = None,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    prompt_embeds: Embeds | None = None,
    negative_prompt_embeds: Embeds | None = None,
    seed: int | None = None,
    num_images_per_prompt: int = 1,
    height: int | None = None,
    width: int | None = None,
    latents: np.ndarray | None = None,
    output_type: str = "pil",
    hires: float | str | None = None,
    hires_strength: float | None = None,
    hires_steps: int | None = None,
    hires_upscaler: str | None = None,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
    **parameters: Any,
) -> Request:
    """Complete and check a call; see `TGatePipeline.__call__`.

    Raises:
        InvalidRequestError: names the argument and what it may be.
    """
    sides = manifest.size.height.max, manifest.size.width.max
    image = parameters.get("image")
    frame = None
    if not manifest.takes_prompt:
        if image is None:
            raise InvalidRequestError("image is missing: a video is made from one", field="image")
        frame = load_images(image, largest=sides)
        parameters["image"] = frame  # so that no file is decoded twice
    prompts = positive(manifest, prompt, prompt_embeds, frame)
    number = count(prompts)
    negatives = negative(manifest, negative_prompt, negative_prompt_embeds, number)
    if num_images_per_prompt < 1:
        raise InvalidRequestError(
            f"num_images must be at least 1, got {num_images_per_prompt}",
            field="num_images_per_prompt",
        )
    values = parameter_values(manifest, parameters, number)
    check_syntax(values, prompts, "prompt")
    check_syntax(values, negatives, "negative_prompt")
    if prompt_embeds is not None:
        for name, each in encoder_values(manifest, values, negative=False).items():
            if parameters.get(name) is not None and any(each):
                raise InvalidRequestError(
                    f"{name} {each[0]} has no effect on prompt_embeds: leave it out", field=name
                )
        if negative_prompt is None and parameters.get(SYNTAX) not in (None, "plain"):
            raise InvalidRequestError(
                f"{SYNTAX} {parameters[SYNTAX]} has no effect on prompt_embeds: leave it out",
                field=SYNTAX,
            )
    image_latents = latents_of_image(manifest, image, number)
    if image_latents is not None:
        del parameters["image"]
    begins_with_image = image is not None and "image" not in manifest.pictures
    steps = values["num_inference_steps"][0]
    largest = most_steps(manifest, values["scheduler"][0])
    if not 1 <= steps <= largest:
        raise InvalidRequestError(
            f"steps must be 1 to {largest}, got {steps}", field="num_inference_steps"
        )
    check_parts(denoising_start, denoising_end, parameters, begins_with_image=begins_with_image)
    by_strength = begins_with_image and denoising_start is None
    if "strength" in values and not by_strength:
        values["strength"] = (None,) * number
    executed = executed_of(values, steps, denoising_start, denoising_end, by_strength=by_strength)
    values |= {
        name: (value,) * number
        for name, value in method_values(manifest, parameters, steps, executed).items()
    }
    scales = values.get("guidance_scale", ())
    if scales and all(by_prompt_alone(manifest, scale) for scale in scales):
        negatives = None  # ignored
    if seed is None:
        seed = secrets.randbits(32)
    if not 0 <= seed < 2**64:
        raise InvalidRequestError(f"seed must be 0 to 2^64 - 1, got {seed}", field="seed")
    if output_type not in OUTPUT_TYPES:
        raise InvalidRequestError(
            f"unknown output_type {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}",
            field="output_type",
        )
    pictures = load_pictures(manifest, parameters, number, sides)
    for name, found in pictures.items():
        height, width = image_sides(name, (found.shape[1], found.shape[2]), height, width)
    if image_latents is not None:
        downscale = manifest.latents.downscale
        found_sides = image_latents.shape[2] * downscale, image_latents.shape[3] * downscale
        height, width = image_sides("image", found_sides, height, width)
    height = side("height", height, manifest.size.height, manifest.size.multiple)
    width = side("width", width, manifest.size.width, manifest.size.multiple)
    given = HiresArguments(hires, hires_strength, hires_steps, hires_upscaler)
    second = None
    if given.given():
        if begins_with_image or not manifest.takes_prompt or denoising_end is not None:
            raise InvalidRequestError(
                "hires is for whole runs that begin with noise: leave it out", field="hires"
            )
        second = second_pass(manifest, given, values, (height, width), largest)
    images = number * num_images_per_prompt
    return Request(
        images=images,
        prompts=repeat(prompts, num_images_per_prompt),
        negative_prompts=None if negatives is None else repeat(negatives, num_images_per_prompt),
        values={
            name: tuple(value for value in each for _ in range(num_images_per_prompt))
            for name, each in values.items()
        },
        pictures={
            name: np.repeat(found, num_images_per_prompt, axis=0)
            for name, found in pictures.items()
        },
        begins_with_image=begins_with_image,
        seed=int(seed),
        height=height,
        width=width,
        latents=starting_latents(manifest, latents, images, height, width),
        output_type=output_type,
        image_latents=None
        if image_latents is None
        else np.repeat(image_latents, num_images_per_prompt, axis=0),
        hires=second,
        noise_offset=0 if denoising_start is None else SECOND_PASS,  # other noise than before it
        denoising_start=denoising_start,
        denoising_end=denoising_end,
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
            f"bundle was built for: ask for {images - rest + manifest.batch.min} in all",
            field="num_images_per_prompt",
        )
