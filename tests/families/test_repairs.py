"""Configurations are read as diffusers' own classes read and correct them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from tests.support.small_folder import edit_json
from tgate_export.families import geometry
from tgate_export.families.loading import component_precision
from tgate_export.families.registry import FAMILIES
from tgate_export.families.repairs import CLASS_DEFAULTS, effective_config
from tgate_export.families.source import resolve_source
from tgate_export.samplers.specs import SAMPLERS
from tgate_export.samplers.tables import make_scheduler

PIPELINES = [name for family in FAMILIES.values() for name in family.pipelines]
# What trainers wrote: nothing, what was right in 2022, what other tools write.
SCHEDULERS: list[dict[str, Any]] = [
    {},
    {"steps_offset": 0, "clip_sample": True},
    {"steps_offset": 1, "clip_sample": False},
    {"steps_offset": 2, "timestep_spacing": "leading", "set_alpha_to_one": False},
    {"timestep_spacing": "trailing", "clip_sample": True, "rescale_betas_zero_snr": True},
]
UNETS: list[dict[str, Any]] = [
    {"_diffusers_version": version, "sample_size": size}
    for version, size in (
        ("0.8.1", 32), ("0.8.0.dev0", 32), ("0.6.0", 64), ("0.2.4", 8), ("0.9.0.dev0", 32),
        ("0.10.2", 32), ("1.0", 32), ("0.8.1", 96),
    )
] + [{"sample_size": 32}]  # fmt: skip


def in_diffusers(name: str, **components: Any) -> Any:
    """A pipeline of these components alone; its constructor reads no others."""
    cls = getattr(diffusers, name)
    names = inspect.signature(cls.__init__).parameters.keys() - {"self"}
    absent = dict.fromkeys(n for n in names if not n.startswith(("requires", "force", "add_")))
    if "requires_safety_checker" in names:
        components["requires_safety_checker"] = False
    return cls(**(absent | components))


@pytest.mark.parametrize("name", PIPELINES)
def test_schedulers_as_the_pipeline_s_constructor_corrects_them(name: str) -> None:
    for config in SCHEDULERS:
        for sampler, spec in SAMPLERS.items():
            cls = getattr(diffusers, spec.scheduler_class)
            theirs = in_diffusers(name, scheduler=cls.from_config(config, **spec.overrides))
            ours = make_scheduler(sampler, effective_config(name, "scheduler", None, config))
            expected = {key: theirs.scheduler.config[key] for key in inspect.signature(
                cls.__init__).parameters.keys() - {"self"}}  # fmt: skip
            assert {key: ours.config[key] for key in expected} == expected, (config, sampler)


@pytest.mark.parametrize("name", [n for n in PIPELINES if "PixArt" not in n and "Video" not in n])
def test_unets_as_the_pipeline_s_constructor_corrects_them(name: str) -> None:
    for config in UNETS:
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(4,), down_block_types=("DownBlock2D",), norm_num_groups=1,
            up_block_types=("UpBlock2D",), cross_attention_dim=4, attention_head_dim=1,
            layers_per_block=1, sample_size=config["sample_size"],
        )  # fmt: skip
        if "_diffusers_version" in config:  # as `from_pretrained` notes it
            unet.register_to_config(_diffusers_version=config["_diffusers_version"])
        theirs = in_diffusers(name, unet=unet).unet.config.sample_size
        ours = effective_config(name, "unet", "diffusers.UNet2DConditionModel", config)
        assert ours["sample_size"] == theirs, config


def test_size_of_an_old_unet_is_left_alone_where_there_is_none() -> None:
    for size in ({}, {"sample_size": None}, {"sample_size": [32, 32]}):
        config = {"_diffusers_version": "0.8.1", **size}
        found = effective_config("StableDiffusionPipeline", "unet", None, config)
        assert found == config


@pytest.mark.parametrize("class_name", CLASS_DEFAULTS)
def test_defaults_are_those_of_the_classes(class_name: str) -> None:
    library, _, name = class_name.partition(".")
    if library == "diffusers":
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
        theirs = {key: entry.default for key, entry in parameters.items()}
    else:
        theirs = getattr(transformers, name).config_class().to_dict()
    for key, value in CLASS_DEFAULTS[class_name].items():
        assert theirs[key] == value, key


def test_every_class_with_weights_has_its_defaults() -> None:
    assert {c for family in FAMILIES.values() for c in family.weights.values()} == set(
        CLASS_DEFAULTS
    )


def test_a_source_reads_the_repaired_configuration(pipeline: Path) -> None:
    edit_json(pipeline / "unet" / "config.json", _diffusers_version="0.8.0.dev0", sample_size=32)
    source = resolve_source(str(pipeline))
    assert geometry.default_size(source) == (256, 256)
    assert source.config("scheduler") == {"steps_offset": 1, "clip_sample": False}
    edit_json(
        pipeline / "model_index.json", _class_name="LatentConsistencyModelPipeline"
    )  # which corrects nothing
    source = resolve_source(str(pipeline))
    assert (geometry.default_size(source), source.config("scheduler")) == ((128, 128), {})


@pytest.mark.parametrize(
    ("said", "precision"), [({}, "fp32"), ({"force_upcast": False}, "fp16"),
                            ({"force_upcast": None}, "fp16"), ({"force_upcast": True}, "fp32")],
)  # fmt: skip
def test_vae_that_does_not_say_whether_fp16_overflows(
    pipeline: Path, said: dict[str, Any], precision: str
) -> None:  # fmt: skip
    """As diffusers' `AutoencoderKL`, which SDXL's pipeline asks before it decodes."""
    unet = {"addition_embed_type": "text_time", "addition_time_embed_dim": 1}
    edit_json(pipeline / "unet" / "config.json", projection_class_embeddings_input_dim=30, **unet)
    edit_json(pipeline / "model_index.json", _class_name="StableDiffusionXLPipeline")
    for suffix in ("text_encoder", "tokenizer"):
        (pipeline / f"{suffix}_2").symlink_to(pipeline / suffix)
    edit_json(pipeline / "text_encoder" / "config.json", projection_dim=24)
    edit_json(pipeline / "vae" / "config.json", **said)
    with torch.device("meta"):
        config = json.loads((pipeline / "vae" / "config.json").read_text())
        theirs = diffusers.AutoencoderKL(
            force_upcast=config["force_upcast"]) if said else diffusers.AutoencoderKL()  # fmt: skip
    assert (precision == "fp32") == bool(theirs.config.force_upcast)
    assert component_precision(resolve_source(str(pipeline)), "vae", "fp16") == precision
