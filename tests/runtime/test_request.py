"""A call is completed with the bundle's defaults, and refused when it makes no sense."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.manifest import VALID
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.parameters import Parameter, table_entry
from tgate_export.runtime import images
from tgate_export.runtime.inputs import host_rows
from tgate_export.runtime.request import Request, check_split, make_request

OPTIONS: dict[str, Any] = {
    "negative_prompt": None, "prompt_embeds": None, "negative_prompt_embeds": None,
    "num_inference_steps": None, "gate_step": None, "sp_interval": None,
    "fi_interval": None, "warm_up": None, "guidance_scale": None,
    "guidance_rescale": None, "cache_blend": None, "guidance_carry": None, "clip_skip": None,
    "prompt_syntax": None, "scheduler": None, "seed": 0,
    "num_images_per_prompt": 1, "height": None, "width": None, "original_size": None,
    "crops_coords_top_left": None, "target_size": None, "image": None, "strength": None,
    "fps": None, "motion_bucket_id": None, "noise_aug_strength": None, "min_guidance_scale": None,
    "latents": None, "output_type": "np",
}  # fmt: skip
DYNAMIC = {"min": 16, "opt": 32, "max": 64}


def manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate_json(json.dumps(VALID | changes))


def guided_by(guidance: str) -> Manifest:
    """The manifest of a bundle without an unconditional pass, and maybe without a scale."""
    gone = {"negative_prompt_embeds"} | ({"guidance_scale"} if guidance == "none" else set())
    graphs, parameters = copy.deepcopy(VALID["graphs"]), dict(VALID["parameters"])
    full = graphs["full"]
    full["inputs"] = [entry for entry in full["inputs"] if entry["name"] not in gone]
    for name in gone & parameters.keys():
        del parameters[name]
    return manifest(guidance=guidance, graphs=graphs, parameters=parameters)


def with_input(name: str, shape: list[Any], origin: dict[str, Any], **parameters: Any) -> Manifest:
    """The manifest of a bundle whose denoiser takes one more input."""
    graphs = copy.deepcopy(VALID["graphs"])
    entry = {"name": name, "dtype": "float32", "shape": shape, "from": origin}
    graphs["full"]["inputs"].append(entry)
    table = {key: json.loads(value.model_dump_json()) for key, value in parameters.items()}
    return manifest(graphs=graphs, parameters=VALID["parameters"] | table)


def request(prompt: Any = "x", *, of: Manifest | None = None, **options: Any) -> Request:
    return make_request(of or manifest(), prompt, **(OPTIONS | options))


def test_defaults_are_the_bundles() -> None:
    made = request()
    assert (made.num_inference_steps, made.gate_step, made.guidance_scales) == (25, 10, (7.5,))
    assert (made.scheduler, made.height, made.width) == ("ddim", 16, 16)


# 10 of 25 is 40 % of a run; at least one step computes cross-attention.
@pytest.mark.parametrize(("steps", "gate_step"), [(50, 20), (25, 10), (5, 2), (2, 1), (1, 1)])
def test_default_gate_keeps_its_place(steps: int, gate_step: int) -> None:
    assert request(num_inference_steps=steps).gate_step == gate_step


REUSING = VALID["parameters"] | {
    name: VALID["parameters"][name] | {"default": value}
    for name, value in {"sp_interval": 5, "fi_interval": 2, "warm_up": 4}.items()
}


@pytest.mark.parametrize(
    ("options", "gate_step", "warm_up"),
    [
        ({}, 10, 4),
        ({"num_inference_steps": 5}, 4, 4),  # 2 of 5 steps would be before the end of warm-up
        ({"gate_step": 3}, 3, 3),
        ({"num_inference_steps": 5, "warm_up": 1}, 2, 1),
        ({"num_inference_steps": 5, "warm_up": 3}, 3, 3),
    ],
)
def test_default_schedule_never_contradicts_itself(
    options: dict[str, int], gate_step: int, warm_up: int
) -> None:
    made = request(of=manifest(parameters=REUSING), **options)
    assert (made.value("sp_interval"), made.value("fi_interval")) == (5, 2)
    assert (made.gate_step, made.value("warm_up")) == (gate_step, warm_up)


@pytest.mark.parametrize(
    ("guidance", "options", "message"),
    [
        ("none", {"negative_prompt": "y"}, "no classifier-free guidance; leave it out"),
        ("embedded", {"negative_prompt": ["y"]}, "no classifier-free guidance; leave it out"),
        ("none", {"guidance_scale": 7.5}, "guidance_scale 7.5 has no effect"),
        ("none", {"guidance_scale": [1.5]}, "guidance_scale 1.5 has no effect"),
        ("none", {"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ("none", {"guidance_scale": 1e39}, "guidance_scale must be a finite number"),
        ("none", {"guidance_scale": -(10**400)}, "guidance_scale must be a finite number"),
        ("none", {"cache_blend": 1.0}, "cache_blend 1.0 has no effect: .* without classifier-free"),
        ("none", {"guidance_carry": 0.5}, "guidance_carry 0.5 has no effect: .*; leave it out"),
        ("embedded", {"cache_blend": 0.5}, "cache_blend 0.5 has no effect"),
        ("embedded", {"guidance_carry": -1}, "guidance_carry must be 0 to 2, got -1"),
    ],
)
def test_guidance_that_is_not_there_is_refused(
    guidance: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        request(of=guided_by(guidance), **options)
    made = request(of=guided_by(guidance), negative_prompt=None)
    assert made.negative_prompts is None


NUMBERS = {name: table_entry(name) for name in ("cache_blend", "guidance_carry")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_blend": float("nan")}, "cache_blend must be 0 to 2, got nan"),
        ({"cache_blend": -0.01}, "cache_blend must be 0 to 2, got -0.01"),
        ({"cache_blend": 1e30}, "cache_blend must be 0 to 2, got 1e\\+30"),
        ({"guidance_carry": float("inf")}, "guidance_carry must be 0 to 2, got inf"),
        ({"guidance_carry": [0, 2.5]}, "guidance_carry must be 0 to 2, got 2.5"),
        ({"guidance_carry": "1"}, "guidance_carry must be a number, got '1'"),
        (
            {"cache_blend": [1, 1, 1]},
            "3 values of cache_blend for 2 prompts: give one",
        ),
    ],
)
def test_numbers_of_the_gate_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    table = {key: json.loads(value.model_dump_json()) for key, value in NUMBERS.items()}
    newer = manifest(parameters=VALID["parameters"] | table)
    with pytest.raises(InvalidRequestError, match=f"^{message}"):
        request(["a", "b"], of=newer, **options)
    made = request(["a", "b"], of=newer, cache_blend=[0, 2], guidance_carry=1)
    assert (made.values["cache_blend"], made.values["guidance_carry"]) == ((0, 2), (1, 1))
    usual = request(["a", "b"], of=newer)
    assert (usual.value("cache_blend"), usual.value("guidance_carry")) == (0.5, 0)


def test_a_bundle_built_before_says_so() -> None:
    with pytest.raises(
        InvalidRequestError, match=r"cache_blend 1\.0 has no effect: .* earlier version .* again"
    ):
        request(cache_blend=1.0)
    assert "guidance_carry" not in request(guidance_carry=0.0).values  # what it does anyway


@pytest.mark.parametrize("scale", [1, 0.5, 0, -1.0, [0.0]])
def test_guidance_of_1_or_less_is_none(scale: Any) -> None:
    assert request(of=guided_by("none"), guidance_scale=scale).negative_prompts is None
    made = request(negative_prompt="y", guidance_scale=scale)
    assert made.negative_prompts is None  # ignored, as in diffusers
    embedded = request(of=guided_by("embedded"), guidance_scale=scale)
    assert embedded.guidance_scales == made.guidance_scales


def test_a_negative_prompt_counts_where_any_prompt_is_guided() -> None:
    made = request(["a", "b"], negative_prompt="y", guidance_scale=[0, 1.5])
    assert made.negative_prompts == ("y", "y")
    with pytest.raises(InvalidRequestError, match="2 negative prompts for 1 prompts"):
        request(negative_prompt=["y", "z"], guidance_scale=0.0)


def test_prompts_are_repeated_in_order() -> None:
    made = request(["a", "b"], negative_prompt=["c", "d"], num_images_per_prompt=2)
    assert made.prompts == ("a", "a", "b", "b")
    assert made.negative_prompts == ("c", "c", "d", "d")


def test_a_guidance_scale_is_for_all_prompts_or_each_has_its_own() -> None:
    made = request(["a", "b"], guidance_scale=[2, 3.5], num_images_per_prompt=2)
    assert made.guidance_scales == (2.0, 2.0, 3.5, 3.5)
    assert request(["a", "b"], guidance_scale=3).guidance_scales == (3.0, 3.0)


def test_told_sizes_are_for_models_that_are_told() -> None:
    with pytest.raises(
        InvalidRequestError, match=r"original_size .* has no effect: it is for SDXL"
    ):
        request(original_size=(16, 16))
    names = ("original_size", "crops_coords_top_left", "target_size")
    told = with_input(
        "time_ids", ["batch", 6], {"formula": "time_ids"},
        **{name: table_entry(name) for name in names},
    )  # fmt: skip
    sizes = host_rows(told, request(of=told), 0)["formula/time_ids"]
    assert sizes.tolist() == [16, 16, 0, 0, 16, 16]
    made = request(of=told, original_size=(32, 64), crops_coords_top_left=(1, 2))
    sizes = host_rows(told, made, 0)["formula/time_ids"]
    assert sizes.tolist() == [32, 64, 1, 2, 16, 16]
    for wrong in [(1,), (1, -2), (1, 2, 3), (1.5, 2)]:
        with pytest.raises(InvalidRequestError, match="target_size must be two whole numbers"):
            request(of=told, target_size=wrong)


def test_a_missing_negative_prompt_is_the_models_own() -> None:
    assert request(["a", "b"], negative_prompt=None).negative_prompts == ("", "")
    zeros = manifest(absent_negative_prompt="zeros")
    assert request("a", of=zeros, negative_prompt=None).negative_prompts is None
    assert request("a", of=zeros, negative_prompt="").negative_prompts == ("",)


def test_missing_seed_is_drawn_each_time() -> None:
    # Two equal draws of 32 bits: once in four billion.
    assert request(seed=None).seed != request(seed=None).seed


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prompt": []}, "prompt must be text"),
        ({"prompt": [None]}, "prompt must be text"),
        ({"prompt": "\udcff"}, "prompt must be text"),
        ({"negative_prompt": [3]}, "negative_prompt must be text"),
        ({"negative_prompt": "\udcff"}, "negative_prompt must be text"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"num_images_per_prompt": 0}, "at least 1, got 0"),
        ({"num_inference_steps": 0}, "steps must be at least 1, got 0"),
        ({"num_inference_steps": 101}, "1 to 100, got 101"),
        ({"gate_step": 2, "warm_up": 3}, "gate_step of at least 3, or a warm_up of at most 2"),
        ({"sp_interval": 0}, "sp_interval must be at least 1, got 0"),
        ({"fi_interval": 0}, "fi_interval must be at least 1, got 0"),
        ({"gate_step": 0}, "at least 1, got 0"),
        ({"gate_step": -1}, "at least 1, got -1"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"guidance_scale": float("inf")}, "finite"),
        ({"guidance_rescale": float("nan")}, "guidance_rescale must be 0 to 1, got nan"),
        ({"guidance_rescale": 1.5}, "guidance_rescale must be 0 to 1, got 1.5"),
        ({"clip_skip": -1}, "clip_skip must be at least 0, got -1"),
        (
            {"guidance_scale": [7.5, 7.5]},
            "2 values of guidance_scale for 1 prompts: give one",
        ),
        ({"scheduler": "heun"}, "unknown scheduler 'heun': this bundle has ddim"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**64}, "seed must be"),
        ({"height": 18}, "built for height 16"),
        ({"width": 15}, "built for width 16"),
        ({"output_type": "jpg"}, "choose one of pil, np, latent"),
        ({"latents": np.zeros((1, 4, 8, 7), np.float32)}, r"expected \[1, 4, 8, 8\]"),
        ({"latents": np.full((1, 4, 8, 8), np.nan, np.float32)}, "not finite"),
    ],
)
def test_request_out_of_range(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        request(**options)


@pytest.mark.parametrize(("side", "fits"), [(16, True), (64, True), (14, False), (66, False),
                                            (20, False)])  # fmt: skip
def test_dynamic_size(side: int, fits: bool) -> None:
    size = {"height": DYNAMIC, "width": DYNAMIC, "multiple": 8}
    dynamic = manifest(size=size)
    assert request(of=dynamic).width == 32
    if fits:
        assert request(of=dynamic, width=side).width == side
    else:
        with pytest.raises(InvalidRequestError, match="width"):
            request(of=dynamic, width=side)


@pytest.mark.parametrize(
    ("smallest", "largest", "images", "fits"),
    [(1, 8, 9, True), (2, 2, 4, True), (2, 2, 3, False), (2, 4, 5, False), (2, 4, 6, True)],
)
def test_images_must_fill_batches(smallest: int, largest: int, images: int, fits: bool) -> None:
    batch = {"min": smallest, "opt": smallest, "max": largest}
    made = request(of=manifest(batch=batch), num_images_per_prompt=images)
    assert made.images == len(made.prompts) == images
    if fits:
        check_split(manifest(batch=batch), images)
    else:
        with pytest.raises(InvalidRequestError, match=f"{images} image.* batches of"):
            check_split(manifest(batch=batch), images)


def test_what_a_graph_reads_has_a_value() -> None:
    entry = Parameter(type="number", help="Of which nothing is the default.")
    tinted = with_input("tint", ["batch"], {"parameter": "tint"}, tint=entry)
    with pytest.raises(InvalidRequestError, match="tint is missing"):
        request(of=tinted)
    assert request(of=tinted, tint=2).values["tint"] == (2.0,)


def test_a_default_never_gives_way_below_its_limit() -> None:
    methods = copy.deepcopy(VALID["methods"])
    methods["tgate"]["at_least"] = {"warm_up": "sp_interval"}
    with pytest.raises(InvalidRequestError, match="sp_interval must be at least 1, got 0"):
        request(of=manifest(methods=methods), warm_up=0)


@pytest.fixture
def of_images() -> Manifest:
    """The manifest of a bundle that reads an image instead of a prompt, as videos are made."""
    graphs = copy.deepcopy(VALID["graphs"])
    encoder = graphs["image_encoder"] = graphs.pop("text_encoder")
    origin = {"image": "image", "range": [-1, 1], "layout": "BHWC"}
    encoder["inputs"] = [
        {"name": "image", "dtype": "float32", "shape": ["batch", 16, 16, 3], "from": origin}
    ]
    full = graphs["full"]
    full["inputs"] = [
        entry for entry in full["inputs"] if entry["name"] != "negative_prompt_embeds"
    ]
    (embeds,) = (entry for entry in full["inputs"] if entry["name"] == "prompt_embeds")
    embeds["from"] = {"graph": "image_encoder", "output": "prompt_embeds"}
    image = {"type": "image", "per": "prompt", "help": "What it begins with."}
    return manifest(graphs=graphs, tokenizers={}, parameters=VALID["parameters"] | {"image": image})


def test_a_file_is_decoded_once(
    of_images: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    files = [tmp_path / f"{index}.png" for index in range(2)]
    for file, picture in zip(files, pixels, strict=True):
        Image.fromarray(picture).save(file)
    decoded = []

    def decode(content: bytes, path: Path, largest: tuple[int, int]) -> Any:
        decoded.append(path)
        return usual(content, path, largest)

    usual = images._decode
    monkeypatch.setattr(images, "_decode", decode)
    made = request(None, of=of_images, image=files)
    assert decoded == files
    assert isinstance(made.prompts, dict)
    expected = pixels.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(made.prompts["image"], expected)
    np.testing.assert_array_equal(made.pictures["image"], expected)
