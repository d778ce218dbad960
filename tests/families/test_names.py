"""The packaged configurations are the published models, and other ones are refused by name."""

from __future__ import annotations

import importlib
import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch

from tgate_export.bench.rows import BETTER, OFFICIAL
from tgate_export.build.options import check_options
from tgate_export.bundle.manifest import Range
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import InvalidRequestError, ModelError
from tgate_export.families.names import NAMED_MODELS
from tgate_export.families.registry import FAMILIES
from tgate_export.families.source import resolve_source

# T-GATE's README, in millions of parameters (it counts SDXL's 2567.46 M as 2.570 B).
PUBLISHED = {"sd15": 859.520, "sd21": 865.9, "sdxl": 2567.46, "pixart-alpha": 611.350}


@cache
def count_of(class_name: str, config: str) -> int:
    """Count the weights of a component of this class and configuration."""
    library, _, name = class_name.partition(".")
    cls, values = getattr(importlib.import_module(library), name), json.loads(config)
    with torch.device("meta"):
        made = (
            cls.from_config(values)
            if library == "diffusers"
            else cls(cls.config_class.from_dict(values))
        )
    return sum(parameter.numel() for parameter in made.parameters())


@pytest.mark.parametrize("name", NAMED_MODELS)
def test_parameters(name: str) -> None:
    named, source = NAMED_MODELS[name], resolve_source(name, "random")
    counts = {
        component: count_of(class_name, json.dumps(source.config(component)))
        for component, class_name in source.family.weights.items()
    }
    assert counts == named.parameters
    count = named.denoiser_parameters
    assert count / 1e6 == pytest.approx(PUBLISHED.get(name, count / 1e6), rel=1e-4)


def test_embedded_guidance_adds_its_projection() -> None:
    """A bias-free projection of 256 sines and cosines to the first width, and nothing else."""
    for with_embedding, without in (("lcm-sd15", "sd15"), ("lcm-sdxl", "sdxl")):
        more = NAMED_MODELS[with_embedding].denoiser_parameters
        assert more - NAMED_MODELS[without].denoiser_parameters == 256 * 320


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("sd15", "classifier-free"), ("sd-turbo", "none"), ("sdxl-turbo", "none"),
     ("lcm-sd15", "embedded"), ("lcm-sdxl", "embedded")],
)  # fmt: skip
def test_guidance(name: str, guidance: str) -> None:
    assert resolve_source(name, "random").guidance == guidance


@pytest.mark.parametrize("name", NAMED_MODELS)
def test_gates_keep_what_the_official_method_does_unless_better_was_measured(name: str) -> None:
    defaults = NAMED_MODELS[name].defaults
    kept = {number: getattr(defaults, number) for number in OFFICIAL}
    assert kept == (BETTER if name == "shapes" else OFFICIAL)


@pytest.mark.parametrize("name", NAMED_MODELS)
def test_defaults(name: str) -> None:
    named, source = NAMED_MODELS[name], resolve_source(name, "random")
    assert source.family.name == named.family
    assert source.defaults == named.defaults
    options = check_options(source, "fp16")
    assert (options.size.width.opt, options.size.height.opt) == named.size
    for component in source.family.weights:
        assert source.config(component)


def test_shared_configurations_count_for_the_fingerprint() -> None:
    files = resolve_source("pixart-sigma", "random").files()
    assert "../../../stable_diffusion_xl/configs/sdxl/vae/config.json" in files
    assert "../pixart-alpha/text_encoder/config.json" in files


@pytest.fixture
def sdxl(tmp_path: Path) -> Path:
    return Path(shutil.copytree(NAMED_MODELS["sdxl"].directory, tmp_path / "mine"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_source(str(folder), "random")
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2", "unet", "scheduler"])
def test_missing_component_of_sdxl(sdxl: Path, component: str) -> None:
    shutil.rmtree(sdxl / component)
    assert f"lacks the component {component}/" in refused(sdxl)


def test_refiner(sdxl: Path) -> None:
    edit(sdxl / "unet" / "config.json", projection_class_embeddings_input_dim=2560)
    assert "takes 2560 values of pooled text and sizes, expected 2816" in refused(sdxl)
    whole = json.loads((sdxl / "model_index.json").read_text())
    edit(
        sdxl / "model_index.json", requires_aesthetics_score=True,
        _class_name="StableDiffusionXLImg2ImgPipeline",
    )  # fmt: skip
    assert resolve_source(str(sdxl), "random").family.name == "stable-diffusion-xl-refiner"
    edit(sdxl / "unet" / "config.json", projection_class_embeddings_input_dim=2816)
    assert "and an aesthetic score, expected 2560" in refused(sdxl)
    edit(sdxl / "model_index.json", _class_name=whole["_class_name"])
    assert "is a StableDiffusionXLPipeline, which is not supported" in refused(sdxl)


def test_unet_of_another_pipeline(sdxl: Path) -> None:
    edit(sdxl / "unet" / "config.json", addition_embed_type=None)
    assert "lacks addition_embed_type 'text_time'" in refused(sdxl)
    edit(sdxl / "model_index.json", _class_name="StableDiffusionPipeline")
    edit(sdxl / "unet" / "config.json", addition_embed_type="text_time")
    assert "takes more than text and time (addition_embed_type" in refused(sdxl)


def test_transformer_of_another_width(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(NAMED_MODELS["pixart-alpha"].directory, tmp_path / "mine"))
    shutil.copytree(NAMED_MODELS["sdxl"].directory / "vae", folder / "vae")
    assert resolve_source(str(folder), "random").name == "mine"
    edit(folder / "transformer" / "config.json", caption_channels=2048)
    assert "captions of width 2048 and its text encoder writes 4096" in refused(folder)


def test_pixart_has_one_size() -> None:
    source, sides = resolve_source("pixart-alpha", "random"), Range(min=512, opt=1024, max=1024)
    with pytest.raises(InvalidRequestError, match="have one size: fix it, as size=") as caught:
        check_options(source, "fp16", (sides, sides), Range(min=1, opt=1, max=1))
    assert caught.value.worded(on_command_line).endswith("fix it, as --size 1024x1024")
    odd = Range(min=1016, opt=1016, max=1016)
    with pytest.raises(InvalidRequestError, match="not a multiple of 16: try 1008 or 1024"):
        check_options(source, "fp16", (odd, odd), Range(min=1, opt=1, max=1))


def test_no_pipeline_belongs_to_two_families() -> None:
    pipelines = [
        (name, family.aesthetic) for family in FAMILIES.values() for name in family.pipelines
    ]
    assert len(pipelines) == len(set(pipelines))
