"""Files say how they were made, in words that others read; their pixels are as without."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sd_parsers import ParserManager

import tgate_export
from tests.runtime.test_request import manifest, request
from tests.support.manifest import VALID
from tgate_export.bundle.manifest import Manifest, Size
from tgate_export.bundle.sampler_names import a1111_name
from tgate_export.parameters import table_entry
from tgate_export.runtime.picture_file import (
    encode_picture,
    encode_video,
    made_with,
    parameters_text,
)
from tgate_export.samplers.specs import SAMPLERS

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
FRAMES = [Image.fromarray(np.roll(PIXELS, shift, axis=1)) for shift in range(4)]
KINDS = ("PNG", "JPEG", "WEBP")
HOSTILE = [
    "a red circle",
    "a fox\nin two lines\n\nand one more",
    "Steps: 3",
    "a\nSteps: 3, Sampler: Euler a, CFG scale: 1, Seed: 9, Size: 8x8",
    'she said "no", 5:4, {"a": [1]}, \\n and \\',
    "a fox 🦊, naïve, 狐狸",
    "tEXt\0iTXt",
    "-->]]><b>&amp;",
]


def taking(**entries: Any) -> Manifest:
    """The manifest of a bundle that takes more parameters, with the defaults that are given."""
    table = {
        name: json.loads(table_entry(name, **({} if value is None else {"default": value}))
                         .model_dump_json())
        for name, value in entries.items()
    }  # fmt: skip
    choices = {"type": "choice", "default": "ddim", "choices": list(SAMPLERS)}
    samplers = dict.fromkeys(SAMPLERS, VALID["samplers"]["ddim"])
    return manifest(
        parameters=VALID["parameters"] | {"scheduler": choices} | table, samplers=samplers
    )


def plain(kind: str, **options: Any) -> bytes:
    """What Pillow writes without a word of ours."""
    file = io.BytesIO()
    PICTURE.save(file, kind, **options)
    return file.getvalue()


# sd-parsers knows a picture that it has seen by its `id`, which others get when it is gone.
OPENED: list[Image.Image] = []


def opened(file: bytes) -> Image.Image:
    OPENED.append(Image.open(io.BytesIO(file)))
    return OPENED[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", HOSTILE)
def test_another_program_reads_it(kind: str, prompt: str) -> None:
    asked = request(
        [prompt, "another"], of=taking(), negative_prompt=f"ugly, {prompt}", seed=2**64 - 1,
        guidance_scale=[1.5, 7.0], num_inference_steps=12, scheduler="dpm++2m-karras",
    )  # fmt: skip
    found = ParserManager().parse(opened(encode_picture(PICTURE, kind, taking(), asked, 0)))
    assert found is not None
    (sampler,) = found.samplers
    assert found.full_prompt == prompt
    assert found.full_negative_prompt == f"ugly, {prompt}"
    assert sampler.name == "DPM++ 2M"
    assert sampler.model is not None
    assert sampler.model.name == "tiny"
    assert {name: sampler.parameters[name] for name in ("steps", "cfg_scale", "seed")} == {
        "steps": "12", "cfg_scale": "1.5", "seed": str(2**64 - 1),
    }  # fmt: skip
    assert (found.metadata["Size"], found.metadata["Gate step"]) == ("16x16", "5")


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_as_without(kind: str) -> None:
    asked = request("🦊" * 200)
    found = np.asarray(opened(encode_picture(PICTURE, kind, manifest(), asked, 0)))
    assert np.array_equal(found, np.asarray(opened(plain(kind))))
    assert kind != "PNG" or np.array_equal(found, PIXELS)
    again = encode_picture(PICTURE, kind, manifest(), asked, 0)
    assert again == encode_picture(PICTURE.copy(), kind, manifest(), asked, 0)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_quality(kind: str) -> None:
    found = encode_picture(PICTURE, kind, manifest(), request(), 0, quality=5)
    expected = np.asarray(opened(plain(kind, quality=5)))
    assert np.array_equal(np.asarray(opened(found)), expected)
    assert not np.array_equal(expected, np.asarray(opened(plain(kind))))


@pytest.mark.parametrize(("kind", "place"), [("GIF", "comment"), ("PNG", "parameters")])
def test_a_video_says_it_too(kind: str, place: str) -> None:
    of = taking(fps=None)
    asked = request("狐狸", of=of, fps=10)
    expected = io.BytesIO()
    FRAMES[0].save(
        expected, kind, save_all=True, append_images=FRAMES[1:], duration=100, loop=0
    )  # fmt: skip
    found = opened(encode_video(FRAMES, kind, of, asked, 0))
    text = found.info[place]
    assert (text.decode() if kind == "GIF" else text) == parameters_text(of, asked, 0)
    same_frames(found, opened(expected.getvalue()))


def test_a_video_in_webp_says_it_too() -> None:
    of = taking(fps=None)
    asked = request("狐狸", of=of)
    found = opened(encode_video(FRAMES, "WEBP", of, asked, 0))
    expected = io.BytesIO()
    FRAMES[0].save(expected, "WEBP", save_all=True, append_images=FRAMES[1:], duration=143, loop=0)
    comment = found.getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + parameters_text(of, asked, 0).encode("utf-16-be")
    same_frames(found, opened(expected.getvalue()))


def same_frames(found: Any, expected: Any) -> None:
    assert found.n_frames == expected.n_frames == len(FRAMES)
    for index in range(len(FRAMES)):
        found.seek(index)
        expected.seek(index)
        assert np.array_equal(np.asarray(found), np.asarray(expected))
        assert found.info["duration"] == expected.info["duration"]


def test_the_whole_of_it_as_json() -> None:
    asked = request(
        ["a", "b\n🦊"], negative_prompt=["c", "d"], guidance_scale=[1.0, 2.5], seed=2**64 - 1,
        num_images_per_prompt=2,
    )  # fmt: skip
    of = manifest()
    found = opened(encode_picture(PICTURE, "PNG", of, asked, 3))
    expected = {
        "version": tgate_export.__version__, "model": "tiny", "family": "stable-diffusion",
        "prompt": "b\n🦊", "negative_prompt": "d", "seed": 2, "width": 16, "height": 16,
        "parameters": {
            "num_inference_steps": 25, "gate_step": 10, "sp_interval": 1, "fi_interval": 1,
            "warm_up": 0, "scheduler": "ddim", "guidance_scale": 2.5,
        },
        "left_out": [],
    }  # fmt: skip
    assert json.loads(found.text["tgate-export"]) == expected  # type: ignore[attr-defined]
    assert made_with(of, asked, 3) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"hires": 2, "hires_strength": 0.5, "hires_steps": 8},
            "Denoising strength: 0.5, Hires upscale: 2, Hires steps: 4, Hires upscaler: Latent",
        ),
        (
            {"hires": "32x24", "hires_upscaler": "latent-bicubic"},
            "Denoising strength: 0.7, Hires resize: 32x24, Hires steps: 17, "
            "Hires upscaler: Latent (bicubic)",
        ),
    ],
)
def test_a_second_pass(options: dict[str, Any], said: str) -> None:
    """As the web UI writes it, and what makes it again; the size is the first pass's."""
    side = {"min": 16, "opt": 16, "max": 64}
    of = taking().model_copy(
        update={"size": Size.model_validate({"height": side, "width": side, "multiple": 8})}
    )
    asked = request("a", of=of, **options)
    text = parameters_text(of, asked, 0)
    assert f"Size: 16x16, Model: tiny, {said}, Gate step: 10" in text
    found = ParserManager().parse(opened(encode_picture(PICTURE, "PNG", of, asked, 0)))
    assert found is not None
    # Who reads it asks for them, and A1111 executes all that are asked for.
    assert found.metadata["Hires steps"] == ("4" if "hires_steps" in options else "17")
    made = made_with(of, asked, 0)
    assert asked.hires is not None
    assert made["hires"] == asked.hires.as_dict()
    assert (made["width"], made["height"]) == (16, 16)


def test_what_is_left_out_is_named() -> None:
    embeds = np.zeros((1, 77, 32), np.float32)
    asked = request(
        None, prompt_embeds=embeds, negative_prompt_embeds=embeds,
        latents=np.zeros((1, 4, 8, 8), np.float32), seed=5,
    )  # fmt: skip
    found = made_with(manifest(), asked, 0)
    assert found["left_out"] == ["prompt_embeds", "negative_prompt_embeds", "latents"]
    assert (found["prompt"], found["negative_prompt"]) == (None, None)
    assert parameters_text(manifest(), asked, 0).startswith("Steps: 25, Sampler: DDIM, ")
    of = taking(image=None, strength=None)
    asked = request("x", of=of, image=PICTURE)
    assert made_with(of, asked, 0)["left_out"] == ["image"]
    json.dumps(made_with(of, asked, 0))
    asked = request("x", of=of, image=np.zeros((1, 4, 8, 8), np.float32))
    assert made_with(of, asked, 0)["left_out"] == ["image"]


def test_text_of_everything() -> None:
    """As `create_infotext` of the web UI writes it: order, quotes, and what has a name there."""
    of = taking(
        image=None, strength=None, clip_skip=None, cache_blend=None, original_size=None,
        crops_coords_top_left=None, guidance_rescale=None,
    )  # fmt: skip
    of = of.model_copy(update={"name": 'my "model", 2:1'})
    asked = request(
        "a fox", of=of, negative_prompt="ugly", image=PICTURE, strength=0.5, clip_skip=1,
        cache_blend=1.0, original_size=(512, 768), guidance_rescale=0.0, seed=3,
        num_inference_steps=10, gate_step=4, scheduler="euler-a",
    )  # fmt: skip
    assert parameters_text(of, asked, 0) == (
        "a fox\nNegative prompt: ugly\n"
        "Steps: 10, Sampler: Euler a, CFG scale: 7.5, Seed: 3, Size: 16x16, "
        'Model: "my \\"model\\", 2:1", Clip skip: 2, Denoising strength: 0.5, Gate step: 4, '
        'Cache blend: 1, Original size: "512, 768", '
        f"Version: tgate-export {tgate_export.__version__}"
    )


@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_samplers_have_the_names_that_others_know(scheduler: str) -> None:
    of = taking()
    text = parameters_text(of, request("x", of=of, scheduler=scheduler), 0)
    name, sigmas = a1111_name(scheduler)
    assert f", Sampler: {name}, {f'Schedule type: {sigmas}, ' if sigmas else ''}CFG" in text


def test_no_negative_prompt_is_no_line() -> None:
    for options in ({"negative_prompt": ""}, {"negative_prompt": "x", "guidance_scale": 1.0}):
        assert parameters_text(manifest(), request("a", **options), 0).count("\n") == 1


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_the_comment_is_of_the_type_that_exif_says(kind: str) -> None:
    """Tag 0x9286 of type 7, undefined: piexif, which the web UI reads with, insists."""
    found = encode_picture(PICTURE, kind, manifest(), request(), 0)
    assert found.count(b"\x92\x86\x00\x07") == 1


def test_a_text_that_a_jpeg_has_no_room_for_is_left_out() -> None:
    found = opened(encode_picture(PICTURE, "JPEG", manifest(), request("x" * 40_000), 0))
    assert not found.getexif()
    assert np.array_equal(np.asarray(found), np.asarray(opened(plain("JPEG"))))
