"""What a file says of how it was made is read as it was written, or refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.runtime.test_picture_file import HOSTILE, PICTURE
from tests.runtime.test_request import manifest, request
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.picture_file import encode_picture, made_with
from tgate_export.runtime.picture_record import PictureRecord, read_record

WHOLE = {
    "version": "1", "model": "m", "family": "f", "prompt": "a", "negative_prompt": None, "seed": 3,
    "width": 16, "height": 8, "left_out": [],
    "parameters": {"guidance_scale": 4.5, "pair": [1, 2], "strength": None},
}  # fmt: skip


def saying(path: Path, text: str) -> Path:
    texts = PngInfo()
    texts.add_text("tgate-export", text)
    PICTURE.save(path, pnginfo=texts)
    return path


@pytest.mark.parametrize("prompt", HOSTILE)
def test_what_was_written_is_read(tmp_path: Path, prompt: str) -> None:
    asked = request([prompt, "another"], seed=2**64 - 1)
    (file := tmp_path / "x.png").write_bytes(encode_picture(PICTURE, "PNG", manifest(), asked, 0))
    made, found = made_with(manifest(), asked, 0), read_record(file)
    assert found.prompt == prompt
    assert found.seed == made["seed"] == 2**64 - 1
    assert (found.width, found.height) == (asked.width, asked.height)
    assert found.parameters == {n: v for n, v in made["parameters"].items() if v is not None}
    assert found.pictures == ()


def test_lists_are_pairs_and_nothing_is_left_out(tmp_path: Path) -> None:
    found = read_record(saying(tmp_path / "x.png", json.dumps(WHOLE)))
    assert found == PictureRecord(
        "m", "a", None, 3, 16, 8, {"guidance_scale": 4.5, "pair": (1, 2)}, ()
    )
    second = {"width": 32, "height": 16, "strength": 0.5, "steps": 9, "upscaler": "latent"}
    twice = read_record(saying(tmp_path / "z.png", json.dumps(WHOLE | {"hires": second})))
    assert twice.hires == {
        "hires": "32x16", "hires_strength": 0.5, "hires_steps": 9, "hires_upscaler": "latent",
    }  # fmt: skip
    pictured = json.dumps(WHOLE | {"left_out": ["image"]})
    assert read_record(saying(tmp_path / "y.png", pictured)).pictures == ("image",)


@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "negative_prompt_embeds"])
def test_arrays_cannot_be_made_again(tmp_path: Path, name: str) -> None:
    file = saying(tmp_path / "x.png", json.dumps(WHOLE | {"left_out": ["image", name]}))
    with pytest.raises(InvalidRequestError, match=rf"it was made from {name}, which it does not"):
        read_record(file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[1]", "it is no JSON object"),
        ("[" * 10_000, "nested"),
        (json.dumps(WHOLE)[:-1], "Expecting"),
        (json.dumps(WHOLE).replace("4.5", "NaN"), "NaN is not a finite number"),
        (json.dumps(WHOLE).replace('"width"', '"seed"'), "'seed' is there twice"),
        *[(json.dumps({k: v for k, v in WHOLE.items() if k != name}), f"'{name}' is missing")
          for name in ("model", "prompt", "seed", "width", "parameters", "left_out")],
        *[(json.dumps(WHOLE | {name: value}), f"{name} is no")
          for name, value in (("seed", "3"), ("seed", True), ("prompt", 3), ("width", 1.5),
                              ("parameters", []), ("left_out", {}), ("hires", 2))],
        (json.dumps(WHOLE | {"hires": {"width": 3}}), "'height' is missing"),
    ],
)  # fmt: skip
def test_damaged(tmp_path: Path, text: str, reason: str) -> None:
    file = saying(tmp_path / "x.png", text)
    with pytest.raises(InvalidRequestError) as caught:
        read_record(file)
    message = str(caught.value)
    assert message.startswith(f"what {file} says of how it was made is damaged: ")
    assert reason in message
    assert "\n" not in message


def jpeg(path: Path) -> None:
    PICTURE.save(path, "JPEG")


def truncated(path: Path) -> None:
    saying(path, json.dumps(WHOLE))
    path.write_bytes(path.read_bytes()[:-30])


def zeros(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(300 * 2**20)


CASES: list[tuple[Any, str]] = [
    (lambda path: PICTURE.save(path), "does not say how it was made"),
    (jpeg, "does not say how it was made"),
    (lambda path: path.write_text("text"), "does not say how it was made"),
    (lambda path: None, "No such file"),
    (lambda path: path.mkdir(), "Is a directory"),
    (lambda path: os.mkfifo(path), "no regular file"),
    (zeros, "more than 256 MiB"),
    (truncated, "cannot read"),
]


@pytest.mark.parametrize(("make", "reason"), CASES)
def test_other_files(tmp_path: Path, make: Any, reason: str) -> None:
    make(file := tmp_path / "x.png")
    with pytest.raises(InvalidRequestError) as caught:
        read_record(file)
    assert str(file) in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_behind_the_pixels(tmp_path: Path) -> None:
    """Where Pillow puts none, but other programs may."""
    whole = saying(tmp_path / "x.png", json.dumps(WHOLE)).read_bytes()
    begin = whole.index(b"tEXttgate-export") - 4
    end = begin + 12 + int.from_bytes(whole[begin : begin + 4], "big")
    last = whole.index(b"IEND") - 4
    moved = whole[:begin] + whole[end:last] + whole[begin:end] + whole[last:]
    (tmp_path / "y.png").write_bytes(moved)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "y.png")), np.asarray(PICTURE))
    assert read_record(tmp_path / "y.png") == read_record(tmp_path / "x.png")
