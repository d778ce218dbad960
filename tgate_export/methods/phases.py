"""T-GATE's phases as modules: what is exported, and what verification runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import pad

from tgate_export.methods.conditioning import GUIDANCE_RESCALE, GUIDANCE_SCALE, Conditioning
from tgate_export.methods.cross_attention import (
    CachedOutputs,
    cross_attention_layers,
    recording_copy,
    replaying_copy,
    single_token_attention,
)
from tgate_export.methods.method import PhaseTensors
from tgate_export.methods.tgate import CACHE_BLEND, CARRIED, GUIDANCE_CARRY


def per_sample(values: torch.Tensor, channels: int) -> torch.Tensor:
    """Reshape [B], or of a video's frames [B, F], so that it multiplies a sample [B, C, h, w]."""
    if values.ndim == 2:
        values = values.repeat_interleave(channels // values.shape[1], dim=1)
        return values[:, :, None, None]
    return values[:, None, None, None]


class _Phase(nn.Module):
    """A denoiser that reads some caches and writes others; shares its weights with the original."""

    def __init__(
        self, denoiser: nn.Module, conditioning: Conditioning, tensors: PhaseTensors
    ) -> None:
        """Wrap a denoiser.

        Args:
            denoiser: a diffusers UNet or transformer.
            conditioning: what it takes besides the sample and the time.
            tensors: what the phase takes and gives.
        """
        super().__init__()
        self.box, self.tensors = CachedOutputs(), tensors
        written = {path: None for group in tensors.writes for path in group.layers}
        read = {path: None for group in tensors.reads for path in group.layers}
        mapped = {}
        if conditioning.single_token is not None:  # a map of it, where it is not in a cache
            layers = cross_attention_layers(denoiser)
            mapped = {path: layer for path, layer in layers.items() if path not in read}
        recorder = recording_copy(denoiser, self.box, written.keys() - mapped)
        self.denoiser = replaying_copy(
            recorder, self.box, read.keys() | mapped, video=conditioning.frames is not None
        )
        self.mapped_paths, self.mapped_layers = tuple(mapped), nn.ModuleList(mapped.values())
        self.conditioning = conditioning
        self.compute_dtype = next(denoiser.parameters()).dtype

    def take(self, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return conditions and parameters by name, and make the denoiser read the caches."""
        names = self.tensors.inputs
        for group, cache in zip(self.tensors.reads, inputs[len(names) :], strict=True):
            group.unstack(cache, self.box)
        return dict(zip(names, inputs, strict=False))

    def written(
        self, passes: int, batch: int, blend: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Return the caches that this phase writes, of two passes blended [B] where not kept."""
        weights = None if blend is None else (-2 * blend + 2, 2 * blend)
        return [group.stack(self.box, passes, batch, weights) for group in self.tensors.writes]

    def map_token(self, token: torch.Tensor) -> None:
        """Make the denoiser read what cross-attention gives for a single token [P * B, 1, D]."""
        for path, layer in zip(self.mapped_paths, self.mapped_layers, strict=True):
            self.box.values[path] = single_token_attention(layer, token)


class FullPhase(_Phase):
    """One semantics-planning evaluation: guidance inside, if any; cross-attention computed."""

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return `noise_pred` [B, C, h, w] and the caches that this phase writes.

        What is cached is the output of attention after `to_out` and before the residual
        (arXiv 2404.02747, and `tgate_processor` of the official package): of cross-attention the
        unconditional and the conditional pass blended by `cache_blend` [B], of self-attention that
        as well, for after the gate, and both passes, for before it; and the conditional prediction
        less the unconditional one. Without classifier-free guidance there is one pass, and nothing
        to blend.

        Guidance is rescaled as in arXiv 2305.08891, section 3.4: towards the standard deviation of
        the conditional pass.

        Args:
            sample: [B, C, h, w] f32.
            timestep: [B] f32.
            *inputs: [B, ...]: for every condition its value, and its negative one if it has one
                (`Condition.full_inputs`); then `guidance_scale` [B] f32, for a video [B, frames],
                unless there is no guidance; then `guidance_rescale` [B] f32, where it can be
                rescaled; then the phase's other parameters [B] f32; then the caches that it reads.
        """
        batch, passes = sample.shape[0], self.conditioning.passes
        for value in inputs:
            # Tells an export that every batch is the same one, before a layer divides by it.
            torch._check(value.shape[0] == batch)
        given = self.take(inputs)
        conditions = {}
        for entry in self.conditioning.conditions:
            value = given[entry.name]
            if entry.unconditional == "zeros":  # padded, since an export would store the zeros
                conditions[entry.name] = pad(value, [0, 0] * (value.ndim - 1) + [batch, 0])
                continue
            negative = given[entry.full_inputs[-1]]
            conditions[entry.name] = torch.cat([negative, value][-passes:])
        if self.conditioning.guidance == "embedded":
            conditions[GUIDANCE_SCALE] = given[GUIDANCE_SCALE]
        if self.conditioning.single_token is not None:
            self.map_token(conditions[self.conditioning.single_token])
        noise_pred = self.conditioning.predict(
            self.denoiser,
            torch.cat([sample] * passes).to(self.compute_dtype),
            torch.cat([timestep] * passes),
            conditions,
        ).float()
        if passes == 2:
            # unflatten and not chunk: its guard would pin the batch to the example's.
            unconditional, conditional = noise_pred.unflatten(0, (passes, batch)).unbind(0)
            delta = self.box.guidance_delta = conditional - unconditional
            scale = per_sample(given[GUIDANCE_SCALE], sample.shape[1])
            noise_pred = unconditional + scale * delta
            if self.conditioning.rescale:
                rescaled = noise_pred * (_deviation(conditional) / _deviation(noise_pred))
                rescale = per_sample(given[GUIDANCE_RESCALE], sample.shape[1])
                noise_pred = noise_pred + rescale * (rescaled - noise_pred)
        return noise_pred, *self.written(passes, batch, given.get(CACHE_BLEND))


def _deviation(noise_pred: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of each sample [B, 1, 1, 1], for a ratio of two of them.

    Never zero, so that a scale of 0 rescales nothing and not by NaN.
    """
    dims = tuple(range(1, noise_pred.ndim))
    centred = noise_pred - noise_pred.mean(dim=dims, keepdim=True)
    return centred.square().mean(dim=dims, keepdim=True).sqrt().clamp(min=1e-12)


class GatedPhase(_Phase):
    """One fidelity-improving evaluation: no guidance, cross-attention read from the cache."""

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return `noise_pred` [B, C, h, w] and the caches that this phase writes.

        With classifier-free guidance, as much as `guidance_carry` says of what it would add is
        added, as it was at the last full evaluation.

        Args:
            sample: [B, C, h, w] f32.
            timestep: [B] f32.
            *inputs: the value of every gated condition, the negative one if it has one; then
                `guidance_scale` [B] f32 if it is embedded; then the phase's other parameters [B]
                f32, of which a video's `guidance_scale` is [B, frames]; then the caches that it
                reads.
        """
        given = self.take(inputs)
        conditions = {entry.name: given[entry.gated_input] for entry in self.conditioning.gated}
        if self.conditioning.guidance == "embedded":
            conditions[GUIDANCE_SCALE] = given[GUIDANCE_SCALE]
        noise_pred: torch.Tensor = self.conditioning.predict(
            self.denoiser, sample.to(self.compute_dtype), timestep, conditions
        ).float()
        if GUIDANCE_CARRY in given:
            scale, blend, carry = (given[name] for name in CARRIED)
            if scale.ndim == 2:
                blend, carry = blend[:, None], carry[:, None]
            carried = per_sample(carry * (scale - blend), sample.shape[1])
            noise_pred = noise_pred + carried * self.box.guidance_delta
        return noise_pred, *self.written(1, sample.shape[0])
