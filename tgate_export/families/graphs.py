"""The graphs of a bundle, declared: modules, and inputs and outputs as names to axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tgate_export.bundle.manifest import Size
from tgate_export.bundle.origins import (
    FromCache,
    FromFormula,
    FromGraph,
    FromImage,
    FromLoop,
    FromMask,
    FromParameter,
    FromTokens,
    Of,
    Origin,
)
from tgate_export.families.geometry import latents, vae_downscale, vae_size
from tgate_export.families.loading import TORCH_DTYPES, Components, component_precision
from tgate_export.families.modules import VaeDecoder, VaeEncoder
from tgate_export.families.source import ModelSource
from tgate_export.families.spec import CLIP_SKIP
from tgate_export.families.units import DENOISER, prompt_encoder, units
from tgate_export.methods.conditioning import GUIDANCE_RESCALE, GUIDANCE_SCALE, Condition
from tgate_export.methods.cross_attention import CacheGroup
from tgate_export.methods.denoiser_phases import CacheTensor, DenoiserPhases, find_phases
from tgate_export.methods.method import Method


@dataclass(frozen=True)
class GraphInput:
    """A graph's input or output: name, dtype, and a number or a name for each dimension.

    An input has an origin.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]
    origin: Origin | None = None


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
        size: of the images that it is for.
    """

    name: str
    unit: str
    components: tuple[str, ...]
    module: Callable[[], nn.Module]
    inputs: tuple[GraphInput, ...]
    outputs: tuple[GraphInput, ...]
    sizes: Mapping[str, int]
    size: Size


def denoiser_phases(
    source: ModelSource, parts: Components, size: Size, method: Method, names: Iterable[str]
) -> DenoiserPhases:
    """Return phases of the denoiser, with their caches at the bundle's usual size."""
    denoiser: Any = parts[source.family.denoiser]
    space = latents(source)
    return find_phases(
        denoiser,
        method,
        names,
        source.conditioning(),
        channels=space.channels,
        sides=_Axes(size, (), space.downscale).sizes,
    )


def graph_exports(
    source: ModelSource,
    parts: Components,
    size: Size,
    phases: DenoiserPhases | None,
    *,
    image_to_image: bool = False,
    vae_tile: int = 0,
) -> tuple[GraphExport, ...]:
    """Declare the graphs of a bundle in the order in which they are exported and verified.

    Args:
        source: the pipeline.
        parts: it, loaded; or what is exported of it.
        size: the bundle's.
        phases: the denoiser's; None where it is not loaded, and not exported.
        image_to_image: whether runs can begin with an image.
        vae_tile: sides of the tiles that the VAE takes, in pixels; 0 for whole images.
    """
    family = source.family
    conditioning = source.conditioning()
    groups = () if phases is None else phases.groups
    compute = TORCH_DTYPES[component_precision(source, family.denoiser, parts.precision)]
    axes = _Axes(size, groups, vae_downscale(source))
    of_vae = _Axes(vae_size(size, vae_tile), (), vae_downscale(source))
    frames = conditioning.frames
    float32 = torch.float32
    sample = GraphInput(
        "sample", float32, axes.latents(latents(source).channels), FromLoop(loop="sample")
    )
    vae_latents = of_vae.latents(latents(source).channels)
    timestep = GraphInput("timestep", float32, ("batch",), FromLoop(loop="timestep"))
    noise_pred = GraphInput("noise_pred", float32, sample.shape)
    caches = {
        group.name: axes.cache(index, group, compute)
        if isinstance(group, CacheGroup)
        else GraphInput(group.name, float32, sample.shape)
        for index, group in enumerate(groups)
    }
    text = bool(family.tokenizers(source))
    encoder = prompt_encoder(source)

    def condition(entry: Condition, name: str) -> GraphInput:
        origin: Origin | None = entry.origin
        if name != entry.name and entry.negative_origin is not None:
            origin = entry.negative_origin
        dtype = compute if origin is None else float32
        if origin is None and text:
            of: Of = "prompt" if name == entry.name else "negative_prompt"
            origin = FromGraph(graph=encoder, output=entry.name, of=of, chunks=entry.chunks)
        elif origin is None:
            origin = FromGraph(graph=encoder, output=entry.name)
        return GraphInput(name, dtype, ("batch", *axes.sides(entry.input_shape)), origin)

    def encoded(entry: Condition) -> GraphInput:
        dtype = compute if entry.origin is None else float32
        return GraphInput(entry.name, dtype, ("batch", *axes.sides(entry.shape)))

    known = {
        name: condition(entry, name)
        for entry in conditioning.conditions
        for name in entry.full_inputs
    }
    known[GUIDANCE_SCALE] = (
        _parameter(GUIDANCE_SCALE, float32)
        if frames is None
        else GraphInput(
            GUIDANCE_SCALE, float32, ("batch", frames), FromFormula(formula="frame_guidance_scale")
        )
    )
    numbers = () if phases is None else phases.method.numbers
    known |= {name: _parameter(name, float32) for name in (GUIDANCE_RESCALE, *numbers)}
    components = {unit.name: unit.components for unit in units(source, image_to_image=True)}

    def declare(
        name: str,
        unit: str,
        module: Callable[[], nn.Module],
        inputs: tuple[GraphInput, ...],
        outputs: tuple[GraphInput, ...],
        axes: _Axes = axes,
    ) -> GraphExport:
        return GraphExport(
            name, unit, components[unit], module, inputs, outputs, axes.sizes, axes.size
        )

    image = [
        entry
        for entry in conditioning.conditions
        if isinstance(entry.origin, FromGraph) and entry.origin.graph == "vae_encoder"
    ]
    pixels = FromImage(
        image="image", range=(0.0, 1.0), layout="BHWC",
        noise="noise_aug_strength" if image else None,
    )  # fmt: skip
    by_channel = family.latents_by_channel
    vae_encoder = declare(
        "vae_encoder",
        "vae_encoder",
        lambda: VaeEncoder(parts["vae"], scaled=not image, by_channel=by_channel),
        (GraphInput("noisy_image" if image else "images", float32, of_vae.images(), pixels),),
        tuple(encoded(entry) for entry in image)
        or (GraphInput("image_latents", float32, vae_latents),),
        of_vae,
    )

    def phase(phases: DenoiserPhases, name: str) -> GraphExport:
        return declare(
            name,
            DENOISER,
            lambda: phases.module(parts[family.denoiser], name),
            (
                sample,
                timestep,
                *(known[entry] for entry in phases.inputs(name)),
                *(
                    replace(caches[group.name], origin=FromCache(cache=group.name))
                    for group in phases.reads(name)
                ),
            ),
            (noise_pred, *(caches[group.name] for group in phases.writes(name))),
        )

    denoising = [] if phases is None else [phase(phases, name) for name in phases.names]
    prompt_inputs = [
        GraphInput(name, torch.int64, ("batch", spec.max_length), origin)
        for spec in family.tokenizers(source)
        for name, origin in (
            (spec.input, FromTokens(tokens=spec.input)),
            (spec.mask, FromMask(mask=spec.input)),
        )
        if name
    ]
    if family.clip_skips(source):
        prompt_inputs.append(_parameter(CLIP_SKIP, torch.int64, of="prompt"))
    picture = GraphInput(
        "image", float32, ("batch", size.height.opt, size.width.opt, 3),
        FromImage(image="image", range=(0.0, 1.0), layout="BHWC"),
    )  # fmt: skip
    return (
        declare(
            encoder,
            encoder,
            lambda: family.prompt_encoder(source, parts, size),
            tuple(prompt_inputs) if text else (picture,),
            tuple(encoded(entry) for entry in conditioning.prompt),
        ),
        *denoising,
        *([vae_encoder] if image_to_image or image else []),
        declare(
            "vae_decoder",
            "vae_decoder",
            lambda: _vae_decoder(source, parts, tiled=vae_tile > 0),
            (GraphInput("latents", float32, vae_latents, FromLoop(loop="latents")),),
            (GraphInput("images", float32, of_vae.images(frames)),),
            of_vae,
        ),
    )


def _vae_decoder(source: ModelSource, parts: Components, *, tiled: bool) -> nn.Module:
    if source.family.vae_decoder is not None:
        return source.family.vae_decoder(source, parts)
    # Tiles are blended before values are limited.
    return VaeDecoder(parts["vae"], by_channel=source.family.latents_by_channel, limited=not tiled)


def _parameter(name: str, dtype: torch.dtype, of: Of | None = None) -> GraphInput:
    """Return an input [B] that is a parameter of the same name."""
    return GraphInput(name, dtype, ("batch",), FromParameter(parameter=name, of=of))


class _Axes:
    """Dimensions that depend on the image size: numbers when it is fixed, names when it is not."""

    def __init__(self, size: Size, groups: tuple[CacheTensor, ...], downscale: int) -> None:
        self.size = size
        self.sizes = {
            "latent_height": size.height.opt // downscale,
            "latent_width": size.width.opt // downscale,
            "height": size.height.opt,
            "width": size.width.opt,
            **{
                f"tokens_{index}": group.tokens
                for index, group in enumerate(groups)
                if isinstance(group, CacheGroup)
            },
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
        fixed = self.size.height.fixed and self.size.width.fixed
        fixed |= group.downsample is None
        tokens = group.tokens if fixed else f"tokens_{index}"
        passes = () if group.passes is None else (group.passes,)
        shape = ("batch", *passes, len(group.layers), tokens, group.width)
        return GraphInput(group.name, dtype, shape)

    def _side(self, name: str) -> int | str:
        side = self.size.height if name.endswith("height") else self.size.width
        if not side.fixed:
            return name
        return self.sizes[name]
