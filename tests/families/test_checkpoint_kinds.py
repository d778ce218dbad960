"""Published checkpoints are told by their headers: files of their true shapes, and no data."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.support import checkpoints
from tests.support.checkpoints import prefixed
from tgate_export.build.options import check_options
from tgate_export.common.errors import ModelError
from tgate_export.families.source import ModelSource, resolve_source

META = torch.device("meta")
# Of their cards: what was left out of SDXL (segmind/SSD-1B and segmind/Segmind-Vega).
SSD = {
    "transformer_layers_per_block": [1, [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    "mid_block_type": "UNetMidBlock2D",
}
VEGA = {
    "transformer_layers_per_block": [1, [1, 1], [2, 2]],
    "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
    "mid_block_type": "UNetMidBlock2D",
}
REFINER = {
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "attention_head_dim": [6, 12, 24, 24],
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}  # fmt: skip
TELLING = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@functools.cache
def component(name: str, part: str, changes: tuple[tuple[str, Any], ...] = ()) -> dict[str, Any]:
    """The tensors of a published component, without values."""
    source = resolve_source(name, "random")
    library, _, cls = source.family.weights[part].partition(".")
    config = source.config(part) | dict(changes)
    kind = getattr(importlib.import_module(library), cls)
    with META:
        module = kind(kind.config_class(**config)) if library == "transformers" else (
            kind.from_config(config)
        )  # fmt: skip
    return dict(module.state_dict())


def ldm(name: str, *, vae: bool = True, text: bool = True, **changes: Any) -> dict[str, Any]:
    """A checkpoint with the tensors of a named model in LDM's names; `changes` are its UNet's."""
    unet = component(name, "unet", tuple((key, _hashable(value)) for key, value in changes.items()))
    tensors = prefixed("model.diffusion_model.", checkpoints.unet_to_ldm(unet))
    if vae:
        tensors |= prefixed("first_stage_model.", checkpoints.vae_to_ldm(component(name, "vae")))
    if not text:
        return tensors
    first = component(name, "text_encoder")
    if name.startswith(("sdxl", "lcm-sdxl")):
        second = checkpoints.clip_to_open_clip(component(name, "text_encoder_2"))
        tensors |= prefixed("conditioner.embedders.0.transformer.", checkpoints.clip_plain(first))
        tensors |= prefixed("conditioner.embedders.1.model.", second)
    elif name in ("sd21", "sd-turbo"):
        tensors |= prefixed("cond_stage_model.model.", checkpoints.clip_to_open_clip(first, 1))
    else:
        tensors |= prefixed("cond_stage_model.transformer.", checkpoints.clip_plain(first))
    return tensors


def _hashable(value: Any) -> Any:
    return value if not isinstance(value, list) else _List(value)


class _List(list):  # type: ignore[type-arg]
    def __hash__(self) -> int:  # type: ignore[override]
        return hash(str(self))


def shapes(config: dict[str, Any]) -> dict[str, torch.Size]:
    with META:
        unet = UNet2DConditionModel.from_config(config)
    return {key: tensor.shape for key, tensor in unet.state_dict().items()}


def spread(deviation: float) -> torch.Tensor:
    return torch.tensor([-deviation, deviation]).repeat(160)


def resolved(
    tensors: dict[str, Any], tmp_path: Path, dtype: str = "F16", **options: Any
) -> ModelSource:
    metadata = options.pop("metadata", {})
    path = checkpoints.save_header(tensors, tmp_path / "model.safetensors", dtype, **metadata)
    return resolve_source(str(path), **options)


def refused(tensors: dict[str, Any], tmp_path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        resolved(tensors, tmp_path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "model.safetensors") in message
    return message


def found(source: ModelSource) -> tuple[str, int, int, str]:
    """Family, size, text and what is predicted."""
    size = check_options(source, "fp16").size
    predicts = source.config("scheduler").get("prediction_type", "epsilon")
    return (
        source.family.name,
        size.width.opt,
        source.config("unet")["cross_attention_dim"],
        predicts,
    )


SD, XL = "stable-diffusion", "stable-diffusion-xl"


@pytest.mark.parametrize("dtype", ["F16", "F32", "BF16"])
def test_sd15(tmp_path: Path, dtype: str) -> None:
    source = resolved(ldm("sd15"), tmp_path, dtype)
    assert found(source) == (SD, 512, 768, "epsilon")
    assert source.defaults == resolve_source("sd15", "random").defaults
    assert source.single is not None
    (first,), (second,) = source.single.findings
    assert first == "model.safetensors is Stable Diffusion 1.x: its UNet reads text of width 768"
    assert second == "weights from model.safetensors: unet, vae, text_encoder (names of clip, ldm)"


@pytest.mark.parametrize(
    ("marks", "metadata", "expected"),
    [
        ({TELLING: spread(0.2)}, {}, (SD, 768, 1024, "v_prediction")),
        ({TELLING: spread(0.05)}, {}, (SD, 512, 1024, "epsilon")),
        # What a trainer wrote goes before what is guessed.
        ({TELLING: spread(0.2)}, {"modelspec.prediction_type": "epsilon"},
         (SD, 512, 1024, "epsilon")),
        ({TELLING: spread(0.05)}, {"modelspec.prediction_type": "v"},
         (SD, 768, 1024, "v_prediction")),
        ({TELLING: spread(0.05), "v_pred": torch.zeros(0)}, {}, (SD, 768, 1024, "v_prediction")),
    ],
)  # fmt: skip
def test_sd2(
    tmp_path: Path, marks: dict[str, Any], metadata: dict[str, str], expected: tuple[Any, ...]
) -> None:
    source = resolved(ldm("sd21") | marks, tmp_path, metadata=metadata)
    assert found(source) == expected
    assert bool(source.config("unet").get("upcast_attention")) == (expected[1] == 768)
    assert source.config("text_encoder")["num_hidden_layers"] == 23
    tokens = resolve_source(str(tmp_path / "model.safetensors"), config="sd21-base")
    assert found(tokens) == (SD, 512, 1024, "epsilon")


def test_sdxl(tmp_path: Path) -> None:
    source = resolved(ldm("sdxl"), tmp_path)
    assert found(source) == (XL, 1024, 2048, "epsilon")
    assert source.config("vae")["scaling_factor"] == 0.13025
    assert source.defaults == resolve_source("sdxl", "random").defaults


def test_sdxl_of_velocity(tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    source = resolved(ldm("sdxl") | marks, tmp_path)
    assert found(source) == (XL, 1024, 2048, "v_prediction")
    assert source.config("scheduler")["rescale_betas_zero_snr"] is True


def test_sdxl_turbo_is_sdxl_unless_told(tmp_path: Path) -> None:
    metadata = {"modelspec.title": "SDXL Turbo 1.0"}
    source = resolved(ldm("sdxl"), tmp_path, metadata=metadata)
    assert (source.guidance, found(source)[1]) == ("classifier-free", 1024)
    assert source.single is not None
    assert "its name says Turbo" in str(source.single.findings[-1][0])
    told = resolve_source(str(tmp_path / "model.safetensors"), config="sdxl-turbo")
    assert (told.guidance, found(told)[1]) == ("none", 512)
    assert told.defaults == resolve_source("sdxl-turbo", "random").defaults


@pytest.mark.parametrize(
    ("changes", "name", "millions"), [(SSD, "SSD-1B", 1330), (VEGA, "Segmind Vega", 745)]
)
def test_sdxl_with_fewer_layers(
    tmp_path: Path, changes: dict[str, Any], name: str, millions: int
) -> None:
    tensors = ldm("sdxl", **changes)
    source = resolved(tensors, tmp_path)
    assert found(source) == (XL, 1024, 2048, "epsilon")
    assert source.single is not None
    assert name in str(source.single.findings[0][0])
    unet = source.config("unet")
    assert shapes(unet) == shapes(unet | changes)
    count = sum(
        tensor.numel() for key, tensor in tensors.items() if key.startswith("model.diffusion_model")
    )
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


def test_playground(tmp_path: Path) -> None:
    mean, deviation = [-1.5, 1.75, -1.25, 2.5], [8.5, 6.0, 6.5, 5.25]  # halves are exact in fp16
    marks = {"edm_mean": torch.tensor(mean).reshape(1, 4, 1, 1), "edm_std": torch.tensor(deviation)}
    source = resolved(ldm("sdxl") | marks, tmp_path)
    vae = source.config("vae")
    assert (vae["latents_mean"], vae["latents_std"], vae["scaling_factor"]) == (
        mean,
        deviation,
        0.5,
    )
    assert source.samplers == ("edm-dpm++2m",)
    assert source.defaults.scheduler == "edm-dpm++2m"


@pytest.mark.parametrize(("name", "family"), [("lcm-sd15", SD), ("lcm-sdxl", XL)])
def test_lcm(tmp_path: Path, name: str, family: str) -> None:
    source = resolved(ldm(name), tmp_path)
    assert (source.family.name, source.guidance) == (family, "embedded")
    assert source.defaults.scheduler == "lcm"


def test_averaged_weights_beside(tmp_path: Path) -> None:
    tensors = ldm("sd15")
    averaged = {
        "model_ema." + "".join(key.split(".")[1:]): tensor
        for key, tensor in tensors.items()
        if key.startswith("model.diffusion_model")
    }
    source = resolved(tensors | averaged, tmp_path, "F32")
    assert found(source) == (SD, 512, 768, "epsilon")
    assert source.single is not None
    assert "averaged weights (EMA)" in str(source.single.findings[-1][0])


def test_diffusers_unet_in_a_file_of_its_own(tmp_path: Path) -> None:
    unet = component("lcm-sd15", "unet")
    message = refused(unet, tmp_path)
    assert message.endswith(
        "give a diffusers folder of its kind, which has one, with config='FOLDER'"
    )


def test_without_vae(tmp_path: Path) -> None:
    message = refused(ldm("sd15", vae=False), tmp_path)
    assert message.endswith("model.safetensors has no VAE: give one with vae='FILE'")
    vae = checkpoints.save_header(
        checkpoints.vae_to_ldm(component("sd15", "vae")), tmp_path / "vae.safetensors"
    )
    source = resolve_source(str(tmp_path / "model.safetensors"), vae=str(vae))
    assert source.weight_paths("vae") == (vae,)


def test_a_refiner(tmp_path: Path) -> None:
    """Its one text encoder is SDXL's second, and the first of its file."""
    published = shapes(resolve_source("sdxl", "random").config("unet") | REFINER)
    refiner = resolve_source("sdxl-refiner", "random")
    assert shapes(refiner.config("unet")) == published
    tensors = ldm("sdxl", text=False, **REFINER) | prefixed(
        "conditioner.embedders.0.model.",
        checkpoints.clip_to_open_clip(component("sdxl", "text_encoder_2")),
    )
    source = resolved(tensors, tmp_path)
    assert found(source) == ("stable-diffusion-xl-refiner", 1024, 1280, "epsilon")
    assert source.single is not None
    assert set(source.single.parts) == {"unet", "vae", "text_encoder_2"}
    assert check_options(source, "fp16").image_to_image
    bare = refused(ldm("sdxl", text=False, **REFINER), tmp_path)
    assert "has no text_encoder_2: give a diffusers folder of its kind" in bare


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_without_text_encoder(tmp_path: Path, name: str) -> None:
    message = refused(ldm(name, text=False), tmp_path)
    assert "has no text_encoder: give a diffusers folder of its kind" in message


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("sd15", {"in_channels": 9}, "an inpainting UNet, which takes 9 channels"),
        ("sd21", {"in_channels": 9}, "an inpainting UNet, which takes 9 channels"),
        ("sdxl", {"in_channels": 9}, "an inpainting UNet, which takes 9 channels"),
        ("sd15", {"in_channels": 8}, "InstructPix2Pix"),
        ("sd21", {"in_channels": 5}, "a depth-to-image UNet"),
        ("sd21", {"in_channels": 7}, "an upscaler's UNet"),
    ],
)  # fmt: skip
def test_unets_of_other_pipelines(
    tmp_path: Path, name: str, changes: dict[str, Any], what: str
) -> None:
    tensors = ldm(name, text=False, **changes)
    message = refused(tensors, tmp_path)
    assert f"is {what}" in message or what in message
    assert "is not supported; build the base model" in message
    assert "is not supported" in refused(tensors, tmp_path, config=name)


@pytest.mark.parametrize(
    ("name", "changes", "difference"),
    [
        ("sd15", {"block_out_channels": [320, 640, 960, 1280]},
         "unlike sd15, widths (320, 640, 960, 1280), not (320, 640, 1280, 1280)"),
        ("sd15", {"cross_attention_dim": 512}, "it reads text of width 512"),
        # KOALA-700M has no middle, and one residual block a level.
        ("sdxl", {"layers_per_block": 1}, "unlike sdxl, down"),
    ],
)  # fmt: skip
def test_odd_sizes(tmp_path: Path, name: str, changes: dict[str, Any], difference: str) -> None:
    message = refused(ldm(name, **changes), tmp_path)
    assert difference in message
    assert message.endswith("config='FOLDER'")


def test_configuration_of_another_size(tmp_path: Path) -> None:
    message = refused(ldm("sd15"), tmp_path, config="sd21")
    assert "context 768, not 1024: choose another config" in message


def test_cosxl(tmp_path: Path) -> None:
    marks = {"edm_vpred.sigma_max": torch.tensor(120.0)}
    assert "as CosXL: give its scheduler" in refused(ldm("sdxl") | marks, tmp_path)
