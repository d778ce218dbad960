"""Find, record and replace the cross-attention layers of a denoiser.

Layers are wrapped as *modules*, so that whatever processor, adapter or fused kernel they use
keeps working. They are keyed by module path, never by call order: `named_modules()` lists
`mid_block` after `up_blocks`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tgate_export.errors import ModelError


class CacheBox:
    """Cross-attention outputs by module path, passed around outside of module attributes."""

    def __init__(self) -> None:
        self.values: dict[str, torch.Tensor] = {}


class CachedCrossAttention(nn.Module):
    """Stands where a cross-attention layer stood and returns its cached output [B, S, C]."""

    def __init__(self, box: CacheBox, path: str) -> None:
        super().__init__()
        self.box = box
        self.path = path

    def forward(self, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Ignore the hidden states: the layers that feed them become dead code."""
        return self.box.values[self.path]


def cross_attention_layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Return every cross-attention module of a diffusers denoiser by module path.

    Raises:
        ModelError: when there is none, as in joint-attention transformers.
    """
    layers = {
        path: module
        for path, module in denoiser.named_modules()
        if getattr(module, "is_cross_attention", False) and hasattr(module, "to_out")
    }
    if not layers:
        raise ModelError(
            f"{type(denoiser).__name__} has no cross-attention layer, so there is nothing to gate"
        )
    return layers


def share_weights_copy(module: nn.Module) -> nn.Module:
    """Copy a module's structure but share every parameter and buffer with the original."""
    shared = itertools.chain(module.parameters(), module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


def recording_copy(denoiser: nn.Module, box: CacheBox) -> nn.Module:
    """Return a weight-sharing copy that writes every cross-attention output into `box`."""
    recorder = share_weights_copy(denoiser)
    for path, layer in cross_attention_layers(recorder).items():
        layer.register_forward_hook(_recorder(box, path))
    return recorder


def replaying_copy(denoiser: nn.Module, box: CacheBox) -> nn.Module:
    """Return a weight-sharing copy that reads every cross-attention output from `box`."""
    replayer = share_weights_copy(denoiser)
    for path in cross_attention_layers(replayer):
        parent, _, name = path.rpartition(".")
        setattr(replayer.get_submodule(parent), name, CachedCrossAttention(box, path))
    return replayer


def _recorder(box: CacheBox, path: str) -> Any:
    def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        box.values[path] = output

    return hook


@dataclass(frozen=True)
class CacheGroup:
    """One stacked cache tensor [B, L, S, C]: the layers that share token count and width.

    Attributes:
        name: the tensor's name in the graphs, `cross_cache_<k>`.
        tokens: S at the size it was measured at.
        downsample: S = ceil(h / downsample) * ceil(w / downsample) for latents of h x w.
        width: C.
        layers: module paths; the index in this tuple is the index on axis L.
    """

    name: str
    tokens: int
    downsample: int
    width: int
    layers: tuple[str, ...]


def group_caches(
    shapes: Mapping[str, tuple[int, ...]], latent_height: int, latent_width: int
) -> tuple[CacheGroup, ...]:
    """Group layers by the token count and width of their outputs, in order of execution.

    Args:
        shapes: module path -> output shape [B, S, C], in the order of execution.
        latent_height: h of the latents that gave these shapes.
        latent_width: w of the latents that gave these shapes.
    """
    grouped: dict[tuple[int, int], list[str]] = {}
    for path, (_, tokens, width) in shapes.items():
        grouped.setdefault((tokens, width), []).append(path)
    groups = []
    for index, ((tokens, width), layers) in enumerate(grouped.items()):
        downsample = _downsample(tokens, latent_height, latent_width)
        if downsample is None:
            raise ModelError(
                f"cross-attention layer {layers[0]} sees {tokens} tokens, which is no "
                f"downsampling of {latent_height} x {latent_width} latents"
            )
        groups.append(CacheGroup(f"cross_cache_{index}", tokens, downsample, width, tuple(layers)))
    return tuple(groups)


def _downsample(tokens: int, latent_height: int, latent_width: int) -> int | None:
    factor = 1
    while factor <= max(latent_height, latent_width):
        if -(-latent_height // factor) * -(-latent_width // factor) == tokens:
            return factor
        factor *= 2
    return None
