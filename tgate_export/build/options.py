"""What a build was asked for, and the key that says when nothing has to be built."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tgate_export
from tgate_export.bundle.manifest import (
    DEFAULT_BATCH,
    SCHEMA_VERSION,
    Defaults,
    File,
    Guidance,
    Manifest,
    Range,
    Size,
)
from tgate_export.bundle.manifest_graphs import Precision
from tgate_export.bundle.sampler_names import EVERY, find_name
from tgate_export.bundle.sampler_names import SAMPLERS as NAMES
from tgate_export.bundle.tiles import default_tile
from tgate_export.common.code_hash import code_sha256
from tgate_export.common.errors import InvalidRequestError
from tgate_export.common.hints import Argument
from tgate_export.common.versions import versions_of
from tgate_export.families import geometry
from tgate_export.families.loras import hash_with_loras
from tgate_export.families.names import MAX_BATCH
from tgate_export.families.registry import family_module
from tgate_export.families.source import ModelSource
from tgate_export.methods import tgate_v2
from tgate_export.methods.method import Method
from tgate_export.parameters import PARAMETERS
from tgate_export.samplers import specs
from tgate_export.steps.rule import at_least_fault

_PACKAGES = (
    "torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime",
)  # fmt: skip


@dataclass(frozen=True)
class BuildOptions:
    """A build's settings after defaults are filled in; see `build_bundle`.

    Attributes:
        precision: of the weights and the computation.
        size: image sizes.
        batch: images of a call.
        settings: the bundle's defaults of the method's parameters, and of its numbers where
            guidance is classifier-free.
        guidance: what guides the denoiser.
        image_to_image: whether runs can begin with an image.
        vae_tile: sides of the tiles that the VAE takes, in pixels; 0 for whole images.
        method: what the denoiser's graphs are made for.
        samplers: those that are compiled, in the order of the bundle.
        prompt_syntax: how prompts are read that say nothing of it; None where there is one way.
    """

    precision: Precision
    size: Size
    batch: Range
    settings: Mapping[str, float]
    guidance: Guidance
    image_to_image: bool = False
    vae_tile: int = 0
    method: Method = tgate_v2.METHOD
    samplers: tuple[str, ...] = ()
    prompt_syntax: str | None = None

    @property
    def gate_step(self) -> int:
        """The bundle's default gate step."""
        return int(self.settings["gate_step"])

    @property
    def phases(self) -> tuple[str, ...]:
        """The denoiser's graphs: no more than the settings ask for."""
        return self.method.phases_for(self.settings)


def check_options(
    source: ModelSource,
    precision: Precision,
    size: tuple[Range, Range] | None = None,
    batch: Range | None = None,
    settings: Mapping[str, float | None] | None = None,
    *,
    image_to_image: bool = False,
    vae_tile: int | None = None,
    samplers: str | None = None,
    prompt_syntax: str | None = None,
) -> BuildOptions:
    """Fill in a build's settings from the model's own, and check them.

    Args:
        source: the pipeline.
        precision: of the weights and the computation.
        size: width and height ranges in pixels; the model's own size when not given.
        batch: images of a call; 1 to 8, or one video, when not given.
        settings: defaults of the method's parameters and numbers; the model's own for what is None
            or left out.
        image_to_image: whether runs can begin with an image.
        vae_tile: sides of the tiles that the VAE takes, in pixels; 0 for whole images, and by the
            size when None.
        samplers: more than those that every bundle has: "all", or names with commas between them.
        prompt_syntax: the bundle's default of how prompts are read; "plain" when not given.

    Raises:
        InvalidRequestError: names the setting, and a value near it that would do.
    """
    frames = geometry.latents(source).frames or 1
    batch = batch or (DEFAULT_BATCH if frames == 1 else Range(min=1, opt=1, max=1))
    largest = MAX_BATCH // frames
    if batch.max > largest:
        of = "" if frames == 1 else f" for {frames} frames"
        raise InvalidRequestError(f"the batch may be {largest} at most{of}, got {batch}")
    method = tgate_v2.METHOD
    settings = _method_settings(method, source.defaults, source.guidance, settings or {})
    image_to_image = image_to_image or source.family.aesthetic
    if image_to_image and not source.family.image_to_image:
        raise InvalidRequestError(
            f"{source.model} is a {source.pipeline}, which has no image-to-image: leave it out"
        )
    if image_to_image and source.vae and not source.vae.encodes:
        raise InvalidRequestError(
            f"vae {source.vae.path} has no encoder, which image-to-image needs",
            "choose another ",
            Argument("vae"),
            field="vae",
        )
    if size is None:
        width, height = (
            Range(min=side, opt=side, max=side) for side in geometry.default_size(source)
        )
    else:
        width, height = size
    dynamic = not (width.fixed and height.fixed)
    if dynamic and not source.family.dynamic_size:
        raise InvalidRequestError(
            f"{source.model} is a {source.pipeline}, whose bundles have one size",
            "fix it, as ",
            Argument(
                "size", tuple(Range(min=s.opt, opt=s.opt, max=s.opt) for s in (width, height))
            ),
        )
    multiple = geometry.size_multiple(source, dynamic=dynamic)
    for name, side_range in (("width", width), ("height", height)):
        for value in (side_range.min, side_range.opt, side_range.max):
            if value % multiple:
                below = value // multiple * multiple
                near = f"{below} or {below + multiple}" if below else str(multiple)
                raise InvalidRequestError(
                    f"{name} {value} is not a multiple of {multiple}"
                    f"{', as a dynamic size must be' if dynamic else ''}: try {near}"
                )
    found = Size(height=height, width=width, multiple=multiple)
    return BuildOptions(
        precision,
        found,
        batch,
        settings,
        source.guidance,
        image_to_image,
        _vae_tile(source, vae_tile, found),
        method,
        _samplers(source, samplers),
        _syntax(source, prompt_syntax),
    )


def _syntax(source: ModelSource, wanted: str | None) -> str | None:
    """Return how prompts are read by default; None where there is one way."""
    if wanted is not None and (fault := PARAMETERS["prompt_syntax"].fault(wanted)):
        raise InvalidRequestError(f"prompt_syntax {fault}", field="prompt_syntax")
    if source.by_token:
        return wanted or "plain"
    if wanted not in (None, "plain"):
        raise InvalidRequestError(
            f"{source.model} is a {source.pipeline}, whose prompts have no weights",
            "leave ",
            Argument("prompt_syntax"),
            " out",
            field="prompt_syntax",
        )
    return None


def _vae_tile(source: ModelSource, tile: int | None, size: Size) -> int:
    """Return the sides of the VAE's tiles; 0 for none, and for images that are no larger."""
    largest = max(size.height.max, size.width.max)
    if geometry.latents(source).video:
        if tile:
            raise InvalidRequestError(
                f"{source.model} makes videos, whose VAE takes whole images: leave vae_tile out",
                field="vae_tile",
            )
        return 0
    if tile is None:
        tile = default_tile(size.height.max, size.width.max)
    # A quarter of it, by which tiles overlap, is whole latents; and a dynamic graph has steps.
    multiple = math.lcm(4 * geometry.vae_downscale(source), size.multiple)
    if tile < 0 or tile % multiple:
        below = max(0, tile) // multiple * multiple
        near = f"{below} or {below + multiple}" if below else str(multiple)
        raise InvalidRequestError(
            f"vae_tile {tile} is not 0, nor a multiple of {multiple}: try {near}", field="vae_tile"
        )
    return tile if tile < largest else 0


def _samplers(source: ModelSource, wanted: str | None) -> tuple[str, ...]:
    """Return what is compiled: what every bundle has, the model's own, and what is wanted."""
    more: list[str] = []
    if wanted == "all":
        more = list(EVERY)
    elif wanted is not None:
        for text in wanted.split(","):
            found = find_name(text)
            if found is None or found.kind:
                raise InvalidRequestError(
                    f"unknown sampler {text.strip()!r:.60}: say all, or names of "
                    f"{', '.join(NAMES)}, such as heun-karras",
                    field="samplers",
                )
            specs.sampler_spec(str(found), source.family.name)
            more.append(str(found))
    if source.samplers is None:
        return tuple(dict.fromkeys((*specs.SAMPLERS, source.defaults.scheduler, *more)))
    if more:
        raise InvalidRequestError(
            f"{source.model} is sampled by {', '.join(source.samplers)} alone: leave samplers out",
            field="samplers",
        )
    return source.samplers


def _method_settings(
    method: Method, defaults: Defaults, guidance: Guidance, given: Mapping[str, float | None]
) -> dict[str, float]:
    """Return a method's settings.

    Refuse those that make no step plan, for any number of steps, and those of what is not there.
    """
    numbers = method.numbers if guidance == "classifier-free" else ()
    if lost := [
        n
        for n, value in given.items()
        if value is not None and n not in (*method.parameters, *numbers)
    ]:
        raise InvalidRequestError(
            f"{lost[0]} {given[lost[0]]} has no effect on a model without classifier-free guidance",
            "leave ",
            Argument(lost[0]),
            " out",
            field=lost[0],
        )
    values: dict[str, float] = {}
    for name in (*method.parameters, *numbers):
        value = given.get(name)
        values[name] = getattr(defaults, name) if value is None else value
    for name, value in values.items():
        if fault := PARAMETERS[name].fault(value):
            raise InvalidRequestError(f"{name} {fault}", field=name)
    for name, least in method.at_least.items():
        if values[name] < values[least]:
            fault = at_least_fault(name, int(values[name]), least, int(values[least]))
            raise InvalidRequestError(fault, field=name)
    return values


def options_of(manifest: Manifest) -> BuildOptions:
    """Return the settings that a bundle was built with."""
    return BuildOptions(
        manifest.precision,
        manifest.size,
        manifest.batch,
        _method_settings(tgate_v2.METHOD, manifest.defaults, manifest.guidance, {}),
        manifest.guidance,
        "vae_encoder" in manifest.graphs and manifest.takes_prompt,
        manifest.vae_tile,
        samplers=tuple(manifest.samplers),
        prompt_syntax=str(manifest.parameters["prompt_syntax"].default)
        if "prompt_syntax" in manifest.parameters
        else None,
    )


def default_folder(source: ModelSource, options: BuildOptions) -> Path:
    """Return where a bundle goes that was given no folder.

    A size that is not the model's own has a folder of its own: graphs of one size are of no use
    for another, and neither are their plans.
    """
    size = options.size
    fixed = size.width.fixed and size.height.fixed
    if fixed and (size.width.opt, size.height.opt) == geometry.default_size(source):
        return folder_of(source.name)
    return folder_of(source.name, (size.width, size.height))


def folder_of(name: str, size: tuple[Range, Range] | None = None) -> Path:
    """Return where the bundle of a model goes, for its own size or another width and height."""
    if size is None:
        return Path("engines") / name
    label = "x".join(str(side) for side in size).replace(":", "_")
    return Path("engines") / f"{name}-{label}"


def build_key(source: ModelSource, hashes: Mapping[Path, File], options: BuildOptions) -> str:
    """Hash everything that a bundle depends on: weights, settings, our code and its libraries.

    Args:
        source: the pipeline.
        hashes: of its files.
        options: the build's settings.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "source": [source.kind, source.plain_fingerprint(hashes)],
        "precision": options.precision,
        "size": options.size.model_dump(),
        "batch": options.batch.model_dump(),
        "settings": dict(options.settings),
        "guidance": options.guidance,
        "image_to_image": options.image_to_image,
        "vae_tile": options.vae_tile,
        "samplers": options.samplers,
        "prompts": [source.prompt_chunks, options.prompt_syntax],
        "code": code_sha256("build.assemble", family_module(source.family)),
        "versions": versions(),
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return hash_with_loras(key, source.loras, hashes)


def versions() -> dict[str, str]:
    """Return the versions of this package and of those that take part in a build."""
    return {"tgate-export": tgate_export.__version__} | versions_of(_PACKAGES)
