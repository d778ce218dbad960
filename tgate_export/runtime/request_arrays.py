"""Pictures and latents that a call brings, and the size that they give it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tgate_export.bundle.manifest import Manifest, Range
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.host_arrays import host_array
from tgate_export.runtime.images import load_images


def load_pictures(
    manifest: Manifest, parameters: Mapping[str, Any], prompts: int, sides: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Return the call's pictures [prompts, H, W, 3] f32 in [0, 1], by parameter.

    Args:
        manifest: the bundle's.
        parameters: of the call, by name.
        prompts: how many there are.
        sides: height and width of the largest picture that is looked at.

    Raises:
        InvalidRequestError: a picture that is missing, or that cannot be used.
    """
    known = {name for name, entry in manifest.parameters.items() if entry.type == "image"}
    # A bundle without image-to-image is refused with how to build one; see `rebuild`.
    given = [name for name in {"image", *known} if parameters.get(name) is not None]
    if missing := sorted(manifest.pictures.difference(given)):
        raise InvalidRequestError(
            f"{missing[0]} is missing: this bundle reads a picture there", field=missing[0]
        )
    return {name: load_images(parameters[name], prompts, sides) for name in sorted(given)}


def image_sides(
    name: str, found: tuple[int, int], height: int | None, width: int | None
) -> tuple[int, int]:
    """Return the size of an image, which is the size of the run.

    Args:
        name: what the image is called.
        found: its height and width in pixels.
        height: what the call asks for, if it does.
        width: as the height.

    Raises:
        InvalidRequestError: the call asks for another size.
    """
    if (height or found[0], width or found[1]) != found:
        raise InvalidRequestError(
            f"the {name} is {found[1]}x{found[0]}, asked for is {width or found[1]}x"
            f"{height or found[0]}: scale or crop the image to it",
            field=name,
        )
    return found


def side(name: str, value: int | None, allowed: Range, multiple: int) -> int:
    """Return a height or width in pixels, the bundle's own where none is given.

    Raises:
        InvalidRequestError: the bundle was not built for it.
    """
    if value is None:
        return allowed.opt
    if value not in allowed:
        raise InvalidRequestError(
            f"{name} {value} does not fit: this bundle was built for {name} {allowed}", field=name
        )
    if value % multiple:
        raise InvalidRequestError(
            f"{name} {value} is not a multiple of {multiple}: "
            f"try {value // multiple * multiple or multiple}",
            field=name,
        )
    return value


def starting_latents(
    manifest: Manifest, latents: Any, images: int, height: int, width: int
) -> np.ndarray | None:
    """Return starting latents as graphs see them [images, C, h, w] f32; None where none are given.

    Raises:
        InvalidRequestError: another shape, or numbers that are not finite.
    """
    if latents is None:
        return None
    array = host_array(latents, "latents")
    folded = manifest.latents.shape(images, height, width)
    shape = manifest.latents.unfolded(folded)
    if array.shape != shape:
        raise InvalidRequestError(
            f"latents have shape {list(array.shape)}, expected {list(shape)} for "
            f"{images} image(s) of {width}x{height}",
            field="latents",
        )
    return _finite("latents", array).reshape(folded)


def latents_of_image(manifest: Manifest, image: Any, prompts: int) -> np.ndarray | None:
    """Return what a run begins with, if it is given as latents: one [C, h, w] f32 for each prompt.

    As in diffusers, an array with the channels of latents in the place of a picture's is taken for
    what `output_type="latent"` gives.

    Args:
        manifest: the bundle's.
        image: what the call has for its image.
        prompts: how many there are.

    Raises:
        InvalidRequestError: another number of them, or numbers that are not finite.
    """
    shape = tuple(getattr(image, "shape", ()))
    channels = manifest.latents.channels
    if manifest.latents.video or len(shape) != 4 or shape[1] != channels or shape[3] == 3:
        return None
    array = _finite("image", host_array(image, "image"))
    if len(array) not in (1, prompts):
        raise InvalidRequestError(
            f"latents of {len(array)} images for {prompts} prompts: give one, or one each",
            field="image",
        )
    return np.repeat(array, prompts, axis=0) if len(array) == 1 else array


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise InvalidRequestError(f"{name} hold values that are not finite", field=name)
    return array.astype(np.float32)
