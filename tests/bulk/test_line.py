"""A line of a file of prompts: what it may say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.manifest import VALID, WHERE
from tgate_export.bulk.line import Line, parse_line
from tgate_export.bulk.settings import BulkSettings
from tgate_export.bundle.manifest_reader import parse_manifest
from tgate_export.common.errors import InvalidRequestError

MANIFEST = parse_manifest(json.dumps(VALID), WHERE)


def parsed(settings: BulkSettings, number: int = 7, **entry: Any) -> Line:
    return parse_line(json.dumps(entry).encode(), number, settings, MANIFEST)


def test_what_is_left_out_is_the_runs(settings: BulkSettings) -> None:
    settings = replace(settings, defaults={"num_inference_steps": 9, "negative_prompt": "dull"})
    line = parsed(settings, prompt="a", guidance_scale=2)
    assert (line.number, line.id) == (7, 7)
    assert line.arguments == {
        "prompt": "a", "seed": 107, "num_inference_steps": 9, "negative_prompt": "dull",
        "guidance_scale": 2,
    }  # fmt: skip


def test_a_line_has_its_own(settings: BulkSettings) -> None:
    settings = replace(settings, defaults={"num_inference_steps": 9, "negative_prompt": "dull"})
    line = parsed(
        settings, id="x", prompt="a", negative_prompt="", seed=2**64 - 1, steps=3, width=64
    )
    assert line.id == "x"
    assert line.arguments == {
        "prompt": "a", "seed": 2**64 - 1, "num_inference_steps": 3, "negative_prompt": "",
        "width": 64,
    }  # fmt: skip


def test_both_names_of_a_parameter(settings: BulkSettings) -> None:
    by_short = parsed(settings, prompt="a", steps=3).arguments
    assert by_short == parsed(settings, prompt="a", num_inference_steps=3).arguments
    with pytest.raises(InvalidRequestError, match="steps and num_inference_steps are the same"):
        parsed(settings, prompt="a", steps=3, num_inference_steps=3)


def test_a_second_pass(settings: BulkSettings) -> None:
    line = parsed(settings, prompt="a", hires="32x24", hires_upscaler="lanczos")
    assert line.arguments["hires"] == "32x24"
    assert line.arguments["hires_upscaler"] == "lanczos"


def test_null_is_as_if_it_were_not_there(settings: BulkSettings) -> None:
    bare = parsed(settings, prompt="a")
    assert parsed(settings, prompt="a", id=None, seed=None, steps=None, image=None) == bare


def test_seeds_wrap_around(settings: BulkSettings) -> None:
    assert parsed(replace(settings, seed=2**64 - 1), 3, prompt="a").arguments["seed"] == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "it is no JSON: "),
        (b"\xff{}", "it is no JSON: 'utf-8' codec"),
        (b'\xef\xbb\xbf{"prompt": "a"}', "it is no JSON: Unexpected UTF-8 BOM"),
        (b'{"prompt": "a", "prompt": "b"}', "the key 'prompt' is there twice"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "it is no JSON: NaN is not"),
        (b"[" * 100, "it is no JSON: it is nested"),
        (b'"a"', 'it is no JSON object, such as {"prompt": "a red circle"}'),
        (b"{}", "prompt is missing"),
        (b'{"prompt": null}', "prompt is missing"),
        (b'{"prompt": ["a"]}', "prompt must be a text, got \\['a'\\]"),
        (b'{"prompt": "a", "negative_prompt": 1}', "negative_prompt must be a text, got 1"),
        (b'{"prompt": "a", "seed": "1"}', "seed must be a whole number, got '1'"),
        (b'{"prompt": "a", "seed": true}', "seed must be a whole number, got True"),
        (b'{"prompt": "a", "width": 16.0}', "width must be a whole number, got 16.0"),
        (b'{"prompt": "a", "id": ""}', "id must have 1 to 200 characters"),
        (b'{"prompt": "a", "id": 1.5}', "id must be a text or a whole number, got 1.5"),
        (
            b'{"prompt": "a", "promt": "b"}',
            "unknown key 'promt': did you mean prompt\\? There are ",
        ),
        (b'{"prompt": "a", "output_type": "np"}', "unknown key 'output_type': there are prompt, "),
        (b'{"prompt": "a", "image": 1}', "image must be the name of a file, got 1"),
        (b'{"prompt": "a", "image": "x\\u0000"}', "image 'x.x00' is no file"),
    ],
)
def test_what_is_refused(settings: BulkSettings, text: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        parse_line(text, 1, settings, MANIFEST)


def test_pictures_are_in_their_folder(settings: BulkSettings, tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    settings = replace(settings, image_folder=tmp_path / "in")
    line = parsed(settings, prompt="a", image="a/../x.png")
    assert line.arguments["image"] == tmp_path / "in" / "x.png"
    inside = str(tmp_path / "in" / "x.png")
    assert parsed(settings, prompt="a", image=inside).arguments["image"] == Path(inside)
    for name in ("../x.png", "/etc/passwd", "link/x.png", "a/../../in2/x.png"):
        with pytest.raises(InvalidRequestError, match=r"is not in the folder .*image_folder"):
            parsed(settings, prompt="a", image=name)
