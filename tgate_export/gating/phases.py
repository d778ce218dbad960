"""The denoiser's two phases as modules: what is exported, and what verification runs."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tgate_export.gating.conditioning import Conditioning
from tgate_export.gating.cross_attention import (
    CacheBox,
    CacheGroup,
    group_caches,
    recording_copy,
    replaying_copy,
)


def broadcast_to_sample(per_sample: torch.Tensor) -> torch.Tensor:
    """Reshape [B] to [B, 1, 1, 1], so that it multiplies a sample [B, C, h, w]."""
    return per_sample[:, None, None, None]


class FullPhase(nn.Module):
    """One semantics-planning evaluation: guidance inside, cross-attention computed and cached."""

    def __init__(
        self, denoiser: nn.Module, groups: tuple[CacheGroup, ...], conditioning: Conditioning
    ) -> None:
        super().__init__()
        self.box = CacheBox()
        self.denoiser = recording_copy(denoiser, self.box)
        self.groups = groups
        self.conditioning = conditioning
        self.compute_dtype = next(denoiser.parameters()).dtype

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return `noise_pred` [B, C, h, w] and one cache [B, L, S, C] for each group.

        The cache is the mean of the unconditional and the conditional half, taken after
        `to_out` and before the residual (arXiv 2404.02747, and `tgate_processor` of the
        official package).

        Args:
            sample: [B, C, h, w] f32.
            timestep: [B] f32.
            *inputs: [B, ...]: for every condition its value, and its negative one if it has one
                (`Condition.full_inputs`); at the end `guidance_scale` [B] f32.
        """
        for value in inputs:
            # Tells an export that every batch is the same one, before a layer divides by it.
            torch._check(value.shape[0] == sample.shape[0])
        rest = iter(inputs)
        conditions = {}
        for entry in self.conditioning.conditions:
            value = next(rest)
            negative = next(rest) if entry.negative else value
            conditions[entry.name] = torch.cat([negative, value])
        guidance_scale = next(rest)
        noise_pred = self.conditioning.predict(
            self.denoiser,
            torch.cat([sample, sample]).to(self.compute_dtype),
            torch.cat([timestep, timestep]),
            conditions,
        ).float()
        # unflatten and not chunk: its guard would pin the batch to the example's.
        unconditional, conditional = noise_pred.unflatten(0, (2, sample.shape[0])).unbind(0)
        guided = unconditional + broadcast_to_sample(guidance_scale) * (conditional - unconditional)
        return guided, *(self._stacked(group, sample.shape[0]) for group in self.groups)

    def _stacked(self, group: CacheGroup, batch: int) -> torch.Tensor:
        halves = (self.box.values[path].unflatten(0, (2, batch)) for path in group.layers)
        return torch.stack([(half[0] + half[1]) / 2 for half in halves], dim=1)


class GatedPhase(nn.Module):
    """One fidelity-improving evaluation: no guidance, cross-attention read from the cache."""

    def __init__(
        self, denoiser: nn.Module, groups: tuple[CacheGroup, ...], conditioning: Conditioning
    ) -> None:
        super().__init__()
        self.box = CacheBox()
        self.denoiser = replaying_copy(denoiser, self.box)
        self.groups = groups
        self.conditioning = conditioning
        self.compute_dtype = next(denoiser.parameters()).dtype

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, *inputs: torch.Tensor
    ) -> torch.Tensor:
        """Return `noise_pred` [B, C, h, w].

        Args:
            sample: [B, C, h, w] f32.
            timestep: [B] f32.
            *inputs: the unconditional value of every gated condition, then one cache
                [B, L, S, C] for each group, as `FullPhase` returned them.
        """
        gated = self.conditioning.gated
        conditions = {
            entry.name: value for entry, value in zip(gated, inputs[: len(gated)], strict=True)
        }
        for group, cache in zip(self.groups, inputs[len(gated) :], strict=True):
            for path, value in zip(group.layers, cache.unbind(1), strict=True):
                self.box.values[path] = value
        noise_pred: torch.Tensor = self.conditioning.predict(
            self.denoiser, sample.to(self.compute_dtype), timestep, conditions
        )
        return noise_pred.float()


@torch.no_grad()
def cache_groups(
    denoiser: nn.Module,
    conditioning: Conditioning,
    *,
    in_channels: int,
    latent_height: int,
    latent_width: int,
) -> tuple[CacheGroup, ...]:
    """Find how cross-attention outputs group into cache tensors, without computing anything.

    Runs the denoiser on fake tensors, which carry shapes only.
    """
    box = CacheBox()
    recorder = recording_copy(denoiser, box)
    dtype = next(denoiser.parameters()).dtype
    with FakeTensorMode(allow_non_fake_inputs=True):
        conditioning.predict(
            recorder,
            torch.empty(1, in_channels, latent_height, latent_width, dtype=dtype),
            torch.zeros(1),
            {
                entry.name: torch.empty(1, *entry.shape, dtype=dtype if not entry.host else None)
                for entry in conditioning.conditions
            },
        )
    shapes = {path: tuple(value.shape) for path, value in box.values.items()}
    return group_caches(shapes, latent_height, latent_width)
