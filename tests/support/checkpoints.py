"""Checkpoints in one file, in the names that others give to a diffusers pipeline's tensors.

Written from what CompVis' LDM, Stability's SGM and OpenCLIP call their modules, and not from the
converters that the package uses.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_VAE_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip
_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm": "ln_final",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_to_ldm(tensors: Tensors) -> Tensors:
    """Name a UNet's tensors as LDM does."""
    first_level = re.compile(r"down_blocks\.0\.resnets\.(\d+)")
    layers = 1 + max(int(found[1]) for key in tensors if (found := first_level.match(key)))
    with_attention = {
        found[1] for key in tensors if (found := re.match(r"(up_blocks\.\d+)\.attentions", key))
    }

    def block(key: str) -> str:
        for ours, theirs in _ENDS.items():
            if key.startswith(f"{ours}."):
                return theirs + key.removeprefix(ours)
        part, level, kind, index, rest = re.fullmatch(  # type: ignore[union-attr]
            r"(down|mid|up)_block(?:s\.(\d+))?\.(\w+)\.(\d+)\.(.*)", key
        ).groups()
        if kind == "resnets":
            name, _, end = rest.partition(".")
            rest = f"{_RESNET[name]}.{end}"
        if part == "mid":
            return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{rest}"
        first = int(level) * (layers + 1)
        if part == "down":
            if kind == "downsamplers":
                return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
            return f"input_blocks.{first + 1 + int(index)}.{int(kind == 'attentions')}.{rest}"
        if kind == "upsamplers":
            place = 2 if f"up_blocks.{level}" in with_attention else 1
            return f"output_blocks.{first + layers}.{place}.{rest}"
        return f"output_blocks.{first + int(index)}.{int(kind == 'attentions')}.{rest}"

    return {block(key): tensor for key, tensor in tensors.items()}


def vae_to_ldm(tensors: Tensors) -> Tensors:
    """Name a VAE's tensors as LDM does; its attention is convolutions of one pixel there."""
    levels = 1 + max(
        int(found[1]) for key in tensors if (found := re.match(r"decoder\.up_blocks\.(\d+)", key))
    )
    renamed = {}
    for key, tensor in tensors.items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(
            r"up_blocks\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", name
        )
        name = re.sub(r"up_blocks\.(\d+)\.resnets", r"up.\1.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample", name)
        name = re.sub(
            r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name
        )
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            for ours, theirs in _VAE_ATTENTION.items():
                name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        renamed[name] = tensor
    return renamed


def clip_plain(tensors: Tensors) -> Tensors:
    """Name CLIP's tensors as older versions of transformers do: `text_model.` before them."""
    return {
        key if key.startswith("text_") else f"text_model.{key}": tensor
        for key, tensor in tensors.items()
    }


def clip_to_open_clip(tensors: Tensors, more_layers: int = 0) -> Tensors:
    """Name CLIP's tensors as OpenCLIP does; `more_layers` that a pipeline leaves out follow."""
    plain = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    renamed: Tensors = {}
    for key, tensor in plain.items():
        if ".self_attn." in key and "out_proj" not in key:
            continue
        if key == "text_projection.weight":
            renamed["text_projection"] = tensor.T
            continue
        name = key
        for ours, theirs in _OPEN_CLIP.items():
            name = name.replace(ours, theirs)
        renamed[name.replace("encoder.layers.", "transformer.resblocks.")] = tensor
    layers = {
        int(found[1]) for key in plain if (found := re.match(r"encoder\.layers\.(\d+)\.", key))
    }
    for layer in layers:
        for kind in ("weight", "bias"):
            stacked = [
                plain[f"encoder.layers.{layer}.self_attn.{each}_proj.{kind}"] for each in "qkv"
            ]
            renamed[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(stacked)
    for extra in range(len(layers), len(layers) + more_layers):
        renamed |= {
            key.replace("resblocks.0.", f"resblocks.{extra}."): tensor + 1
            for key, tensor in renamed.items()
            if ".resblocks.0." in key
        }
    return renamed


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    """Put a prefix before every name."""
    return {prefix + key: tensor for key, tensor in tensors.items()}


def parts_of(folder: Path) -> dict[str, Tensors]:
    """Return the tensors of a saved pipeline, by component."""
    return {file.parent.name: load_file(file) for file in sorted(folder.glob("*/*.safetensors"))}


def sd1(parts: Mapping[str, Tensors]) -> Tensors:
    """A checkpoint of Stable Diffusion 1.x, with what LDM leaves in it besides."""
    text = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    return {
        **prefixed("model.diffusion_model.", unet_to_ldm(parts["unet"])),
        **prefixed("first_stage_model.", vae_to_ldm(parts["vae"])),
        **prefixed("cond_stage_model.transformer.", clip_plain(parts["text_encoder"]) | text),
        "betas": torch.zeros(1000),
        "model_ema.decay": torch.tensor(0.9999),
    }


def sd2(parts: Mapping[str, Tensors]) -> Tensors:
    """A checkpoint of Stable Diffusion 2.x, whose text encoder has a layer that nobody reads."""
    text = clip_to_open_clip(parts["text_encoder"], more_layers=1)
    width = text["ln_final.weight"].shape[0]
    text |= {"text_projection": torch.eye(width), "logit_scale": torch.tensor(1.0)}
    return {
        **prefixed("model.diffusion_model.", unet_to_ldm(parts["unet"])),
        **prefixed("first_stage_model.", vae_to_ldm(parts["vae"])),
        **prefixed("cond_stage_model.model.", text),
    }


def sdxl(parts: Mapping[str, Tensors]) -> Tensors:
    """A checkpoint of SDXL, in SGM's names."""
    second = clip_to_open_clip(parts["text_encoder_2"]) | {"logit_scale": torch.tensor(1.0)}
    return {
        **prefixed("model.diffusion_model.", unet_to_ldm(parts["unet"])),
        **prefixed("first_stage_model.", vae_to_ldm(parts["vae"])),
        **prefixed("conditioner.embedders.0.transformer.", clip_plain(parts["text_encoder"])),
        **prefixed("conditioner.embedders.1.model.", second),
        "denoiser.sigmas": torch.zeros(1000),
    }


def diffusers_names(parts: Mapping[str, Tensors]) -> Tensors:
    """All components in diffusers' own names, each after its folder's."""
    return {
        f"{component}.{key}": tensor
        for component, tensors in parts.items()
        for key, tensor in tensors.items()
    }


WRITERS: dict[str, Callable[[Mapping[str, Tensors]], Tensors]] = {
    "sd1": sd1, "sd2": sd2, "sdxl": sdxl, "diffusers": diffusers_names,
}  # fmt: skip


def save(tensors: Mapping[str, torch.Tensor], path: Path, **metadata: str) -> Path:
    """Write a file with everything in memory."""
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata or None)
    return path


def save_header(
    tensors: Mapping[str, torch.Tensor], path: Path, dtype: str = "F16", **metadata: str
) -> Path:
    """Write a file of tensors' shapes: its data are a hole, which no disk holds.

    Tensors that are not on the meta device have their values.
    """
    size = {"F16": 2, "F32": 4, "BF16": 2}[dtype]
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end, values = 0, {}
    for key, tensor in tensors.items():
        length = tensor.numel() * size
        header[key] = {
            "dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + length],
        }  # fmt: skip
        if tensor.device.type != "meta":
            values[end] = tensor
        end += length
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
        for place, tensor in values.items():
            stream.seek(8 + len(text) + place)
            kind = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}[dtype]
            stream.write(tensor.to(kind).reshape(-1).view(torch.uint8).numpy().tobytes())
    return path


def write(folder: Path, layout: str, path: Path) -> Path:
    """Write the weights of a diffusers folder as one file; return it.

    Args:
        folder: the pipeline's.
        layout: a key of `WRITERS`.
        path: the file.
    """
    return save(WRITERS[layout](parts_of(folder)), path)
