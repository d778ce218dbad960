"""What a pipeline says that it is made of is refused in one line, before any weight is read."""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from tests.support.small_folder import WEIGHTS, edit_json, safetensors, write_json
from tgate_export.common.errors import ModelError
from tgate_export.families import geometry
from tgate_export.families import source as source_module
from tgate_export.families.components import MODEL_TYPES, SCHEDULERS
from tgate_export.families.names import NAMED_MODELS
from tgate_export.families.registry import FAMILIES
from tgate_export.families.source import resolve_source


def refused(model: Path, weights: Any = "pretrained") -> str:
    with pytest.raises(ModelError) as caught:
        resolve_source(str(model), weights)
    message = str(caught.value)
    assert str(model) in message
    assert "\n" not in message
    assert "download" not in message
    return message


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when a file of weights is opened."""

    def fail(path: Path) -> None:
        pytest.fail(f"{path} was read")

    monkeypatch.setattr(source_module, "check_safetensors", fail)


def entry(component: str, *value: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "model_index.json", **{component: list(value)})


def config(component: str, **changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / component / "config.json", **changes)


def scheduler(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "scheduler" / "scheduler_config.json", **changes)


def index(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "model_index.json", **changes)


def exported(name: str) -> Callable[[Path], None]:
    def export(folder: Path) -> None:
        for component, weights in WEIGHTS.items():
            (folder / component / weights).unlink()
            (folder / component / name).write_bytes(b"x")
        (folder / "vae").rename(folder / "vae_decoder")

    return export


def adapter(folder: Path) -> None:
    write_json(folder / "text_encoder" / "adapter_config.json", {"peft_type": "LORA"})


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (entry("vae", "diffusers", "AutoencoderTiny"), "its vae is a AutoencoderTiny of diffusers"),
        (entry("vae", "diffusers", "AsymmetricAutoencoderKL"), "expected a AutoencoderKL"),
        (entry("unet", "my_unet", "UNet2DConditionModel"), "UNet2DConditionModel of my_unet"),
        (entry("unet", "os", "system"), "its unet is a system of os"),
        (entry("text_encoder", "transformers", "BertModel"), "its text_encoder is a BertModel"),
        (entry("text_encoder", "transformers", "CLIPTextModelWithProjection"), "WithProjection"),
        (entry("tokenizer", "transformers", "BertTokenizer"), "its tokenizer is a BertTokenizer"),
        (entry("tokenizer", "tokenizer", "MyTokenizer"), "its tokenizer is a MyTokenizer"),
        (entry("text_encoder", None, None), "comes without its text_encoder"),
        (entry("vae", "diffusers"), "model_index.json has ['diffusers'] for vae"),
        (entry("scheduler", "diffusers", "IPNDMScheduler"), "its scheduler is a IPNDMScheduler"),
        (entry("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler"), "FlowMatchEuler"),
        (entry("scheduler", "my_file", "DDIMScheduler"), "its scheduler is a DDIMScheduler"),
        (index(_class_name=["my_pipeline", "MyPipeline"]), "a MyPipeline of its own file my_pip"),
        (config("unet", _class_name="UNetMotionModel"), "describes a UNetMotionModel"),
        (config("unet", _class_name=["os", "system"]), "describes a ['os', 'system']"),
        (config("text_encoder", model_type="bert"), "describes a bert"),
        (config("unet", num_class_embeds=10), "num_class_embeds is 10"),
        (config("unet", encoder_hid_dim=16), "encoder_hid_dim is 16"),
        (config("unet", in_channels=[4, 4]), "in_channels is [4, 4], expected a whole number"),
        (config("unet", cross_attention_dim=[32, 64]), "cross_attention_dim is [32, 64]"),
        (config("text_encoder", num_hidden_layers="12"), "num_hidden_layers is '12'"),
        (
            config("unet", quantization_config={"quant_method": "bitsandbytes"}),
            "unet/config.json says that its weights are quantised (bitsandbytes)",
        ),
        (config("text_encoder", quantization_config=3), "are quantised (quantization_config)"),
        (config("text_encoder", compression_config={}), "are quantised (compression_config)"),
        (adapter, "text_encoder/ has an adapter beside its weights"),
        (scheduler(prediction_type="flow_prediction"), "prediction_type 'flow_prediction'"),
        (scheduler(prediction_type=None), "prediction_type None"),
        (exported("model.onnx"), "was exported to ONNX already"),
        (exported("openvino_model.xml"), "was exported to OpenVINO already"),
        (exported("model.engine"), "was exported to TensorRT already"),
    ],
)
def test_refused_before_weights_are_read(
    pipeline: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(pipeline)
    assert reason in refused(pipeline)


@pytest.mark.parametrize(
    "key",
    ["down_blocks.0.attn1.to_q.lora_A.default.weight", "a.to_q.base_layer.weight",
     "a.attn1.processor.to_q_lora.down.weight"],
)  # fmt: skip
def test_lora_that_is_still_attached(pipeline: Path, key: str) -> None:
    (pipeline / "unet" / WEIGHTS["unet"]).write_bytes(safetensors({"other": 8, key: 8}))
    message = refused(pipeline)
    assert f"has LoRA layers attached ({key})" in message
    assert "fuse_lora()" in message


@pytest.mark.parametrize("dtype", ["I8", "U8", "F8_E4M3", "F4"])
def test_quantised_weights(pipeline: Path, dtype: str) -> None:
    path = pipeline / "unet" / WEIGHTS["unet"]
    path.write_bytes(safetensors({"weight": 8}, dtype))
    assert f"is quantised (weight is {dtype})" in refused(pipeline)


def test_components_that_are_there_in_another_way(pipeline: Path) -> None:
    """What diffusers and transformers write in other words for the same thing."""
    edit_json(
        pipeline / "model_index.json",
        tokenizer=["transformers", "CLIPTokenizerFast"],
        unet=["diffusers", "UNet2DConditionModel"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=[None, None],
    )
    whole = {"model_type": "clip", "text_config": {"num_hidden_layers": 5}, "vision_config": {}}
    write_json(pipeline / "text_encoder" / "config.json", whole)
    source = resolve_source(str(pipeline))
    assert source.family.clip_skips(source) == 4
    edit_json(pipeline / "unet" / "config.json", cross_attention_dim=[32, 32])
    assert source.conditioning().prompt[0].shape == (77, 32)


def test_pixart_transformer_of_the_general_class(tmp_path: Path) -> None:
    """As the published PixArt-alpha says it, and diffusers reads it."""
    folder = Path(shutil.copytree(NAMED_MODELS["pixart-alpha"].directory, tmp_path / "pixart"))
    shutil.copytree(NAMED_MODELS["sd15"].directory / "vae", folder / "vae")
    edit_json(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    general = {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"}
    edit_json(folder / "transformer" / "config.json", **general)
    assert resolve_source(str(folder), "random").family.name == "pixart"
    edit_json(folder / "transformer" / "config.json", norm_type="ada_norm_zero")
    assert "its transformer is a Transformer2DModel" in refused(folder, "random")


@pytest.mark.parametrize("pair", [(8, 12), (12, 8)])
def test_sample_size_of_a_pair(pipeline: Path, pair: tuple[int, int]) -> None:
    """Height and width, as diffusers' pipeline takes its default size from it."""
    edit_json(pipeline / "unet" / "config.json", sample_size=pair)
    height, width = pair
    assert geometry.default_size(resolve_source(str(pipeline))) == (4 * width, 4 * height)


def test_schedulers_are_those_that_diffusers_exchanges() -> None:
    usual = {member.name for member in KarrasDiffusionSchedulers}
    assert usual <= SCHEDULERS
    edm = {name for name in SCHEDULERS if name.startswith("EDM")}  # by sigmas, not by betas
    for name in SCHEDULERS - edm - {"DPMSolverSDEScheduler"}:  # which wants a package of its own
        options = inspect.signature(getattr(diffusers, name).__init__).parameters
        assert {"num_train_timesteps", "beta_start", "beta_schedule"} <= set(options), name


def test_model_types_are_those_of_transformers() -> None:
    classes = {
        name.partition(".")[2]
        for family in FAMILIES.values()
        for name in family.weights.values()
        if name.startswith("transformers.")
    }
    assert classes == set(MODEL_TYPES)
    for name, kind in MODEL_TYPES.items():
        assert (
            getattr(importlib.import_module("transformers"), name).config_class.model_type == kind
        )


def test_bundle_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "graphs").mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps({}))
    assert "is a bundle that was built already" in refused(tmp_path)
