"""The graphs of a bundle, declared: modules, and inputs and outputs as names to axes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tgate_export.bundle.manifest import Size
from tgate_export.families.base import CLIP_SKIP
from tgate_export.families.geometry import latents, vae_downscale
from tgate_export.families.loading import TORCH_DTYPES, Components, component_precision
from tgate_export.families.modules import VaeDecoder, VaeEncoder, VideoVaeDecoder
from tgate_export.families.source import ModelSource
from tgate_export.families.units import DENOISER, prompt_encoder, units
from tgate_export.methods.conditioning import GUIDANCE_RESCALE, GUIDANCE_SCALE, Condition
from tgate_export.methods.cross_attention import CacheGroup
from tgate_export.methods.phases import cache_groups, groups_of, make_phase, phases
from tgate_export.steps.step_plan import READS, WRITES, CacheKind, Phase


@dataclass(frozen=True)
class GraphInput:
    """A graph's input or output: name, dtype, and a number or a name for each dimension."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphExport:
    """A graph to export: the module is made only when its turn comes.

    Attributes:
        name: the graph's name in the bundle.
        unit: the unit that it belongs to; see `families.units`.
        components: those of `Components` whose weights it uses.
        module: makes the module, in the components' dtype at that time.
        inputs: in the order of the module's arguments.
        outputs: in the order of its results.
        sizes: usual size of every named dimension but the batch.
    """

    name: str
    unit: str
    components: tuple[str, ...]
    module: Callable[[], nn.Module]
    inputs: tuple[GraphInput, ...]
    outputs: tuple[GraphInput, ...]
    sizes: Mapping[str, int]


def denoiser_cache(
    source: ModelSource, parts: Components, size: Size, kinds: Collection[CacheKind]
) -> tuple[CacheGroup, ...]:
    """Return the stacked cache tensors of the denoiser at the bundle's usual size."""
    denoiser: Any = parts[source.family.denoiser]
    space = latents(source)
    return cache_groups(
        denoiser,
        source.conditioning(),
        channels=space.channels,
        latent_height=size.height.opt // space.downscale,
        latent_width=size.width.opt // space.downscale,
        kinds=kinds,
    )


def graph_exports(
    source: ModelSource,
    parts: Components,
    size: Size,
    groups: tuple[CacheGroup, ...],
    *,
    image_to_image: bool = False,
) -> tuple[GraphExport, ...]:
    """Declare the graphs of a bundle in the order in which they are exported and verified."""
    family = source.family
    conditioning = source.conditioning()
    compute = TORCH_DTYPES[component_precision(source, family.denoiser, parts.precision)]
    axes = _Axes(size, groups, vae_downscale(source))
    frames = conditioning.frames
    sample = GraphInput("sample", torch.float32, axes.latents(latents(source).channels))
    timestep = GraphInput("timestep", torch.float32, ("batch",))
    noise_pred = GraphInput("noise_pred", torch.float32, sample.shape)
    caches = {g.name: axes.cache(index, g, compute) for index, g in enumerate(groups)}

    def condition(entry: Condition, name: str) -> GraphInput:
        dtype = torch.float32 if entry.host or entry.image else compute
        return GraphInput(name, dtype, ("batch", *axes.sides(entry.shape)))

    known = {
        name: condition(entry, name)
        for entry in conditioning.conditions
        for name in entry.full_inputs
    }
    per_frame = () if frames is None else (frames,)
    known[GUIDANCE_SCALE] = GraphInput(GUIDANCE_SCALE, torch.float32, ("batch", *per_frame))
    known[GUIDANCE_RESCALE] = GraphInput(GUIDANCE_RESCALE, torch.float32, ("batch",))
    components = {unit.name: unit.components for unit in units(source, image_to_image=True)}

    def declare(
        name: str,
        unit: str,
        module: Callable[[], nn.Module],
        inputs: tuple[GraphInput, ...],
        outputs: tuple[GraphInput, ...],
    ) -> GraphExport:
        return GraphExport(name, unit, components[unit], module, inputs, outputs, axes.sizes)

    image = [entry for entry in conditioning.conditions if entry.image]
    by_channel = family.latents_by_channel
    vae_encoder = declare(
        "vae_encoder",
        "vae_encoder",
        lambda: VaeEncoder(parts["vae"], scaled=not image, by_channel=by_channel),
        (GraphInput("noisy_image" if image else "images", torch.float32, axes.images()),),
        tuple(condition(entry, entry.name) for entry in image)
        or (GraphInput("image_latents", torch.float32, sample.shape),),
    )

    def denoising(phase: Phase) -> GraphExport:
        gated = "cross_cache" in READS[phase]
        names = conditioning.gated_inputs if gated else conditioning.full_inputs
        return declare(
            phase,
            DENOISER,
            lambda: make_phase(parts[family.denoiser], groups, conditioning, phase),
            (
                sample,
                timestep,
                *(known[name] for name in names),
                *(caches[g.name] for g in groups_of(groups, READS[phase])),
            ),
            (noise_pred, *(caches[g.name] for g in groups_of(groups, WRITES[phase]))),
        )

    text = frames is None
    prompt_inputs = (
        *(
            GraphInput(name, torch.int64, ("batch", spec.max_length))
            for spec in family.tokenizers(source)
            for name in (spec.input, spec.mask)
            if name
        ),
        *([GraphInput(CLIP_SKIP, torch.int64, ("batch",))] if family.clip_skips(source) else []),
    )
    picture = ("batch", size.height.opt, size.width.opt, 3)
    return (
        declare(
            prompt_encoder(source),
            prompt_encoder(source),
            lambda: family.prompt_encoder(source, parts, size),
            prompt_inputs if text else (GraphInput("image", torch.float32, picture),),
            tuple(condition(entry, entry.name) for entry in conditioning.prompt),
        ),
        *(denoising(phase) for phase in phases(groups)),
        *([vae_encoder] if image_to_image or image else []),
        declare(
            "vae_decoder",
            "vae_decoder",
            lambda: (
                VideoVaeDecoder(parts["vae"], frames)
                if frames
                else VaeDecoder(parts["vae"], by_channel=by_channel)
            ),
            (GraphInput("latents", torch.float32, sample.shape),),
            (GraphInput("images", torch.float32, axes.images(frames)),),
        ),
    )


class _Axes:
    """Dimensions that depend on the image size: numbers when it is fixed, names when it is not."""

    def __init__(self, size: Size, groups: tuple[CacheGroup, ...], downscale: int) -> None:
        self._size, self._downscale = size, downscale
        self.sizes = {
            "latent_height": size.height.opt // downscale,
            "latent_width": size.width.opt // downscale,
            "height": size.height.opt,
            "width": size.width.opt,
            **{f"tokens_{index}": group.tokens for index, group in enumerate(groups)},
        }

    def latents(self, channels: int) -> tuple[int | str, ...]:
        return ("batch", channels, self._side("latent_height"), self._side("latent_width"))

    def images(self, frames: int | None = None) -> tuple[int | str, ...]:
        """Return [B, H, W, 3], of a video [B, F, H, W, 3]."""
        several = () if frames is None else (frames,)
        return ("batch", *several, self._side("height"), self._side("width"), 3)

    def sides(self, shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """Return a shape with numbers for the sides of the latents where they are fixed."""
        return tuple(dim if isinstance(dim, int) else self._side(dim) for dim in shape)

    def cache(self, index: int, group: CacheGroup, dtype: torch.dtype) -> GraphInput:
        fixed = self._size.height.fixed and self._size.width.fixed
        fixed |= group.downsample is None
        tokens = group.tokens if fixed else f"tokens_{index}"
        passes = () if group.passes is None else (group.passes,)
        shape = ("batch", *passes, len(group.layers), tokens, group.width)
        return GraphInput(group.name, dtype, shape)

    def _side(self, name: str) -> int | str:
        side = self._size.height if name.endswith("height") else self._size.width
        if not side.fixed:
            return name
        return self.sizes[name]
