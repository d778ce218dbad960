"""Images that a call brings: what is taken, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tgate_export.errors import InvalidRequestError
from tgate_export.runtime.images import load_image, load_images

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def test_files_pictures_and_arrays_are_the_same_image(tmp_path: Path) -> None:
    picture = Image.fromarray(PIXELS)
    picture.save(tmp_path / "x.png")
    expected = PIXELS.astype(np.float32) / 255
    for value in (tmp_path / "x.png", str(tmp_path / "x.png"), picture, PIXELS, expected):
        found = load_image(value)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected)


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(PIXELS).save(tmp_path / "x.png", exif=exif)
    expected = np.rot90(PIXELS, k=-1).astype(np.float32) / 255
    assert np.array_equal(load_image(tmp_path / "x.png"), expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Image.fromarray(PIXELS).convert("RGBA"), "image has mode RGBA, not RGB: convert"),
        (Image.fromarray(PIXELS).convert("L"), "image has mode L, not RGB"),
        (7, "image is a int: give a file"),
        (PIXELS[:, :, 0], r"image has shape \[4, 6\], expected \[H, W, 3\]"),
        (PIXELS[:, :, :2], r"image has shape \[4, 6, 2\]"),
        (PIXELS.astype(np.int64), "array of int64: give uint8, or floats"),
        (PIXELS.astype(np.float32), r"values that are not in \[0, 1\]"),
        (np.full((4, 6, 3), np.nan), r"values that are not in \[0, 1\]"),
        (np.zeros((0, 6, 3)), r"values that are not in \[0, 1\]"),
        ("/nowhere/x.png", "image /nowhere/x.png does not exist"),
    ],
)
def test_what_is_no_image_is_refused(value: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        load_image(value)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_file_that_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=r"x\.png cannot be read"):
        load_image(file)


def test_a_truncated_picture_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.fromarray(np.tile(PIXELS, (50, 50, 1))).save(file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InvalidRequestError, match=r"x\.png cannot be read"):
        load_image(file)


def test_one_image_for_all_prompts_or_one_each() -> None:
    other = PIXELS[::-1]
    assert np.array_equal(load_images(PIXELS, 2), load_images([PIXELS, PIXELS], 2))
    assert np.array_equal(
        load_images(np.stack([PIXELS, other]), 2), load_images([PIXELS, other], 2)
    )
    with pytest.raises(InvalidRequestError, match="2 images for 3 prompts"):
        load_images([PIXELS, other], 3)
    with pytest.raises(InvalidRequestError, match="one size, these are 6x4 and 3x4"):
        load_images([PIXELS, other[:, :3]], 2)
    with pytest.raises(InvalidRequestError, match="image is an empty list"):
        load_images([], 2)
