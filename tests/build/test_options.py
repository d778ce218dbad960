"""Where a bundle goes that was given no folder, and what has it built again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tgate_export.build import options as options_module
from tgate_export.build.describe import parameter_table
from tgate_export.build.options import build_key, check_options, default_folder
from tgate_export.bundle.manifest import Range
from tgate_export.common import versions
from tgate_export.common.errors import InvalidRequestError
from tgate_export.families.source import resolve_source


def fixed(side: int) -> Range:
    return Range(min=side, opt=side, max=side)


@pytest.mark.parametrize(
    ("size", "folder"),
    [
        (None, "engines/tiny"),
        ((fixed(16), fixed(16)), "engines/tiny"),  # the model's own
        ((fixed(32), fixed(16)), "engines/tiny-32x16"),
        ((Range(min=16, opt=16, max=32), fixed(16)), "engines/tiny-16_16_32x16"),
    ],
)
def test_each_size_has_a_folder(
    tiny_pipeline_dir: Path, size: tuple[Range, Range] | None, folder: str
) -> None:
    source = resolve_source(str(tiny_pipeline_dir), "pretrained")
    options = check_options(source, "fp32", size, Range(min=1, opt=1, max=8))
    assert default_folder(source, options) == Path(folder)


@pytest.mark.parametrize("changed", ["code", "onnx_ir"])
def test_what_a_build_depends_on(
    tiny_pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    source = resolve_source(str(tiny_pipeline_dir), "pretrained")
    options = check_options(source, "fp32", None, Range(min=1, opt=1, max=8))
    key = build_key(source, source.hashes(), options)
    assert build_key(source, source.hashes(), options) == key
    if changed == "code":
        monkeypatch.setattr(options_module, "code_sha256", lambda *modules: f"other {modules}")
    else:
        version = versions.metadata.version
        monkeypatch.setattr(
            versions.metadata, "version",
            lambda name: "0" if name == changed else version(name),
        )  # fmt: skip
    assert build_key(source, source.hashes(), options) != key


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"gate_step": 0}, "gate_step must be at least 1, got 0"),
        ({"sp_interval": 0}, "sp_interval must be at least 1, got 0: 1 computes self-attention"),
        ({"fi_interval": -2}, "fi_interval must be at least 1, got -2: 1 computes self-attention"),
        ({"warm_up": -1}, "warm_up must be at least 0, got -1"),
        (
            {"cache_blend": -1.0},
            "cache_blend must be 0 to 2, got -1.0",
        ),
        ({"guidance_carry": float("nan")}, "guidance_carry must be 0 to 2, got nan"),
        (
            {"warm_up": 6},
            "gate_step 5 is below warm_up 6: give a gate_step of at least 6, or a "
            "warm_up of at most 5",
        ),
    ],
)
def test_refuses_settings_that_make_no_plan(
    tiny_pipeline_dir: Path, settings: dict[str, Any], reason: str
) -> None:
    source = resolve_source(str(tiny_pipeline_dir), "pretrained")
    with pytest.raises(InvalidRequestError, match=f"^{reason}"):
        check_options(source, "fp32", None, Range(min=1, opt=1, max=8), {"gate_step": 5} | settings)


def test_numbers_of_guidance_are_a_bundles_defaults(tiny_pipeline_dir: Path) -> None:
    source = resolve_source(str(tiny_pipeline_dir), "pretrained")
    official = {"cache_blend": 0.5, "guidance_carry": 0.0}
    assert check_options(source, "fp32").settings.items() >= official.items()
    settings = {"cache_blend": 1.0, "guidance_carry": 0.25}
    options = check_options(source, "fp32", settings=settings)
    assert options.settings.items() >= settings.items()
    table = parameter_table(source, options, ("ddim",), "ddim")
    assert (table["cache_blend"].default, table["guidance_carry"].default) == (1.0, 0.25)
    # Defaults are in no graph.
    assert options.phases == check_options(source, "fp32").phases
    assert build_key(source, source.hashes(), options) != build_key(
        source, source.hashes(), check_options(source, "fp32")
    )


def test_a_model_without_guidance_has_no_numbers_of_it(tiny_pipeline_dir: Path) -> None:
    source = resolve_source(str(tiny_pipeline_dir), "pretrained").guided_by("none")
    options = check_options(source, "fp32")
    assert not {"cache_blend", "guidance_carry"} & options.settings.keys()
    table = parameter_table(source, options, ("ddim",), "ddim")
    assert not {"cache_blend", "guidance_carry"} & table.keys()
    with pytest.raises(
        InvalidRequestError,
        match=r"^cache_blend 0\.5 has no effect on a model without classifier-free",
    ):
        check_options(source, "fp32", settings={"cache_blend": 0.5})


def test_prompts_are_part_of_what_is_built(tiny_pipeline_dir: Path) -> None:
    source = resolve_source(str(tiny_pipeline_dir), "pretrained")
    keys = {
        build_key(each, each.hashes(), check_options(each, "fp32", prompt_syntax=syntax))
        for each in (source, source.reading(1), source.reading(2))
        for syntax in (None, "plain", "a1111")
    }
    assert len(keys) == 4
    assert check_options(source, "fp32").prompt_syntax == "plain"
    (condition,) = source.reading(3).conditioning().conditions
    assert (condition.shape, condition.input_shape) == ((77, 32), (231, 32))


def test_prompts_of_other_text_encoders_have_no_chunks(tiny_pipeline_dir: Path) -> None:
    source = resolve_source(str(tiny_pipeline_dir), "pretrained")
    for chunks in (0, -1, 17):
        with pytest.raises(InvalidRequestError, match=r"prompt_chunks must be 1 to 16, got"):
            source.reading(chunks)
    with pytest.raises(InvalidRequestError, match="prompt_syntax must be one of plain, a1111"):
        check_options(source, "fp32", prompt_syntax="comfy")
    t5 = resolve_source("pixart-alpha", "random")
    assert t5.reading(1) == t5
    assert check_options(t5, "fp32", prompt_syntax="plain").prompt_syntax is None
    with pytest.raises(InvalidRequestError, match=r"whose prompts have no chunks: leave .* out"):
        t5.reading(2)
    with pytest.raises(InvalidRequestError, match=r"whose prompts have no weights: leave .* out"):
        check_options(t5, "fp32", prompt_syntax="a1111")


@pytest.mark.parametrize(
    ("sides", "given", "expected"),
    [
        ((1024, 1024), None, 0),
        ((1024, 1032), None, 512),
        ((2048, 512), None, 512),
        ((2048, 2048), 0, 0),
        ((2048, 2048), 1024, 1024),
        ((1024, 512), 512, 512),
        ((512, 512), 512, 0),  # no larger than a tile
        ((512, 512), 1024, 0),
    ],
)
def test_tiles_of_the_vae(sides: tuple[int, int], given: int | None, expected: int) -> None:
    source = resolve_source("sd15", "random")
    size = fixed(sides[0]), fixed(sides[1])
    options = check_options(source, "fp32", size, vae_tile=given)
    assert options.vae_tile == expected
    usual = check_options(source, "fp32", size)
    keys = {build_key(source, source.hashes(), one) for one in (options, usual)}
    assert len(keys) == 1 + (options.vae_tile != usual.vae_tile)


@pytest.mark.parametrize(
    ("model", "tile", "reason"),
    [
        ("sd15", 500, "vae_tile 500 is not 0, nor a multiple of 32: try 480 or 512"),
        ("sd15", 8, "try 32"),
        ("sd15", -32, "try 32"),
        ("svd", 512, "makes videos, whose VAE takes whole images"),
    ],
)
def test_tiles_that_are_none(model: str, tile: int, reason: str) -> None:
    source = resolve_source(model, "random")
    size = (fixed(1024), fixed(576)) if model == "svd" else (fixed(2048), fixed(2048))
    with pytest.raises(InvalidRequestError, match=reason):
        check_options(source, "fp32", size, vae_tile=tile)


def test_tiles_of_a_dynamic_size_have_its_steps() -> None:
    source = resolve_source("sd15", "random")
    side = Range(min=512, opt=1024, max=2048)
    assert check_options(source, "fp32", (side, side)).vae_tile == 512
    with pytest.raises(InvalidRequestError, match="nor a multiple of 64: try 512 or 576"):
        check_options(source, "fp32", (side, side), vae_tile=544)
