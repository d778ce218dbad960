"""LoRA files in the names that trainers give to layers, with random changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from tests.support import checkpoints

Tensors = dict[str, torch.Tensor]
# The two tensors of a layer, by diffusers' path: `down` [rank, inputs], `up` [outputs, rank].
Change = Mapping[str, tuple[torch.Tensor, torch.Tensor]]

ATTENTION = re.compile(r"attn\d\.to_(q|k|v|out\.0)$|self_attn\.(q|k|v|out)_proj$")
CONVOLUTIONS = re.compile(r"\.(conv1|conv2|conv_shortcut)$|samplers\.0\.conv$")
MOST = re.compile(
    r"attn|proj|\.ff\.|\.fc\d$|conv|time_emb_proj|time_embedding\.linear|add_embedding\.linear"
)


def change(
    module: nn.Module, chosen: re.Pattern[str], rank: int = 4, *, seed: int = 0
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Make random changes for a module's layers whose paths a pattern finds."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for path, part in module.named_modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)) and chosen.search(path):
            outputs, *inputs = part.weight.shape
            ones = [1] * (len(inputs) - 1)
            down = torch.randn(rank, *inputs, generator=generator)
            made[path] = down / 4, torch.randn(outputs, rank, *ones, generator=generator) / 4
    assert made
    return made


def kohya(
    prefix: str,
    changes: Change,
    alpha: float | None = None,
    rename: Callable[[str], str] = lambda path: path,
) -> Tensors:
    """Name changes as kohya's scripts do: `lora_unet_down_blocks_0_....lora_down.weight`."""
    tensors = {}
    for path, (down, up) in changes.items():
        key = prefix + rename(path).replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def sgm(changes: Change, unet: nn.Module, alpha: float | None = None) -> Tensors:
    """Name a UNet's changes as kohya's scripts do for SDXL: `lora_unet_input_blocks_4_1_...`."""
    state = unet.state_dict()
    ldm = dict(zip(state, checkpoints.unet_to_ldm(state), strict=True))

    def rename(path: str) -> str:
        return ldm[f"{path}.weight"].removesuffix(".weight")

    return kohya("lora_unet_", changes, alpha, rename)


def peft(prefix: str, changes: Change) -> Tensors:
    """Name changes as PEFT does, and diffusers with a component before them."""
    tensors = {}
    for path, (down, up) in changes.items():
        tensors |= {f"{prefix}{path}.lora_A.weight": down, f"{prefix}{path}.lora_B.weight": up}
    return tensors


def old_diffusers(prefix: str, changes: Change) -> Tensors:
    """Name changes of a UNet's attention as diffusers did when processors had them."""
    tensors = {}
    for path, (down, up) in changes.items():
        block, _, projection = path.rpartition(".to_")
        key = f"{prefix}{block}.processor.to_{projection.removesuffix('.0')}_lora"
        tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return tensors


def old_text(prefix: str, changes: Change) -> Tensors:
    """Name changes of CLIP as diffusers did before it used PEFT."""
    tensors = {}
    for path, (down, up) in changes.items():
        key = f"{prefix}{path}.lora_linear_layer"
        tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return tensors


def save(tensors: Mapping[str, torch.Tensor], path: Path, **metadata: str) -> Path:
    """Write a LoRA file."""
    own = {key: tensor.clone() for key, tensor in tensors.items()}
    return checkpoints.save(own, path, **metadata)
