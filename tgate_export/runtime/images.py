"""Images that a call brings, checked before it runs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tgate_export.common.errors import InvalidRequestError, first_line
from tgate_export.common.json_file import read_regular

if TYPE_CHECKING:
    from PIL import Image

# Pillow reads some forty formats, and runs other programs for some.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_FILE_BYTES = 256 * 2**20
Sides = tuple[int, int]  # height, width
_ORIENTATION = 0x0112
# `Image.Transpose` for the orientations 2 to 8.
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270",
          "TRANSVERSE", "ROTATE_90")  # fmt: skip
_QUARTERS = range(5, 9)  # those that make the height of the width
ANY_SIDES: Sides = (4096, 4096)


def load_image(value: Any, largest: Sides = ANY_SIDES) -> np.ndarray:
    """Return an image as an array [H, W, 3] f32 in [0, 1].

    A file is converted as `load_image` of diffusers does, a PIL image is only turned upright: what
    a grey, transparent or 16-bit picture is in RGB is for the caller to decide.

    Args:
        value: the path of a file in one of `FORMATS`, a PIL image in RGB, or an array [H, W, 3]:
            8-bit, or floats in [0, 1].
        largest: height and width of the largest image that is looked at.

    Raises:
        InvalidRequestError: says what the image is, and what it should be.
    """
    if isinstance(value, str | Path):
        value = np.asarray(decode_image(_read(Path(value)), Path(value), largest))
    mode = getattr(value, "mode", None)  # of a PIL image
    if mode is not None:
        if mode != "RGB":
            raise InvalidRequestError(
                f"image has mode {mode}, not RGB: convert it first, as with image.convert('RGB')"
            )
        with _our_errors("given"):
            value = np.asarray(_upright(value))  # an opened file is decoded only now
    elif not isinstance(value, np.ndarray):
        raise InvalidRequestError(
            f"image is a {type(value).__name__}: give a file, a PIL image, or an array [H, W, 3]"
        )
    array = np.asarray(value)
    if array.ndim != 3 or array.shape[2] != 3:
        raise InvalidRequestError(f"image has shape {list(array.shape)}, expected [H, W, 3]")
    _check_sides("image", array.shape[:2], largest)  # before it is made four times as large
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


def load_images(value: Any, prompts: int | None = None, largest: Sides = ANY_SIDES) -> np.ndarray:
    """Return an image for each prompt [prompts, H, W, 3] f32 in [0, 1].

    Args:
        value: one image for all prompts, or a sequence of one each; see `load_image`.
        prompts: how many there are; None for as many as there are images.
        largest: see `load_image`.

    Raises:
        InvalidRequestError: an image that cannot be used, images of different sizes, or another
            number of them.
    """
    several = isinstance(value, Sequence) and not isinstance(value, str)
    if isinstance(value, np.ndarray) and value.ndim == 4:
        several = True
    images = [load_image(image, largest) for image in (value if several else [value])]
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


def decode_image(content: bytes, name: str | Path, largest: Sides = ANY_SIDES) -> Image.Image:
    """Return a file's picture as `load_image` of diffusers does: upright, in RGB, without alpha.

    A grey picture of 16 bits is cut to 8, not scaled, as there.

    Args:
        content: of a file in one of `FORMATS`.
        name: of the file, for errors.
        largest: sides of the largest picture that is decoded.

    Raises:
        InvalidRequestError: it is no such file, or larger.
    """
    picture = _decode(content, name, largest)
    with _our_errors(name):
        return _upright(picture).convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF data says, whatever else is in there.

    `ImageOps.exif_transpose` also writes the data back without that entry, which fails for much of
    what cameras and editors leave behind.
    """
    from PIL import Image

    turns = dict(enumerate(_TURNS, start=2))
    try:
        orientation: Any = picture.getexif().get(_ORIENTATION)
        turn = turns.get(orientation)
    except Exception:  # it cannot be read at all: as viewers show it
        return picture
    return picture if turn is None else picture.transpose(Image.Transpose[turn])


def picture_sides(path: Path, largest: Sides = ANY_SIDES) -> Sides:
    """Return height and width of a file, upright, without decoding it.

    Raises:
        InvalidRequestError: it is none in one of `FORMATS`, or larger than `largest`.
    """
    picture = _opened(_read(path), path, largest)
    try:
        turned: Any = picture.getexif().get(_ORIENTATION)
    except Exception:  # as it is used: not turned
        turned = None
    width, height = picture.size
    return (width, height) if turned in _QUARTERS else (height, width)


def _decode(content: bytes, name: Path | str, largest: Sides) -> Image.Image:
    picture = _opened(content, name, largest)
    with _our_errors(name):
        picture.load()
    return picture


def _opened(content: bytes, name: Path | str, largest: Sides) -> Image.Image:
    """Open a file and look at its size: a few bytes can be a picture of gigabytes."""
    from PIL import Image

    with _our_errors(name):
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    _check_sides(f"image {name}", (picture.height, picture.width), largest)
    return picture


def _check_sides(name: str, sides: Sides, largest: Sides) -> None:
    # It may have to be turned by a quarter.
    if min(sides) > min(largest) or max(sides) > max(largest):
        raise InvalidRequestError(
            f"{name} is {sides[1]}x{sides[0]}, {largest[1]}x{largest[0]} is the most that "
            "can be used: scale or crop the image to it"
        )


def _read(path: Path) -> bytes:
    with _our_errors(path):
        return read_regular(path, MAX_FILE_BYTES)


@contextmanager
def _our_errors(path: Path | str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InvalidRequestError(f"image {path} does not exist") from None
    except Exception as error:  # broken files make Pillow raise nearly anything
        reason = first_line(error)
        if type(error).__name__ == "UnidentifiedImageError":
            reason = f"it is none of {', '.join(FORMATS)}"
        raise InvalidRequestError(f"image {path} cannot be read: {reason}") from None
