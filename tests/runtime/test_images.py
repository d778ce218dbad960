"""Images that a call brings: what is taken, and what is refused by name."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.utils import load_image as diffusers_image
from PIL import Image, ImageFile

from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.images import load_image, load_images, picture_sides

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


@pytest.mark.parametrize("orientation", range(10))
def test_all_orientations_of_files_and_of_pictures(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "x.png", exif=exif)
    theirs = np.asarray(diffusers_image(str(tmp_path / "x.png"))).astype(np.float32) / 255
    for value in (tmp_path / "x.png", Image.open(tmp_path / "x.png")):
        assert np.array_equal(load_image(value), theirs)
    assert picture_sides(tmp_path / "x.png") == theirs.shape[:2]


def entry(tag: int, kind: int, content: bytes) -> bytes:
    """Return an entry of an EXIF directory, of one value."""
    return struct.pack("<HHI", tag, kind, 1) + content.ljust(4, b"\0")


TURN = entry(0x0112, 3, b"\x06")  # to be turned by a quarter


@pytest.mark.parametrize(
    ("entries", "count", "turned"),
    [
        (b"\x12\x01\x03\x00\x01\x00\x00\x00\x06", 1, False),  # cut off
        (entry(0x011A, 5, b"\x1a\0\0\0") + bytes(4) + b"\x48" + bytes(7), 1, False),  # 72 / 0
        (entry(0x0112, 2, b"6ab"), 1, False),  # a text
        (TURN + entry(0x011A, 5, b"\xff\xff\xff\x7f"), 2, True),  # what lies nowhere
        (TURN + entry(0x011A, 5, b"\x26\0\0\0") + bytes(4) + b"\x48" + bytes(7), 2, True),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_broken_exif_data(tmp_path: Path, entries: bytes, count: int, turned: bool) -> None:
    """A picture is as good as its pixels; `exif_transpose` fails for some of these."""
    data = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count) + entries
    data += bytes(4) if len(entries) >= 12 else b""
    Image.fromarray(PIXELS).save(tmp_path / "x.jpg", exif=data)
    Image.fromarray(PIXELS).save(tmp_path / "plain.jpg")
    expected = load_image(tmp_path / "plain.jpg")
    if turned:
        expected = np.rot90(expected, k=-1)
    assert np.array_equal(load_image(tmp_path / "x.jpg"), expected)
    assert np.array_equal(load_image(Image.open(tmp_path / "x.jpg")), expected)


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


def pictures() -> dict[str, Image.Image]:
    """Files of every kind that people have, by name."""
    rng = np.random.default_rng(1)
    rgb = Image.fromarray(rng.integers(0, 256, (16, 12, 3), dtype=np.uint8))
    transparent = rgb.copy()
    transparent.putalpha(Image.fromarray(rng.integers(0, 256, (16, 12), dtype=np.uint8)))
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    see_through = palette.copy()
    see_through.info["transparency"] = 3
    grey16 = Image.fromarray(rng.integers(0, 600, (16, 12), dtype=np.uint16))
    return {
        "rgb.png": rgb, "rgba.png": transparent, "l.png": rgb.convert("L"),
        "1.png": rgb.convert("1"),
        "la.png": transparent.convert("LA"), "p.png": palette, "p_transparent.png": see_through,
        "grey16.png": grey16, "rgb.jpeg": rgb, "l.jpeg": rgb.convert("L"),
        "cmyk.jpeg": rgb.convert("CMYK"), "rgba.webp": transparent, "p.gif": palette,
        "p_transparent.gif": see_through, "l.bmp": rgb.convert("L"), "rgb.bmp": rgb,
    }  # fmt: skip


@pytest.mark.parametrize("name", pictures())
def test_files_of_every_kind_are_what_diffusers_makes_of_them(tmp_path: Path, name: str) -> None:
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.utils import load_image as theirs

    file = tmp_path / name
    pictures()[name].save(file)
    processor = VaeImageProcessor(vae_scale_factor=4, do_normalize=False)
    expected = processor.preprocess(theirs(str(file)))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(load_image(file), expected)


def test_a_file_of_16_bit_colours(tmp_path: Path) -> None:
    """Pillow writes none."""
    from diffusers.utils import load_image as theirs

    colours = np.random.default_rng(2).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    file = tmp_path / "x.png"
    file.write_bytes(png(7, 5, rows, depth=16))
    assert np.array_equal(load_image(file), np.asarray(theirs(str(file)), np.float32) / 255)
    assert np.abs(load_image(file) - colours / 65535).max() < 1 / 255


def png(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    """A PNG in RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + crc.to_bytes(4, "big")

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_self: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(Image.Image, "load", load)
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("sides", [(12_000, 7_000), (60_000, 60_000), (64, 129), (129, 64)])
def test_a_size_that_cannot_be_used_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sides: tuple[int, int]
) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(png(*sides, b"\0"))
    decodes_nothing(monkeypatch)
    with pytest.raises(InvalidRequestError, match=r"x\.png (is|cannot be read: Image size)"):
        load_image(file, (128, 64))


def test_a_bundle_says_how_large_a_file_may_be(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tgate_export.bundle.integrity import read_manifest
    from tgate_export.runtime.request import make_request

    manifest = read_manifest(tiny_bundle).model_copy(deep=True)
    manifest.graphs["vae_encoder"] = manifest.graphs["vae_decoder"]
    (tmp_path / "x.png").write_bytes(png(17, 16, b"\0"))
    decodes_nothing(monkeypatch)
    with pytest.raises(InvalidRequestError, match=r"is 17x16, 16x16 is the most"):
        make_request(manifest, "a", image=tmp_path / "x.png", strength=0.5)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 64
%%EndComments
(%pipe%id) (r) file
showpage
%%EOF
"""


def test_only_some_formats_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(EPS)  # Pillow runs Ghostscript for it
    with pytest.raises(InvalidRequestError, match="it is none of PNG, JPEG, WEBP, BMP, GIF"):
        load_image(tmp_path / "x.png")
    Image.fromarray(PIXELS).save(tmp_path / "x.tga")
    with pytest.raises(InvalidRequestError, match="it is none of PNG"):
        load_image(tmp_path / "x.tga")


def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(InvalidRequestError, match="is no regular file"):
        load_image(tmp_path / "x.png")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in pictures() if name != "rgb.bmp"])
def test_broken_files_are_errors_of_ours(tmp_path: Path, name: str) -> None:
    file, rng = tmp_path / name, np.random.default_rng(0)
    pictures()[name].save(file)
    content = file.read_bytes()
    refused = 0
    for cut in rng.integers(1, len(content), 60):
        broken = bytearray(content)
        for place in rng.integers(0, min(len(broken), 200), 4):
            broken[place] = rng.integers(256)
        file.write_bytes(broken[:cut] if cut % 3 == 0 else broken)
        try:
            load_image(file)
        except InvalidRequestError:
            refused += 1
    assert refused > 10


def test_an_array_that_is_too_large_is_not_converted() -> None:
    """It would be four times as large: this one 48 GB, without a byte of its own."""
    huge = np.broadcast_to(np.uint8(0), (10**5, 40_000, 3))
    with pytest.raises(InvalidRequestError, match="image is 40000x100000, 64x32 is the most that"):
        load_images([huge], 1, (32, 64))
