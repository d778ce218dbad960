"""Images that a call brings, checked before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tgate_export.errors import InvalidRequestError

if TYPE_CHECKING:
    from PIL import Image


def load_image(value: Any) -> np.ndarray:
    """Return an image as an array [H, W, 3] f32 in [0, 1].

    Nothing is converted: what a grey, transparent or 16-bit picture is in RGB is for the caller
    to decide.

    Args:
        value: a file's path, a PIL image in RGB, or an array [H, W, 3]: 8-bit, or floats in [0, 1].

    Raises:
        InvalidRequestError: says what the image is, and what it should be.
    """
    if isinstance(value, str | Path):
        value = _open(Path(value))
    mode = getattr(value, "mode", None)  # of a PIL image
    if mode is not None:
        if mode != "RGB":
            raise InvalidRequestError(
                f"image has mode {mode}, not RGB: convert it first, as with image.convert('RGB')"
            )
    elif not isinstance(value, np.ndarray):
        raise InvalidRequestError(
            f"image is a {type(value).__name__}: give a file, a PIL image, or an array [H, W, 3]"
        )
    array = np.asarray(value)
    if array.ndim != 3 or array.shape[2] != 3:
        raise InvalidRequestError(f"image has shape {list(array.shape)}, expected [H, W, 3]")
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind != "f":
        raise InvalidRequestError(
            f"image is an array of {array.dtype}: give uint8, or floats in [0, 1]"
        )
    # Not min() < 0: that would let NaN pass.
    if not (array.size and array.min() >= 0 and array.max() <= 1):
        raise InvalidRequestError("image has values that are not in [0, 1]")
    return array.astype(np.float32)


def load_images(value: Any, prompts: int | None = None) -> np.ndarray:
    """Return an image for each prompt [prompts, H, W, 3] f32 in [0, 1].

    Args:
        value: one image for all prompts, or a sequence of one each; see `load_image`.
        prompts: how many there are; None for as many as there are images.

    Raises:
        InvalidRequestError: an image that cannot be used, images of different sizes, or another
            number of them.
    """
    several = isinstance(value, Sequence) and not isinstance(value, str)
    if isinstance(value, np.ndarray) and value.ndim == 4:
        several = True
    images = [load_image(image) for image in value] if several else [load_image(value)]
    if not images:
        raise InvalidRequestError("image is an empty list: give one, or one each")
    prompts = len(images) if prompts is None else prompts
    if len(images) not in (1, prompts):
        raise InvalidRequestError(
            f"{len(images)} images for {prompts} prompts: give one, or one each"
        )
    for image in images:
        if image.shape != images[0].shape:
            sizes = " and ".join(f"{i.shape[1]}x{i.shape[0]}" for i in (images[0], image))
            raise InvalidRequestError(f"images of one call need one size, these are {sizes}")
    return np.stack(images * prompts if len(images) == 1 else images)


def _open(path: Path) -> Image.Image:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise InvalidRequestError(f"image {path} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidRequestError(f"image {path} cannot be read: {error}") from None
