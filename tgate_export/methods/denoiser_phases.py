"""The phases of a denoiser that a bundle has, and how the caches between them are stacked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tgate_export.methods.conditioning import GUIDANCE_SCALE, Conditioning
from tgate_export.methods.cross_attention import (
    CachedOutputs,
    CacheGroup,
    cross_attention_layers,
    group_caches,
    recording_copy,
    self_attention_layers,
)
from tgate_export.methods.guidance_delta import GuidanceDelta
from tgate_export.methods.method import Method, PhaseTensors

CacheTensor = CacheGroup | GuidanceDelta


@dataclass(frozen=True)
class DenoiserPhases:
    """What a bundle has of a method.

    Attributes:
        method: the method.
        names: of its phases, in the order of the graphs.
        conditioning: what the denoiser takes besides the sample and the time.
        groups: the cache tensors that these phases read, in order.
    """

    method: Method
    names: tuple[str, ...]
    conditioning: Conditioning
    groups: tuple[CacheTensor, ...]

    def inputs(self, name: str) -> tuple[str, ...]:
        """Return what a phase takes after the sample and the time, before the caches."""
        phase, conditioning = self.method.phases[name], self.conditioning
        inputs = conditioning.full_inputs if phase.guided else conditioning.gated_inputs
        return inputs + (phase.numbers if conditioning.passes == 2 else ())

    def reads(self, name: str) -> tuple[CacheTensor, ...]:
        """Return the cache tensors that a phase takes."""
        return self._of(self.method.phases[name].reads)

    def writes(self, name: str) -> tuple[CacheTensor, ...]:
        """Return the cache tensors that a phase gives."""
        return self._of(self.method.phases[name].writes)

    def module(self, denoiser: nn.Module, name: str) -> nn.Module:
        """Make the module of a phase."""
        tensors = PhaseTensors(self.inputs(name), self.reads(name), self.writes(name))
        return self.method.make_module(
            denoiser, self.conditioning, self.method.phases[name], tensors
        )

    def _of(self, kinds: tuple[str, ...]) -> tuple[CacheTensor, ...]:
        return tuple(group for group in self.groups if group.kind in kinds)


@torch.no_grad()
def find_phases(
    denoiser: nn.Module,
    method: Method,
    names: Iterable[str],
    conditioning: Conditioning,
    *,
    channels: int,
    sides: Mapping[str, int],
) -> DenoiserPhases:
    """Find how attention outputs group into cache tensors, without computing anything.

    Runs the denoiser on fake tensors, which carry shapes only.

    Args:
        denoiser: a diffusers UNet or transformer.
        method: the method.
        names: of the phases that a bundle has.
        conditioning: what the denoiser takes besides the sample and the time.
        channels: of the latents, of all frames of a video.
        sides: `latent_height` and `latent_width`, and those of images, `height` and `width`.
    """
    names = tuple(names)
    kinds = {kind: method.caches[kind] for kind in method.caches_for(names)}
    of = {kind.of: None for kind in kinds.values() if kind.of != "guidance"}
    layers = {name: _LAYERS[name](denoiser) for name in of}
    shapes = _output_shapes(
        denoiser,
        conditioning,
        {path for found in layers.values() for path in found},
        channels,
        sides,
    )
    groups: tuple[CacheTensor, ...] = ()
    for name, kind in kinds.items():
        if kind.of == "guidance":
            groups += (GuidanceDelta(name),) if conditioning.passes == 2 else ()
            continue
        of_kind = {path: shape for path, shape in shapes.items() if path in layers[kind.of]}
        if kind.of == "cross-attention" and conditioning.single_token is not None:
            of_kind = {path: (1, 1, width) for path, (_, _, width) in of_kind.items()}
        groups += group_caches(
            name,
            of_kind,
            sides["latent_height"],
            sides["latent_width"],
            passes=conditioning.passes if kind.passes else None,
            frames=conditioning.frames,
        )
    return DenoiserPhases(method, names, conditioning, groups)


_LAYERS = {"cross-attention": cross_attention_layers, "self-attention": self_attention_layers}


def _output_shapes(
    denoiser: nn.Module,
    conditioning: Conditioning,
    layers: Collection[str],
    channels: int,
    sides: Mapping[str, int],
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what layers give for one sample, in the order of execution."""
    box = CachedOutputs()
    recorder = recording_copy(denoiser, box, layers)
    dtype = next(denoiser.parameters()).dtype
    with FakeTensorMode(allow_non_fake_inputs=True):
        conditioning.predict(
            recorder,
            torch.empty(1, channels, sides["latent_height"], sides["latent_width"], dtype=dtype),
            torch.zeros(1),
            {
                GUIDANCE_SCALE: torch.zeros(1),
                **{
                    entry.name: torch.empty(
                        1,
                        *(dim if isinstance(dim, int) else sides[dim] for dim in entry.input_shape),
                        dtype=dtype if entry.origin is None else None,
                    )
                    for entry in conditioning.conditions
                },
            },
        )
    return {path: tuple(value.shape) for path, value in box.values.items()}
