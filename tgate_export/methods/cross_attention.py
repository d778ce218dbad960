"""Find, record and replace the attention layers of a denoiser.

Layers are wrapped as *modules*, so that whatever processor, adapter or fused kernel they use
keeps working. They are keyed by module path, never by call order: `named_modules()` lists
`mid_block` after `up_blocks`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tgate_export.common.errors import ModelError
from tgate_export.common.hints import Argument


class CachedOutputs:
    """What a phase caches, passed around outside of module attributes.

    Attributes:
        values: attention outputs by module path.
        guidance_delta: see `GuidanceDelta`.
    """

    guidance_delta: torch.Tensor

    def __init__(self) -> None:
        self.values: dict[str, torch.Tensor] = {}


class CachedAttention(nn.Module):
    """Stands where an attention layer stood and returns its cached output [B, S, C]."""

    def __init__(self, box: CachedOutputs, path: str) -> None:
        super().__init__()
        self.box = box
        self.path = path

    def forward(self, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Ignore the hidden states: the layers that feed them become dead code."""
        return self.box.values[self.path]


class CachedVideoAttention(CachedAttention):
    """Returns cached outputs in a video's layers, which see frames, or tokens, as more of a batch.

    A cached output is that of a whole video [B, F * S, C], or of one token [B, 1, C] that stands
    for all of them.
    """

    def forward(self, hidden_states: torch.Tensor, **_kwargs: Any) -> torch.Tensor:
        """Return what has, or broadcasts to, the shape of `hidden_states`: [B * F, S, C]."""
        cached = self.box.values[self.path]
        if cached.shape[1] > 1:
            return cached.reshape(hidden_states.shape)
        return cached.repeat_interleave(hidden_states.shape[0] // cached.shape[0], dim=0)


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


def self_attention_layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Return every self-attention module of a diffusers denoiser by module path.

    Raises:
        ModelError: when there is none, or one that adds its input to its output: what is cached is
            the output alone.
    """
    layers = {
        path: module
        for path, module in denoiser.named_modules()
        if getattr(module, "is_cross_attention", True) is False and hasattr(module, "to_out")
    }
    if not layers:
        raise ModelError(f"{type(denoiser).__name__} has no self-attention layer to cache")
    for path, module in layers.items():
        if getattr(module, "residual_connection", False):
            raise ModelError(
                f"self-attention layer {path} of {type(denoiser).__name__} has its residual "
                "inside and cannot be cached",
                "build with ",
                Argument("sp_interval", 1),
                " and ",
                Argument("fi_interval", 1),
            )
    return layers


def share_weights_copy(module: nn.Module) -> nn.Module:
    """Copy a module's structure but share every parameter and buffer with the original."""
    shared = itertools.chain(module.parameters(), module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


def recording_copy(denoiser: nn.Module, box: CachedOutputs, paths: Iterable[str]) -> nn.Module:
    """Return a weight-sharing copy that writes the outputs of these layers into `box`."""
    recorder = share_weights_copy(denoiser)
    for path in paths:
        recorder.get_submodule(path).register_forward_hook(_recorder(box, path))
    return recorder


def replaying_copy(
    denoiser: nn.Module, box: CachedOutputs, paths: Iterable[str], *, video: bool = False
) -> nn.Module:
    """Return a weight-sharing copy that reads the outputs of these layers from `box`."""
    replayer = share_weights_copy(denoiser)
    replay = CachedVideoAttention if video else CachedAttention
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(replayer.get_submodule(parent), name, replay(box, path))
    return replayer


def single_token_attention(layer: Any, token: torch.Tensor) -> torch.Tensor:
    """Return what cross-attention over one token [B, 1, D] gives for every query [B, 1, C].

    The softmax over one key is 1, so this is exact, and needs neither queries nor keys.
    """
    output: torch.Tensor = layer.to_out[0](layer.to_v(token))
    return output / layer.rescale_output_factor


def _recorder(box: CachedOutputs, path: str) -> Any:
    def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        box.values[path] = output

    return hook


@dataclass(frozen=True)
class CacheGroup:
    """One stacked cache tensor: the layers that share token count and width.

    It is [B, L, S, C], or [B, P, L, S, C] when it keeps every guidance pass of a step.

    Attributes:
        kind: of the method's kinds of caches.
        name: the tensor's name in the graphs, `<kind>_<k>`.
        passes: P, or None.
        tokens: S at the size it was measured at.
        downsample: S = ceil(h / downsample) * ceil(w / downsample) for latents of h x w, times
            the frames of a video. None: a single token.
        width: C.
        layers: module paths; the index in this tuple is the index on axis L.
        frames: F of a video, None for images.
    """

    kind: str
    name: str
    passes: int | None
    tokens: int
    downsample: int | None
    width: int
    layers: tuple[str, ...]
    frames: int | None = None

    def stack(
        self,
        box: CachedOutputs,
        passes: int,
        batch: int,
        weights: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """Take this group's layers out of `box`, where they are [passes * batch, S, C].

        Or, in a video, [passes * batch * F, S, C], or with F and S the other way round.

        Of two passes that are not kept apart it is the mean, weighted: with weights of 1 exactly
        that of `tgate_processor` of the official package, in any precision.

        Args:
            box: what the denoiser's layers gave.
            passes: how many there were.
            batch: samples of each.
            weights: of the unconditional and of the conditional pass [B], whose sum is 2; None
                where there is one pass.
        """
        # unflatten and not chunk: its guard would pin the batch to the example's.
        split = [self._passes(box.values[path], passes, batch) for path in self.layers]
        if self.passes is not None:
            return torch.stack([layer.transpose(0, 1) for layer in split], dim=2)
        if weights is None:
            return torch.stack([layer[0] for layer in split], dim=1)
        w_u, w_c = (weight.to(split[0].dtype)[:, None, None] for weight in weights)
        return torch.stack([(w_u * layer[0] + w_c * layer[1]) / 2 for layer in split], dim=1)

    def _passes(self, output: torch.Tensor, passes: int, batch: int) -> torch.Tensor:
        """Split an output into [passes, batch, S, C]."""
        if self.frames is None or self.downsample is None:
            return output.unflatten(0, (passes, batch))
        return output.reshape(passes, batch, -1, self.width)

    def unstack(self, cache: torch.Tensor, box: CachedOutputs) -> None:
        """Put a cache's layers into `box` as [B, S, C], or [P * B, S, C] when it keeps passes."""
        if self.passes is not None:
            cache = cache.transpose(0, 1).flatten(0, 1)
        for path, value in zip(self.layers, cache.unbind(1), strict=True):
            box.values[path] = value


def group_caches(
    kind: str,
    shapes: Mapping[str, tuple[int, ...]],
    latent_height: int,
    latent_width: int,
    passes: int | None = None,
    frames: int | None = None,
) -> tuple[CacheGroup, ...]:
    """Group layers by the token count and width of their outputs, in order of execution.

    Args:
        kind: of the method's kinds of caches.
        shapes: module path -> output shape of one sample [1, S, C], or for a video [F, S, C] or
            [S, F, C], in the order of execution.
        latent_height: h of the latents that gave these shapes.
        latent_width: w of the latents that gave these shapes.
        passes: how many guidance passes are kept apart, None for one value for all.
        frames: F, or None for images.
    """
    grouped: dict[tuple[int, int], list[str]] = {}
    for path, (parts, tokens, width) in shapes.items():
        grouped.setdefault((parts * tokens, width), []).append(path)
    groups = []
    for index, ((tokens, width), layers) in enumerate(grouped.items()):
        downsample = _downsample(tokens / (frames or 1), latent_height, latent_width)
        if frames and tokens == 1:
            downsample = None
        elif downsample is None:
            raise ModelError(
                f"attention layer {layers[0]} sees {tokens} tokens, which is no "
                f"downsampling of {latent_height} x {latent_width} latents"
            )
        groups.append(
            CacheGroup(
                kind, f"{kind}_{index}", passes, tokens, downsample, width, tuple(layers), frames
            )
        )
    return tuple(groups)


def _downsample(tokens: float, latent_height: int, latent_width: int) -> int | None:
    factor = 1
    while factor <= max(latent_height, latent_width):
        if -(-latent_height // factor) * -(-latent_width // factor) == tokens:
            return factor
        factor *= 2
    return None
