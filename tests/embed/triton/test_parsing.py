"""A request's tensors: what they mean, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tgate_export.bundle.integrity import read_manifest
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.embed.triton.interface import FORMATS, arguments, inputs, single
from tgate_export.embed.triton.parsing import Call
from tgate_export.embed.triton.parsing import parse as parse_tensors
from tgate_export.runtime.request import make_request
from tgate_export.runtime.serving import MAX_TEXT_BYTES

MAX_IMAGES = 64


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return read_manifest(tiny_bundle)


def parse(manifest: Manifest, tensors: dict[str, np.ndarray], most: int = MAX_IMAGES) -> Call:
    return parse_tensors(manifest, tensors, most)


def texts(*values: str | bytes) -> np.ndarray:
    raw = [value if isinstance(value, bytes) else value.encode() for value in values]
    return np.array(raw, dtype=np.object_)


def one(value: Any, dtype: Any = np.float32) -> np.ndarray:
    return np.array([value], dtype)


PROMPT = {"prompt": texts("a red circle")}


def test_only_a_prompt_is_needed(manifest: Manifest) -> None:
    call = parse(manifest, {**PROMPT, "seed": one(2**64 - 1, np.uint64)})
    expected = make_request(manifest, "a red circle", seed=2**64 - 1, output_type="np")
    assert call.request == expected
    assert (call.format, call.deadline) == ("base64", None)
    assert (call.progress, call.preview) == (False, False)


def test_everything_there_is(manifest: Manifest) -> None:
    latents = np.zeros((2, 4, 8, 8), np.float32)
    scalars = {
        "steps": 7, "gate_step": 3, "sp_interval": 1, "fi_interval": 1, "warm_up": 0,
        "guidance_rescale": 0.5, "clip_skip": 1, "scheduler": "euler", "seed": 3, "num_images": 1,
        "prompt_syntax": "a1111",
        "width": 16, "height": 16,
    }  # fmt: skip
    named = arguments(manifest)
    each = {"guidance_scale", "cache_blend", "guidance_carry"}
    served = {"deadline", "format", "progress", "preview"}
    assert scalars.keys() == single(manifest) - served == named.keys() - each
    types = {"INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32}
    ports = {port.name: port.type for port in inputs(manifest)}
    tensors = {
        name: texts(str(value)) if ports[name] == "STRING" else one(value, types[ports[name]])
        for name, value in scalars.items()
    }
    call = parse(
        manifest,
        {
            "prompt": texts("a", "b"), "negative_prompt": texts("c"), "latents": latents,
            "guidance_scale": np.array([2, 3], np.float32),
            "cache_blend": np.array([0.5, 1.25], np.float32),
            "guidance_carry": np.array([0.75, 0], np.float32), **tensors, "deadline": one(9.5),
            "format": texts("latents"), "progress": one(True, bool), "preview": one(True, bool),
        },
    )  # fmt: skip
    found, expected = call.request, make_request(
        manifest, ["a", "b"], negative_prompt="c", guidance_scale=[2.0, 3.0], latents=latents,
        cache_blend=[0.5, 1.25], guidance_carry=[0.75, 0.0],
        output_type="latent", **{named[name]: value for name, value in scalars.items()},
    )  # fmt: skip
    for field in vars(expected):
        np.testing.assert_array_equal(
            getattr(found, field), getattr(expected, field), err_msg=field
        )
    assert (call.format, call.deadline, call.progress, call.preview) == ("latents", 9.5, True, True)


def test_embeddings_in_place_of_prompts(manifest: Manifest) -> None:
    embeds = np.ones((2, 77, 32), np.float32)
    call = parse(manifest, {"prompt_embeds": embeds, "negative_prompt_embeds": embeds[:1]})
    assert isinstance(call.request.prompts, dict)
    assert isinstance(call.request.negative_prompts, dict)
    assert call.request.images == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": texts("x" * (MAX_TEXT_BYTES + 1))}, "prompt has 16385 bytes, at most 16384"),
        ({"prompt": texts("x" * 2**20)}, "prompt has 1048576 bytes"),
        (
            {"prompt": texts(*["x" * 4096] * 33)},
            "texts of a request have 135168 bytes",
        ),
        ({"negative_prompt": texts("x" * 2**20)}, "negative_prompt has 1048576 bytes"),
        ({"prompt": texts(b"\xff\xfe")}, "prompt is not UTF-8"),
        ({"prompt": texts(b"\xed\xa0\x80")}, "prompt is not UTF-8"),  # a lone surrogate
        ({"prompt": texts()}, "prompt must be text"),
        ({"prompt": None}, "prompt must be text"),
        ({"prompt": texts(*["a"] * (MAX_IMAGES + 1))}, "65 images in a request, at most 64"),
        ({"num_images": one(2**31 - 1, np.int32)}, "2147483647 images in a request"),
        ({"num_images": one(0, np.int32)}, "num_images must be at least 1"),
        ({"negative_prompt": texts("a", "b")}, "2 negative prompts for 1 prompts"),
        ({"guidance_scale": one(np.nan)}, "guidance_scale must be a finite number"),
        ({"guidance_scale": one(np.inf)}, "guidance_scale must be a finite number"),
        ({"guidance_scale": np.zeros(3, np.float32)}, "3 values of guidance_scale for 1"),
        ({"guidance_rescale": one(np.nan)}, "guidance_rescale must be 0 to 1"),
        ({"cache_blend": one(np.nan)}, "cache_blend must be 0 to 2, got nan"),
        ({"guidance_carry": one(-0.5)}, "guidance_carry must be 0 to 2, got -0.5"),
        ({"guidance_carry": np.zeros(3, np.float32)}, "3 values of guidance_carry for 1"),
        ({"steps": one(0, np.int32)}, "steps must be at least 1, got 0"),
        ({"steps": one(-1, np.int32)}, "steps must be at least 1"),
        ({"steps": one(2**31 - 1, np.int32)}, "steps must be 1 to 100"),
        ({"gate_step": one(0, np.int32)}, "gate_step must be at least 1"),
        ({"scheduler": texts("../../etc/passwd")}, "unknown scheduler"),
        ({"format": texts("file:///etc/passwd")}, "unknown format"),
        ({"width": one(10**9, np.int32)}, "width 1000000000 does not fit"),
        ({"latents": np.full((1, 4, 8, 8), np.nan, np.float32)}, "latents hold values that are"),
        ({"latents": np.zeros((1, 4, 9, 8), np.float32)}, r"latents have shape \[1, 4, 9, 8\]"),
        ({"prompt_embeds": np.zeros((1, 77, 32), np.float32)}, "either prompt or prompt_embeds"),
        ({"negative_prompt_embeds": np.full((1, 77, 32), np.inf, np.float32)}, "not finite"),
        ({"clip_skip": one(99, np.int32)}, "clip_skip must be 0 to"),
        ({"warm_up": one(-1, np.int32)}, "warm_up must be at least 0"),
    ],
)
def test_what_is_refused(manifest: Manifest, changes: dict[str, Any], message: str) -> None:
    tensors = {name: value for name, value in {**PROMPT, **changes}.items() if value is not None}
    with pytest.raises(InvalidRequestError, match=message):
        parse(manifest, tensors)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"prompt": texts("a", "b", "c", "d")}, "4 images in a request, at most 3 are served"),
        ({**PROMPT, "num_images": one(4, np.int32)}, "4 images in a request, at most 3"),
        ({"prompt": texts("a", "b"), "num_images": one(2, np.int32)}, "4 images in a request"),
        ({**PROMPT, "negative_prompt": texts(*["a"] * 4)}, "4 entries, for at most 3 images"),
    ],
)
def test_the_most_of_one_request(
    manifest: Manifest, tensors: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse(manifest, tensors, 3)
    assert parse(manifest, tensors | {"prompt": texts(*["a"] * 4)}, 16).request.images >= 4


class Unread:
    """A text that must not be looked at."""

    def __str__(self) -> str:
        raise AssertionError("it was converted before it was counted")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"prompt": np.full(65, Unread())}, "65 images in a request, at most 64"),
        ({**PROMPT, "negative_prompt": np.full(65, Unread())}, "negative_prompt has 65 entries"),
        ({**PROMPT, "scheduler": np.full(2, Unread())}, "scheduler must be one value, got 2"),
        ({**PROMPT, "format": np.full(0, Unread())}, "format must be one value, got 0"),
        ({**PROMPT, "guidance_scale": np.broadcast_to(np.float32(2), 10**6)},
         "guidance_scale has 1000000 entries, for at most 64 images"),
        ({**PROMPT, "steps": np.broadcast_to(np.int32(2), 10**6)}, "steps must be one value"),
        ({"prompt_embeds": np.broadcast_to(np.float32(0), (10**6, 77, 32))},
         "prompt_embeds has 1000000 entries"),
        ({**PROMPT, "latents": np.broadcast_to(np.float32(0), (1, 4, 10**5, 10**5))},
         "latents have shape"),
    ],
)  # fmt: skip
def test_counts_are_checked_before_values(
    manifest: Manifest, tensors: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse(manifest, tensors)


def test_nothing_in_a_request_is_a_file(manifest: Manifest) -> None:
    """Texts are prompts, and names of how they are read, a table and a format; no others."""
    strings = {port.name for port in inputs(manifest) if port.type == "STRING"}
    assert strings == {"prompt", "negative_prompt", "prompt_syntax", "scheduler", "format"}
    assert set(FORMATS) == {"raw", "png", "base64", "latents"}
