"""T-GATE's phases as modules: what is exported, and what verification runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.functional import pad

from tgate_export.methods.conditioning import GUIDANCE_SCALE, Conditioning
from tgate_export.methods.cross_attention import (
    CachedOutputs,
    CacheGroup,
    cross_attention_layers,
    recording_copy,
    replaying_copy,
    single_token_attention,
)


def broadcast_to_sample(per_sample: torch.Tensor) -> torch.Tensor:
    """Reshape [B] to [B, 1, 1, 1], so that it multiplies a sample [B, C, h, w]."""
    return per_sample[:, None, None, None]


class _Phase(nn.Module):
    """A denoiser that reads some caches and writes others; shares its weights with the original."""

    def __init__(
        self,
        denoiser: nn.Module,
        conditioning: Conditioning,
        reads: Sequence[CacheGroup],
        writes: Sequence[CacheGroup],
    ) -> None:
        """Wrap a denoiser.

        Args:
            denoiser: a diffusers UNet or transformer.
            conditioning: what it takes besides the sample and the time.
            reads: the caches that the phase takes, in the order of its tensors.
            writes: those that it gives, in the order of its tensors.
        """
        super().__init__()
        self.box = CachedOutputs()
        self.reads, self.writes = tuple(reads), tuple(writes)
        written = {path: None for group in self.writes for path in group.layers}
        read = {path: None for group in self.reads for path in group.layers}
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

    def load(self, caches: Iterable[torch.Tensor]) -> None:
        """Make the denoiser read these caches, one for each group in `reads`."""
        for group, cache in zip(self.reads, caches, strict=True):
            group.unstack(cache, self.box)

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
        mean of the unconditional and the conditional pass, of self-attention that mean, for after
        the gate, and both passes, for before it. Without classifier-free guidance there is one
        pass, and nothing to average.

        Guidance is rescaled as in arXiv 2305.08891, section 3.4: towards the standard deviation of
        the conditional pass.

        Args:
            sample: [B, C, h, w] f32.
            timestep: [B] f32.
            *inputs: [B, ...]: for every condition its value, and its negative one if it has one
                (`Condition.full_inputs`); then `guidance_scale` [B] f32, for a video [B, frames],
                unless there is no guidance; then `guidance_rescale` [B] f32, where it can be
                rescaled; then the caches that this phase reads.
        """
        batch, passes = sample.shape[0], self.conditioning.passes
        for value in inputs:
            # Tells an export that every batch is the same one, before a layer divides by it.
            torch._check(value.shape[0] == batch)
        rest = iter(inputs)
        conditions = {}
        for entry in self.conditioning.conditions:
            value = next(rest)
            if entry.unconditional == "zeros":  # padded, since an export would store the zeros
                conditions[entry.name] = pad(value, [0, 0] * (value.ndim - 1) + [batch, 0])
                continue
            negative = next(rest) if entry.unconditional == "negative" else value
            conditions[entry.name] = torch.cat([negative, value][-passes:])
        if self.conditioning.guidance == "embedded":
            conditions[GUIDANCE_SCALE] = next(rest)
        scale = self._scale(next(rest), sample) if passes == 2 else None
        rescale = broadcast_to_sample(next(rest)) if self.conditioning.rescale else None
        self.load(rest)
        if self.conditioning.single_token is not None:
            self.map_token(conditions[self.conditioning.single_token])
        noise_pred = self.conditioning.predict(
            self.denoiser,
            torch.cat([sample] * passes).to(self.compute_dtype),
            torch.cat([timestep] * passes),
            conditions,
        ).float()
        if scale is not None:
            # unflatten and not chunk: its guard would pin the batch to the example's.
            unconditional, conditional = noise_pred.unflatten(0, (passes, batch)).unbind(0)
            noise_pred = unconditional + scale * (conditional - unconditional)
            if rescale is not None:
                rescaled = noise_pred * (_deviation(conditional) / _deviation(noise_pred))
                noise_pred = noise_pred + rescale * (rescaled - noise_pred)
        return noise_pred, *(group.stack(self.box, passes, batch) for group in self.writes)

    def _scale(self, guidance_scale: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return guidance scales that multiply a sample; those of frames on all their channels."""
        if self.conditioning.frames is None:
            return broadcast_to_sample(guidance_scale)
        channels = sample.shape[1] // self.conditioning.frames
        return guidance_scale.repeat_interleave(channels, dim=1)[:, :, None, None]


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

        Args:
            sample: [B, C, h, w] f32.
            timestep: [B] f32.
            *inputs: the value of every gated condition, the negative one if it has one; then
                `guidance_scale` [B] f32 if it is embedded; then the caches that this phase reads.
        """
        rest = iter(inputs)
        conditions = {entry.name: next(rest) for entry in self.conditioning.gated}
        if self.conditioning.guidance == "embedded":
            conditions[GUIDANCE_SCALE] = next(rest)
        self.load(rest)
        noise_pred: torch.Tensor = self.conditioning.predict(
            self.denoiser, sample.to(self.compute_dtype), timestep, conditions
        )
        batch = sample.shape[0]
        return noise_pred.float(), *(group.stack(self.box, 1, batch) for group in self.writes)
