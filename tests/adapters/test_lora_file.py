"""What is in a LoRA file, and which files are refused, by the header alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.loras import save
from tgate_export.adapters.lora_file import open_lora
from tgate_export.common.errors import InvalidRequestError, ModelError, TGateError

LAYER = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
KEY = f"lora_unet_{LAYER}"
DOWN, UP = torch.ones(2, 8), torch.ones(6, 2)
PAIR = {f"{KEY}.lora_down.weight": DOWN, f"{KEY}.lora_up.weight": UP}
ALPHA = f"{KEY}.alpha"


def pair(key: str, down: str = "lora_A.weight", up: str = "lora_B.weight") -> dict[str, Any]:
    return {f"{key}.{down}": DOWN, f"{key}.{up}": UP}


def refused(error: type[TGateError], file: Path | str, scale: float = 1.0) -> str:
    with pytest.raises(error) as caught:
        open_lora(str(file), scale)
    message = str(caught.value)
    assert "\n" not in message
    assert Path(file).name in message
    return message


def test_layers(tmp_path: Path) -> None:
    tensors = {
        **PAIR,
        ALPHA: torch.tensor(3.0),
        **pair("lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_down.weight", "lora_up.weight"),
    }
    lora = open_lora(str(save(tensors, tmp_path / "a.safetensors")), -0.5)
    assert lora.scale == -0.5
    assert {component: list(layers) for component, layers in lora.layers.items()} == {
        "unet": [LAYER], "text_encoder": ["text_model_encoder_layers_0_mlp_fc1"],
    }  # fmt: skip
    layer = lora.layers["unet"][LAYER]
    assert (layer.rank, layer.alpha) == (2, 3.0)
    assert lora.layers["text_encoder"]["text_model_encoder_layers_0_mlp_fc1"].alpha == 2.0
    assert lora.text_width() == (LAYER, 8)


@pytest.mark.parametrize(
    ("key", "component", "name"),
    [
        ("unet.mid_block.a", "unet", "mid_block.a"),
        ("text_encoder.text_model.b", "text_encoder", "text_model.b"),
        ("text_encoder_2.encoder.b", "text_encoder_2", "encoder.b"),
        ("diffusion_model.input_blocks.1.1.proj_in", "unet", "input_blocks.1.1.proj_in"),
        ("down_blocks.0.a", "unet", "down_blocks.0.a"),
        ("text_model.encoder.layers.0.a", "text_encoder", "text_model.encoder.layers.0.a"),
    ],
)
def test_components(tmp_path: Path, key: str, component: str, name: str) -> None:
    lora = open_lora(str(save(pair(key), tmp_path / "a.safetensors")))
    assert {part: list(layers) for part, layers in lora.layers.items()} == {component: [name]}


@pytest.mark.parametrize(
    ("value", "alpha"),
    [(torch.tensor(3), 3.0), (torch.tensor([1.5]), 1.5), (torch.tensor(2.0).bfloat16(), 2.0)],
)
def test_alpha_of_any_type(tmp_path: Path, value: torch.Tensor, alpha: float) -> None:
    lora = open_lora(str(save({**PAIR, ALPHA: value}, tmp_path / "a.safetensors")))
    assert lora.layers["unet"][LAYER].alpha == alpha


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "is empty"),
        ({"a": DOWN}, "has a, which is no tensor of a LoRA"),
        ({**PAIR, "unet.conv_in.weight": DOWN}, "has unet.conv_in.weight, which is no tensor"),
        ({f"{KEY}.lora_up.weight": UP}, f"{KEY}.lora_up.weight and no down weight beside it"),
        ({f"{KEY}.lora_down.weight": DOWN}, "no up weight beside it"),
        ({ALPHA: torch.tensor(1.0)}, f"{ALPHA} and no down weight beside it"),
        ({**PAIR, ALPHA: torch.tensor(float("nan"))}, f"{ALPHA} is not one finite number"),
        ({**PAIR, ALPHA: torch.tensor(float("inf"))}, "not one finite number"),
        ({**PAIR, ALPHA: torch.ones(2)}, "not one finite number"),
        ({**PAIR, f"{KEY}.lora_up.weight": torch.ones(6, 3)}, "has other ranks in"),
        ({**PAIR, f"{KEY}.lora_mid.weight": torch.ones(2, 3, 3, 3)}, "has other ranks in"),
        ({f"{KEY}.lora_down.weight": torch.ones(0, 8), f"{KEY}.lora_up.weight": torch.ones(6, 0)},
         f"has no rank in {KEY}.lora_down.weight [0, 8]"),
        ({f"{KEY}.lora_down.weight": torch.ones(8), f"{KEY}.lora_up.weight": UP}, "has no rank in"),
        ({**PAIR, **pair(KEY)}, "has two of down for"),
        ({key: value.long() for key, value in PAIR.items()}, "is quantised"),
        ({**PAIR, f"{KEY}.dora_scale": UP}, "is DoRA"),
        ({**PAIR, "unet.a.lora_magnitude_vector": UP}, "is DoRA"),
        ({f"{KEY}.hada_w1_a": UP}, f"is LoHa ({KEY}.hada_w1_a), which is not supported"),
        ({f"{KEY}.lokr_w1": UP}, "is LoKr"),
        ({f"{KEY}.oft_blocks": UP}, "is OFT"),
        ({f"{KEY}.a1.weight": UP}, "is GLoRA"),
        ({f"{KEY}.on_input": UP}, "is (IA)3"),
        ({f"{KEY}.diff": UP}, "is a difference of whole weights"),
        ({**pair("unet.a"), "unet.a.lora_B.bias": UP}, "is a LoRA of biases"),
        (pair("lora_unet_double_blocks_0_img_attn_proj"), "is for a transformer such as FLUX"),
        (pair("transformer.transformer_blocks.0.attn.to_k"), "is for a transformer such as FLUX"),
        (pair("lora_unet_joint_blocks_1_x"), "is for a transformer"),
        (pair("vae.decoder.conv_in"), "is of no component that is known"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], reason: str) -> None:
    assert reason in refused(ModelError, save(tensors, tmp_path / "mine.safetensors"))


def test_files_that_are_none(tmp_path: Path) -> None:
    file = save(PAIR, tmp_path / "a.safetensors")
    for scale in (float("nan"), float("inf"), -float("inf"), 10**400):
        assert "its scale must be a finite number" in refused(InvalidRequestError, file, scale)
    assert "no such file" in refused(InvalidRequestError, tmp_path / "b.safetensors")
    assert "no such file" in refused(InvalidRequestError, tmp_path)
    content = file.read_bytes()
    for size in (len(content) - 1, 40, 8, 3, 0):
        file.write_bytes(content[:size])
        message = refused(ModelError, file)
        assert "is truncated" in message or "is not a safetensors file" in message
    pickled = tmp_path / "a.pt"
    torch.save(PAIR, pickled)
    assert "is no .safetensors file, and nothing else is loaded" in refused(ModelError, pickled)
    pickled.rename(tmp_path / "b.safetensors")
    assert "is not a safetensors file" in refused(ModelError, tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("[]", "is no JSON object"),
        ("{", "is no JSON object"),
        ({}, None),  # nothing of the UNet
        ({"unet.r": 2}, "no finite numbers"),
        ({"unet.lora_alpha": "3"}, "no finite numbers"),
        ({"unet.lora_alpha": 10**400}, "no finite numbers"),
        ({"unet.lora_alpha": float("nan")}, "is no JSON object"),
        ({"unet.lora_alpha": 3, "unet.alpha_pattern": [3]}, "alpha_pattern is no JSON object"),
        ({"unet.lora_alpha": 3, "unet.alpha_pattern": {"to_q": 3}}, "names 'to_q', which is no"),
        ({"unet.lora_alpha": 3, "unet.use_dora": True}, "says use_dora: DoRA is not supported"),
    ],
)
def test_settings_in_the_metadata(tmp_path: Path, settings: Any, reason: str | None) -> None:
    text = settings if isinstance(settings, str) else json.dumps(settings)
    file = save(pair("unet.to_k"), tmp_path / "a.safetensors", lora_adapter_metadata=text)
    if reason is None:
        assert open_lora(str(file)).layers["unet"]["to_k"].alpha == 2.0
    else:
        assert reason in refused(ModelError, file)


PIECES = [
    "lora_unet_", "lora_te1_", "unet.", "text_encoder.", "base_model.model.", "down_blocks.", "0",
    "_", ".", "attn2", ".processor", ".to_k", "_lora", ".lora_down", ".lora_A", ".down", ".up",
    ".lora_up", ".weight", ".alpha", ".default", ".dora_scale", "transformer.", "é", "\x00",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@given(
    keys=st.lists(st.lists(st.sampled_from(PIECES), max_size=7).map("".join), max_size=4),
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=4, max_size=4),
)
@example(keys=["lora_unet_.lora_down.weight", "lora_unet_.lora_up.weight"], shapes=[[1, 1]] * 4)
def test_any_keys_are_read_or_refused_in_a_line(
    folder: Path, keys: list[str], shapes: list[list[int]]
) -> None:
    tensors = {key: torch.ones(shape) for key, shape in zip(keys, shapes, strict=False)}
    file = save(tensors, folder / "a.safetensors")
    try:
        lora = open_lora(str(file))
    except ModelError as error:
        lines = str(error).splitlines()
    else:
        lines = []
    if lines:
        assert len(lines) == 1
        return
    read = [
        key for layers in lora.layers.values() for layer in layers.values() for key in layer.shapes
    ]
    assert sorted(read) == sorted(key for key in tensors if not key.endswith(".alpha"))
