"""Which components a checkpoint's file holds, and under whose names, by its keys alone (no torch).

A checkpoint is one safetensors file with a whole pipeline, as people share them: in the names of
CompVis' LDM and Stability's SGM (`model.diffusion_model.input_blocks...`), or in diffusers' own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tgate_export.common.errors import ModelError
from tgate_export.common.hints import Argument

# LDM names the UNet and the VAE; CLIP and OpenCLIP name text encoders; diffusers names all. TAESD's
# author names its decoder alone.
Layout = Literal["ldm", "clip", "open-clip", "diffusers", "taesd"]


@dataclass(frozen=True)
class Part:
    """A component's weights in a file.

    Attributes:
        file: the file.
        prefix: with which the names of its tensors begin.
        layout: whose names they are, after the prefix.
    """

    file: Path
    prefix: str
    layout: Layout


@dataclass(frozen=True)
class _Sign:
    """A key that says that a component is there."""

    component: str
    prefix: str
    layout: Layout
    key: str


_VAE = ("first_stage_model.", "vae.", "")
_TOKENS = "embeddings.token_embedding.weight"
_SIGNS = (
    *(_Sign("unet", prefix, "ldm", "input_blocks.0.0.weight")
      for prefix in ("model.diffusion_model.", "")),
    *(_Sign("unet", prefix, "diffusers", "down_blocks.0.resnets.0.conv1.weight")
      for prefix in ("unet.", "")),
    *(_Sign("vae", prefix, "ldm", "decoder.mid.block_1.conv1.weight") for prefix in _VAE),
    *(_Sign("vae", prefix, "diffusers", "decoder.mid_block.resnets.0.conv1.weight")
      for prefix in _VAE),
    *(_Sign("text_encoder", prefix, "clip", f"{model}{_TOKENS}")
      for prefix in ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
      for model in ("text_model.", "")),
    *(_Sign(component, prefix, "open-clip", "token_embedding.weight")
      for component, prefix in (("text_encoder", "cond_stage_model.model."),
                                ("text_encoder", "conditioner.embedders.0.model."),
                                ("text_encoder_2", "conditioner.embedders.1.model."))),
    *(_Sign(component, f"{component}.", "diffusers", f"{model}{_TOKENS}")
      for component in ("text_encoder", "text_encoder_2") for model in ("text_model.", "")),
)  # fmt: skip

_JOINT = (
    "whose transformer attends to text and image jointly: it has no cross-attention whose output "
    "could be cached, so T-GATE does not apply"
)
# Keys of files that are no checkpoint of ours, although some hold a UNet -> what they are.
_OTHERS: tuple[tuple[str, str], ...] = (
    (r"\.time_stack\.|\.time_mixer\.", "a Stable Video Diffusion: build its diffusers folder"),
    (r"^control_model\.|(^|\.)input_hint_block\.|^controlnet_cond_embedding\.",
     "a ControlNet: build the checkpoint that it is for"),
    (r"motion_modules?\.", "a motion module of AnimateDiff, which is not supported"),
    (r"double_blocks\.\d+\.img_attn", f"a FLUX, {_JOINT}"),
    (r"joint_blocks\.\d+\.", f"a Stable Diffusion 3, {_JOINT}"),
    (r"double_layers\.\d+\.|single_transformer_blocks\.|joint_transformer_blocks\.",
     f"a model {_JOINT}"),
    (r"(^|\.)blocks\.\d+\.cross_attn\.", "a diffusion transformer: build its diffusers folder"),
    (r"clip_txt_mapper\.|channelwise\.", "a Stable Cascade, which is not supported"),
)  # fmt: skip
# Of files without a UNet.
_WITHOUT_UNET: tuple[tuple[str, str], ...] = (
    (r"lora|lokr_|hada_w",
     "a LoRA, which `loras` takes: build the model that it was made for"),
    (r"^(emb_params|string_to_param|clip_[lg])\b",
     "a textual inversion, which `embeddings` takes: build the model that it was made for"),
    (r"^(ip_adapter|image_proj)\.", "an IP-Adapter, which is not supported"),
    (r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.(mid|conv_in|mid_block|layers\.0)\b",
     "a VAE alone, which `vae` takes: build the checkpoint that it is for"),
    (r"^(text_model|transformer\.resblocks|encoder\.block)\.|^token_embedding\.",
     "a text encoder alone: build the checkpoint that it belongs to"),
)  # fmt: skip


def find_parts(file: Path, keys: Collection[str]) -> dict[str, Part]:
    """Return where a checkpoint's components are, by component.

    Args:
        file: the checkpoint.
        keys: names of its tensors.

    Raises:
        ModelError: it is none of Stable Diffusion or SDXL, or has a component twice.
    """
    _refuse(file, keys, _OTHERS)
    parts = _signed(file, keys)
    if "unet" in parts:
        return parts
    _refuse(file, keys, _WITHOUT_UNET)
    first = ", ".join(sorted(keys)[:3]) or "none"
    raise ModelError(
        f"{file} is no checkpoint of Stable Diffusion or SDXL, which have "
        f"model.diffusion_model.input_blocks.0.0.weight (LDM's names) or "
        f"down_blocks.0.resnets.0.conv1.weight (diffusers' names): it has {first[:200]}"
    )


def find_vae(file: Path, keys: Collection[str]) -> Part:
    """Return where the VAE is in a file that replaces a checkpoint's; a checkpoint's own does.

    Raises:
        ModelError: there is none, or one of another kind.
    """
    parts = _signed(file, keys)
    if "vae" in parts:
        return parts["vae"]
    raise ModelError(
        f"{file} has no VAE of Stable Diffusion or SDXL, which has "
        "decoder.mid.block_1.conv1.weight (LDM's names), "
        "decoder.mid_block.resnets.0.conv1.weight (diffusers' names) or decoder.layers.0.weight "
        "(TAESD in diffusers' names)",
        "choose another ",
        Argument("vae"),
    )


def _signed(file: Path, keys: Collection[str]) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for sign in _SIGNS:
        if sign.prefix + sign.key not in keys:
            continue
        part = Part(file, sign.prefix, sign.layout)
        known = parts.setdefault(sign.component, part)
        if known != part:
            raise ModelError(
                f"{file} has its {sign.component} twice, as {_name(known)} and as {_name(part)}: "
                "save it with one of them"
            )
    return parts


def _name(part: Part) -> str:
    names = {"ldm": "LDM", "clip": "CLIP", "open-clip": "OpenCLIP", "diffusers": "diffusers"}
    return f"{part.prefix}* in the names of {names[part.layout]}"


def _refuse(file: Path, keys: Collection[str], kinds: tuple[tuple[str, str], ...]) -> None:
    for pattern, what in kinds:
        found = min((key for key in keys if re.search(pattern, key)), default=None)
        if found is not None:
            raise ModelError(f"{file} is {what} (it has {found[:200]})")


def shapes_of(part: Part, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a part's tensors, by their names after its prefix."""
    return {
        key.removeprefix(part.prefix): shape
        for key, shape in shapes.items()
        if key.startswith(part.prefix)
    }
