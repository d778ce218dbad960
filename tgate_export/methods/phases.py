"""The denoiser's phases as modules: what is exported, and what verification runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import pad

from tgate_export.methods.conditioning import GUIDANCE_SCALE, Conditioning
from tgate_export.methods.cross_attention import (
    CachedOutputs,
    CacheGroup,
    cross_attention_layers,
    group_caches,
    recording_copy,
    replaying_copy,
    self_attention_layers,
    single_token_attention,
)
from tgate_export.steps.tgate import READS, WRITES, CacheKind, Phase


def broadcast_to_sample(per_sample: torch.Tensor) -> torch.Tensor:
    """Reshape [B] to [B, 1, 1, 1], so that it multiplies a sample [B, C, h, w]."""
    return per_sample[:, None, None, None]


def groups_of(groups: Iterable[CacheGroup], kinds: Collection[CacheKind]) -> list[CacheGroup]:
    """Return the cache tensors of these kinds, in the order of `groups`."""
    return [group for group in groups if group.kind in kinds]


def phases(groups: Iterable[CacheGroup]) -> tuple[Phase, ...]:
    """Return the phases that read and write these caches: the denoiser graphs of a bundle."""
    kinds = {group.kind for group in groups}
    return tuple(phase for phase, reads in READS.items() if kinds.issuperset(reads))


class _Phase(nn.Module):
    """A denoiser that reads some caches and writes others; shares its weights with the original."""

    def __init__(
        self,
        denoiser: nn.Module,
        groups: Iterable[CacheGroup],
        conditioning: Conditioning,
        phase: Phase,
    ) -> None:
        super().__init__()
        groups = tuple(groups)
        self.box = CachedOutputs()
        self.reads = groups_of(groups, READS[phase])
        self.writes = groups_of(groups, WRITES[phase])
        written = {path: None for group in self.writes for path in group.layers}
        read = {path: None for group in self.reads for path in group.layers}
        mapped = _mapped_layers(denoiser, conditioning, phase)
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


def _mapped_layers(
    denoiser: nn.Module, conditioning: Conditioning, phase: Phase
) -> dict[str, nn.Module]:
    """Return the cross-attention layers that a phase computes as a map of a single token."""
    reads_cache = "cross_cache" in READS[phase]
    if conditioning.single_token is None or reads_cache:
        return {}
    return cross_attention_layers(denoiser)


class FullPhase(_Phase):
    """One semantics-planning evaluation: guidance inside, if any; cross-attention computed."""

    def __init__(
        self,
        denoiser: nn.Module,
        groups: Iterable[CacheGroup],
        conditioning: Conditioning,
        phase: Phase = "full",
    ) -> None:
        super().__init__(denoiser, groups, conditioning, phase)

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

    def __init__(
        self,
        denoiser: nn.Module,
        groups: Iterable[CacheGroup],
        conditioning: Conditioning,
        phase: Phase = "gated",
    ) -> None:
        super().__init__(denoiser, groups, conditioning, phase)

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


def make_phase(
    denoiser: nn.Module,
    groups: Iterable[CacheGroup],
    conditioning: Conditioning,
    phase: Phase,
) -> FullPhase | GatedPhase:
    """Make the module of a phase."""
    gated = "cross_cache" in READS[phase]
    return (GatedPhase if gated else FullPhase)(denoiser, groups, conditioning, phase)


@torch.no_grad()
def cache_groups(
    denoiser: nn.Module,
    conditioning: Conditioning,
    *,
    channels: int,
    sides: Mapping[str, int],
    kinds: Collection[CacheKind],
) -> tuple[CacheGroup, ...]:
    """Find how attention outputs group into cache tensors, without computing anything.

    Runs the denoiser on fake tensors, which carry shapes only. The cache of cross-attention is
    always there, and comes first.

    Args:
        denoiser: a diffusers UNet or transformer.
        conditioning: what it takes besides the sample and the time.
        channels: of the latents, of all frames of a video.
        sides: `latent_height` and `latent_width`, and those of images, `height` and `width`.
        kinds: which caches a bundle holds.
    """
    cross = cross_attention_layers(denoiser)
    wanted = set(cross)
    if set(kinds) - {"cross_cache"}:
        wanted |= self_attention_layers(denoiser).keys()
    box = CachedOutputs()
    recorder = recording_copy(denoiser, box, wanted)
    latent_height, latent_width = sides["latent_height"], sides["latent_width"]
    dtype = next(denoiser.parameters()).dtype
    with FakeTensorMode(allow_non_fake_inputs=True):
        conditioning.predict(
            recorder,
            torch.empty(1, channels, latent_height, latent_width, dtype=dtype),
            torch.zeros(1),
            {
                GUIDANCE_SCALE: torch.zeros(1),
                **{
                    entry.name: torch.empty(
                        1,
                        *(dim if isinstance(dim, int) else sides[dim] for dim in entry.shape),
                        dtype=dtype if entry.origin is None else None,
                    )
                    for entry in conditioning.conditions
                },
            },
        )
    shapes = {path: tuple(value.shape) for path, value in box.values.items()}
    of_cross = {path: shape for path, shape in shapes.items() if path in cross}
    of_self = {path: shape for path, shape in shapes.items() if path not in cross}
    if conditioning.single_token is not None:
        of_cross = {path: (1, 1, width) for path, (_, _, width) in of_cross.items()}
    group = partial(
        group_caches,
        latent_height=latent_height,
        latent_width=latent_width,
        frames=conditioning.frames,
    )
    groups = group("cross_cache", of_cross)
    if "self_passes" in kinds:
        groups += group("self_passes", of_self, passes=conditioning.passes)
    if "self_cache" in kinds:
        groups += group("self_cache", of_self)
    return groups
