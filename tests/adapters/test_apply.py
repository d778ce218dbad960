"""LoRA files change exactly the weights that diffusers and PEFT change with them, as they do."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn import functional

from tests.support import loras, tiny
from tests.support.loras import ATTENTION, CONVOLUTIONS, MOST
from tgate_export.adapters.apply import apply_loras
from tgate_export.adapters.layer_names import layer_names
from tgate_export.adapters.lora_file import open_lora
from tgate_export.common.errors import ModelError
from tgate_export.common.safetensors_header import read_header
from tgate_export.families.registry import FAMILIES
from tgate_export.families.source import resolve_source

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
# Tiny pipelines of the families whose models take LoRA.
WITH_LORAS = [
    kind.name for family, kinds in tiny.FAMILIES.items() if FAMILIES[family].loras for kind in kinds
]
_PIPELINES: dict[str, Any] = {}


def pipeline(name: str) -> Any:
    """A tiny pipeline of the test's own."""
    if name not in _PIPELINES:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            _PIPELINES[name] = tiny.PIPELINES[name].make()
    return copy.deepcopy(_PIPELINES[name])


def components(pipe: Any) -> dict[str, nn.Module]:
    found = {name: getattr(pipe, name, None) for name in COMPONENTS}
    return {name: module for name, module in found.items() if module is not None}


def fused(name: str, *files: tuple[Path, float]) -> Any:
    """Return the pipeline with LoRA files fused by diffusers and PEFT."""
    pipe = pipeline(name)
    for index, (file, scale) in enumerate(files):
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=f"a{index}")
        pipe.fuse_lora(adapter_names=[f"a{index}"], lora_scale=scale)
        pipe.unload_lora_weights()
    return pipe


def ours(name: str, *files: tuple[Path, float]) -> Any:
    pipe = pipeline(name)
    opened = [open_lora(str(file), scale) for file, scale in files]
    for component, module in components(pipe).items():
        apply_loras(module, component, opened)
    return pipe


def assert_same(found: Any, expected: Any, changed: Mapping[str, Any], name: str) -> None:
    """Compare all weights: changed ones within rounding, all others to the bit."""
    before = components(pipeline(name))
    for component, module in components(expected).items():
        theirs = module.state_dict()
        mine = components(found)[component].state_dict()
        assert mine.keys() == theirs.keys()
        paths = {f"{path}.weight" for path in changed.get(component, ())}
        for key, value in theirs.items():
            if key in paths:
                assert not torch.equal(value, before[component].state_dict()[key]), key
                error = (mine[key] - value).norm() / value.norm()
                assert error < 1e-6, (component, key, error)  # of fp32
            else:
                assert torch.equal(mine[key], value), (component, key)


def changes(pipe: Any, chosen: Any) -> dict[str, Any]:
    return {name: loras.change(module, chosen) for name, module in components(pipe).items()}


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_diffusers_names(tmp_path: Path, name: str, scale: float) -> None:
    made = changes(pipeline(name), MOST)
    tensors = {}
    for component, change in made.items():
        tensors |= loras.peft(f"{component}.", change)
    file = loras.save(tensors, tmp_path / "a.safetensors")
    assert_same(ours(name, (file, scale)), fused(name, (file, scale)), made, name)


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_kohya_names(tmp_path: Path, name: str) -> None:
    made = changes(pipeline(name), MOST)
    for path in list(made["unet"]):
        if path.startswith("add_embedding"):  # which diffusers reads in SGM's names alone
            del made["unet"][path]
    second = "text_encoder_2" in made
    tensors = loras.kohya("lora_unet_", made["unet"], 2.0)
    text = {f"text_model.{path}": pair for path, pair in made["text_encoder"].items()}
    tensors |= loras.kohya("lora_te1_" if second else "lora_te_", text, 3.0)
    if second:
        text = {
            path if path.startswith("text_") else f"text_model.{path}": pair
            for path, pair in made["text_encoder_2"].items()
        }
        tensors |= loras.kohya("lora_te2_", text, 8.0)
    file = loras.save(tensors, tmp_path / "a.safetensors")
    assert_same(ours(name, (file, 0.8)), fused(name, (file, 0.8)), made, name)


def test_sgm_names(tmp_path: Path) -> None:
    unet = pipeline("sdxl").unet
    made = {"unet": loras.change(unet, MOST)}
    file = loras.save(loras.sgm(made["unet"], unet, 1.0), tmp_path / "a.safetensors")
    assert "lora_unet_input_blocks_3_1_proj_in.alpha" in read_header(file).tensors
    assert_same(ours("sdxl", (file, 1.0)), fused("sdxl", (file, 1.0)), made, "sdxl")


def test_old_names_of_diffusers(tmp_path: Path) -> None:
    pipe = pipeline("sd15")
    made = changes(pipe, ATTENTION)
    tensors = loras.old_diffusers("unet.", made["unet"])
    tensors |= loras.old_text("text_encoder.", made["text_encoder"])
    file = loras.save(tensors, tmp_path / "a.safetensors")
    assert_same(ours("sd15", (file, 1.0)), fused("sd15", (file, 1.0)), made, "sd15")


def test_several_files_are_applied_in_order(tmp_path: Path) -> None:
    unet = pipeline("sd15").unet
    one = loras.change(unet, ATTENTION, rank=2)
    two = loras.change(unet, CONVOLUTIONS, rank=3, seed=1) | loras.change(unet, ATTENTION, seed=2)
    files = (
        (loras.save(loras.kohya("lora_unet_", one, 1.0), tmp_path / "a.safetensors"), 0.5),
        (loras.save(loras.peft("unet.", two), tmp_path / "b.safetensors"), 2.0),
    )
    assert_same(ours("sd15", *files), fused("sd15", *files), {"unet": two}, "sd15")


def test_settings_of_peft_in_the_metadata(tmp_path: Path) -> None:
    made = {"unet": loras.change(pipeline("sd15").unet, ATTENTION)}
    first, *others = made["unet"]
    settings = {
        "unet.r": 4,
        "unet.lora_alpha": 6,
        "unet.alpha_pattern": {first: 1.5},
        "unet.target_modules": [first, *others],
    }
    file = loras.save(
        loras.peft("unet.", made["unet"]),
        tmp_path / "a.safetensors",
        lora_adapter_metadata=json.dumps(settings),
    )
    assert_same(ours("sd15", (file, 1.0)), fused("sd15", (file, 1.0)), made, "sd15")
    plain = loras.save(loras.peft("unet.", made["unet"]), tmp_path / "b.safetensors")
    weight = first + ".weight"
    before, once, found = (
        pipe.unet.state_dict()[weight]
        for pipe in (pipeline("sd15"), ours("sd15", (plain, 1.0)), ours("sd15", (file, 1.0)))
    )
    torch.testing.assert_close(found - before, (once - before) * 1.5 / 4)


@pytest.mark.parametrize("stabilised", [False, True])
def test_a_folder_of_peft(tmp_path: Path, stabilised: bool) -> None:
    expected = pipeline("sd15")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "conv1"], use_rslora=stabilised
    )
    wrapped = peft.get_peft_model(expected.unet, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:  # zeros at first
                parameter.copy_(torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path)
    expected.unet = wrapped.merge_and_unload()
    file = tmp_path / "adapter_model.safetensors"
    changed = [
        path for path, _ in expected.unet.named_modules() if path.endswith(("to_q", "conv1"))
    ]
    assert_same(ours("sd15", (file, 1.0)), expected, {"unet": changed}, "sd15")
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"its alpha is in adapter_config\.json: put that beside"):
        open_lora(str(file))


def test_the_layers_between_are_one_after_the_other(tmp_path: Path) -> None:
    """LoCon with `lora_mid`: a pixel, the kernel, a pixel."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, padding=1, bias=False)
    down, mid, up = torch.randn(2, 6, 1, 1), torch.randn(2, 2, 3, 3), torch.randn(8, 2, 1, 1)
    tensors = {"down.weight": down, "mid.weight": mid, "up.weight": up}
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    file = loras.save(
        {f"{key}.lora_{end}": tensor for end, tensor in tensors.items()}
        | {f"{key}.alpha": torch.tensor(3)},
        tmp_path / "a.safetensors",
    )
    resnet = nn.ModuleDict({"conv1": conv})
    unet = nn.ModuleDict(
        {"down_blocks": nn.ModuleList([nn.ModuleDict({"resnets": nn.ModuleList([resnet])})])}
    )
    image = torch.randn(1, 6, 5, 5)
    with torch.no_grad():
        between = functional.conv2d(functional.conv2d(image, down), mid, padding=1)
        expected = conv(image) + 0.5 * 3 / 2 * functional.conv2d(between, up)
        apply_loras(unet, "unet", [open_lora(str(file), 0.5)])
        torch.testing.assert_close(conv(image), expected, rtol=1e-5, atol=1e-4)


def test_half_precision_rounds_once(tmp_path: Path) -> None:
    unet = pipeline("sd15").unet
    made = loras.change(unet, ATTENTION)
    file = loras.save(
        {key: value.half() for key, value in loras.kohya("lora_unet_", made, 2.0).items()},
        tmp_path / "a.safetensors",
    )
    before = copy.deepcopy(unet).half()
    found = copy.deepcopy(before)
    apply_loras(found, "unet", [open_lora(str(file), 0.3)])
    for path, (down, up) in made.items():
        exact = before.get_submodule(path).weight.double()
        exact = exact + 0.3 * 2 / 4 * up.half().double() @ down.half().double()
        error = (found.get_submodule(path).weight.double() - exact).abs()
        # Half a unit of fp16 in the last place, and of fp32's before it.
        assert (error <= exact.abs() * 2**-11 * 1.01 + 2**-25).all()


@pytest.mark.parametrize("name", WITH_LORAS)
def test_no_two_layers_share_a_name(name: str) -> None:
    for component, module in components(pipeline(name)).items():
        paths = [
            path
            for path, part in module.named_modules()
            if isinstance(part, (nn.Linear, nn.Conv2d))
        ]
        names = layer_names(component, paths)
        assert set(names.values()) == set(paths)
        assert all(names[path.replace(".", "_")] == path for path in paths)


def refused(name: str, file: Path) -> str:
    with pytest.raises(ModelError) as caught:
        ours(name, (file, 1.0))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_of_another_model(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    loras.save(loras.peft("unet.", loras.change(pipeline("sdxl").unet, ATTENTION)), file)
    assert "unet has no layer down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_k" in (
        refused("sd15", file)
    )
    key = "unet.up_blocks.1.attentions.0.proj_in"
    wrong = {f"{key}.lora_A.weight": torch.ones(4, 7), f"{key}.lora_B.weight": torch.ones(32, 4)}
    loras.save(wrong, file)
    assert "up_blocks.1.attentions.0.proj_in of unet is [32, 32, 1, 1], and the file has" in (
        refused("sd15", file)
    )
    loras.save(loras.peft("unet.", {"mid_block": (torch.ones(1, 2), torch.ones(2, 1))}), file)
    assert "no layer mid_block (1 of 1 are not there)" in refused("sd15", file)


def test_two_names_of_one_layer(tmp_path: Path) -> None:
    unet = pipeline("sdxl").unet
    made = loras.change(unet, ATTENTION)
    tensors = loras.sgm(made, unet) | loras.kohya("lora_unet_", made)
    assert "has two for down_blocks.1." in refused(
        "sdxl", loras.save(tensors, tmp_path / "a.safetensors")
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_numbers_that_are_not_finite(tmp_path: Path, value: float) -> None:
    made = loras.change(pipeline("sd15").unet, ATTENTION)
    path, (down, _) = next(iter(made.items()))
    down[0, 0] = value
    file = loras.save(loras.peft("unet.", made), tmp_path / "a.safetensors")
    if value == 3e38:
        file = loras.save(loras.kohya("lora_unet_", made, 1e9), tmp_path / "a.safetensors")
    assert f"weights of {path} in unet are infinite or no numbers" in refused("sd15", file)


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_names_of_published_sizes(name: str) -> None:
    config = resolve_source(name, "random").config("unet")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    made = {
        path: (part.weight, part.weight)
        for path, part in unet.named_modules()
        if isinstance(part, (nn.Linear, nn.Conv2d))
    }
    names = layer_names("unet", made)
    for tensors in (loras.sgm(made, unet), loras.kohya("lora_unet_", made)):
        found = [key.partition(".")[0].removeprefix("lora_unet_") for key in tensors]
        assert [names[name] for name in found[::2]] == list(made)
