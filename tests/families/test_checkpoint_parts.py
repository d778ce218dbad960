"""Keys say what a file is; whatever keys there are, the answer is parts or one line."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.small_folder import safetensors
from tgate_export.common.errors import ModelError, TGateError
from tgate_export.families import checkpoint_unet
from tgate_export.families.checkpoint_parts import Part, find_parts, find_vae
from tgate_export.families.single_file import open_single_file
from tgate_export.families.source import resolve_source

FILE = Path("model.safetensors")
LDM_UNET = "model.diffusion_model.input_blocks.0.0.weight"
DIFFUSERS_UNET = "down_blocks.0.resnets.0.conv1.weight"
LDM_VAE = "decoder.mid.block_1.conv1.weight"
DIFFUSERS_VAE = "decoder.mid_block.resnets.0.conv1.weight"
TOKENS = "text_model.embeddings.token_embedding.weight"


@pytest.mark.parametrize(
    ("key", "component", "prefix", "layout"),
    [
        (f"first_stage_model.{LDM_VAE}", "vae", "first_stage_model.", "ldm"),
        (f"vae.{LDM_VAE}", "vae", "vae.", "ldm"),
        (f"vae.{DIFFUSERS_VAE}", "vae", "vae.", "diffusers"),
        (f"cond_stage_model.transformer.{TOKENS}", "text_encoder", "cond_stage_model.transformer.",
         "clip"),
        ("cond_stage_model.transformer.embeddings.token_embedding.weight", "text_encoder",
         "cond_stage_model.transformer.", "clip"),
        ("cond_stage_model.model.token_embedding.weight", "text_encoder",
         "cond_stage_model.model.", "open-clip"),
        (f"conditioner.embedders.0.transformer.{TOKENS}", "text_encoder",
         "conditioner.embedders.0.transformer.", "clip"),
        ("conditioner.embedders.0.model.token_embedding.weight", "text_encoder",
         "conditioner.embedders.0.model.", "open-clip"),
        ("conditioner.embedders.1.model.token_embedding.weight", "text_encoder_2",
         "conditioner.embedders.1.model.", "open-clip"),
        (f"text_encoder_2.{TOKENS}", "text_encoder_2", "text_encoder_2.", "diffusers"),
    ],
)  # fmt: skip
def test_parts(key: str, component: str, prefix: str, layout: str) -> None:
    expected = Part(FILE, prefix, layout)  # type: ignore[arg-type]
    unet = Part(FILE, "model.diffusion_model.", "ldm")
    assert find_parts(FILE, {LDM_UNET, key}) == {"unet": unet, component: expected}


def refused(*keys: str) -> str:
    with pytest.raises(ModelError) as caught:
        find_parts(FILE, set(keys))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("model.safetensors ")
    return message


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "a LoRA, which"),
        (["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], "is a LoRA"),
        (["base_model.model.to_k.hada_w1_a"], "is a LoRA"),
        ([LDM_VAE, "encoder.conv_in.weight"], "is a VAE alone, which `vae` takes: build the"),
        ([f"first_stage_model.{LDM_VAE}"], "is a VAE alone"),
        ([DIFFUSERS_VAE, "quant_conv.weight"], "is a VAE alone"),
        ([TOKENS], "is a text encoder alone"),
        (["double_blocks.0.img_attn.proj.weight"], "is a FLUX, whose transformer attends to text"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "is a FLUX"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
         "is a Stable Diffusion 3"),
        (["transformer_blocks.0.attn.to_q.weight", "single_transformer_blocks.0.norm.weight"],
         "is a model whose transformer attends"),
        (["blocks.0.cross_attn.q_linear.weight"], "is a diffusion transformer"),
        (["control_model.input_blocks.0.0.weight", LDM_UNET], "is a ControlNet"),
        (["input_blocks.0.0.weight", "input_hint_block.0.weight"], "is a ControlNet"),
        (["controlnet_cond_embedding.conv_in.weight", DIFFUSERS_UNET], "is a ControlNet"),
        ([LDM_UNET, "model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight"],
         "is a Stable Video Diffusion"),
        (["down_blocks.0.motion_modules.0.norm.weight"], "is a motion module"),
        (["emb_params"], "is a textual inversion"),
        (["clip_g", "clip_l"], "is a textual inversion"),
        (["ip_adapter.1.to_k_ip.weight", "image_proj.norm.weight"], "is an IP-Adapter"),
        (["clip_txt_mapper.weight"], "is a Stable Cascade"),
        (["a", "b", "c", "d"], "is no checkpoint of Stable Diffusion or SDXL"),
        ([], "it has none"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint(keys: list[str], what: str) -> None:
    assert what in refused(*keys)


@pytest.mark.parametrize(
    ("one", "other", "component"),
    [
        (LDM_UNET, DIFFUSERS_UNET, "unet"),
        (LDM_UNET, "input_blocks.0.0.weight", "unet"),
        (f"vae.{LDM_VAE}", f"vae.{DIFFUSERS_VAE}", "vae"),
        (f"cond_stage_model.transformer.{TOKENS}", f"text_encoder.{TOKENS}", "text_encoder"),
    ],
)
def test_names_of_two_kinds(one: str, other: str, component: str) -> None:
    message = refused(LDM_UNET, one, other)
    assert f"has its {component} twice, as " in message


def test_a_vae_is_found_in_a_whole_checkpoint_too() -> None:
    assert find_vae(FILE, {LDM_UNET, f"first_stage_model.{LDM_VAE}"}) == Part(
        FILE, "first_stage_model.", "ldm"
    )
    assert find_vae(FILE, {DIFFUSERS_VAE}) == Part(FILE, "", "diffusers")
    with pytest.raises(ModelError, match="has no VAE of Stable Diffusion"):
        find_vae(FILE, {"decoder.layers.1.conv.0.weight"})  # a tiny autoencoder


_NAMES = """model diffusion_model input_blocks output_blocks middle_block 0 1 2 10 weight bias op
in_layers transformer_blocks attn2 to_k down_blocks up_blocks mid_block resnets attentions conv1
conv_in first_stage_model cond_stage_model conditioner embedders transformer text_model embeddings
token_embedding decoder mid block_1 lora_down time_stack -1 99999999999 é"""
_WORDS = st.sampled_from(_NAMES.split())
_KEYS = st.lists(_WORDS, min_size=1, max_size=8).map(".".join) | st.text(max_size=12)
_SHAPES = st.lists(st.integers(0, 2048), max_size=4).map(tuple)


@settings(deadline=None)
@given(st.sets(_KEYS, max_size=12), st.booleans())
def test_any_keys(keys: set[str], with_unet: bool) -> None:
    keys |= {LDM_UNET} if with_unet else set()
    parts, message = {}, ""
    try:
        parts = find_parts(FILE, keys)
    except ModelError as error:
        message = str(error)
    assert bool(parts) != bool(message)
    assert "\n" not in message
    assert len(message) < 1000
    assert all(any(key.startswith(part.prefix) for key in keys) for part in parts.values())


@settings(deadline=None)
@given(st.dictionaries(_KEYS, _SHAPES, max_size=12))
@example({"input_blocks.0.0.weight": (), "out.2.weight": ()})
@example({"input_blocks.0.0.weight": (320, 4, 3, 3), "input_blocks.1.0.op.weight": (320,)})
@example({"conv_in.weight": (320, 4), "conv_out.weight": (4,), "a.attn2.to_k.weight": (1,)})
def test_any_shapes(shapes: dict[str, tuple[int, ...]]) -> None:
    for layout in ("ldm", "diffusers"):
        found = checkpoint_unet.of_shapes(shapes, layout)  # type: ignore[arg-type]
        assert found is None or len(found.down) == len(found.widths)


@settings(deadline=None)
@given(st.binary(max_size=64), st.sampled_from(["whole", "cut", "bytes"]))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes, how: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    whole = safetensors({LDM_UNET: 64, data.hex(): 4})
    file.write_bytes(
        {"whole": whole, "cut": whole[: 8 + len(data)], "bytes": struct.pack("<Q", 9) + data}[how]
    )
    with pytest.raises(TGateError) as caught:
        open_single_file(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_incomplete_unet(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors({LDM_UNET: 64}))
    with pytest.raises(ModelError, match="has a UNet whose blocks are not those of Stable Diff"):
        resolve_source(str(file))
