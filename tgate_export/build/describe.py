"""The manifest of what was exported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from tgate_export.build.options import BuildOptions, versions
from tgate_export.build.request import BuildRequest
from tgate_export.bundle.manifest import SCHEMA_MINOR, File, Manifest, Sampler, Tokenizer
from tgate_export.bundle.tiles import ABILITY, Tiles, overlap_of
from tgate_export.export.unit import ExportedUnit
from tgate_export.families import geometry
from tgate_export.families.source import ModelSource
from tgate_export.parameters import Parameter, table_entry
from tgate_export.samplers.compile_all import sampler_graph


def describe(
    request: BuildRequest,
    units: Mapping[str, ExportedUnit],
    *,
    samplers: dict[str, Sampler],
    default: str,
    tokenizers: dict[str, Tokenizer],
    files: dict[str, File],
) -> Manifest:
    """Return a bundle's manifest.

    Args:
        request: what is built.
        units: its graphs, in order.
        samplers: by name.
        default: the sampler that is used unless told otherwise.
        tokenizers: by name.
        files: the hashes of all files.
    """
    source, options = request.source, request.options
    graphs = _merged(unit.graphs for unit in units.values())
    if tile := options.vae_tile:
        tiles = Tiles(size=tile, overlap=overlap_of(tile))
        for name in ("vae_encoder", "vae_decoder"):
            if name in graphs:
                graphs[name] = graphs[name].model_copy(update={"tiles": tiles})
    requires = [
        *(["prompt-chunks"] if source.prompt_chunks > 1 else []),
        *(["prompt-syntax"] if options.prompt_syntax not in (None, "plain") else []),
        *([ABILITY] if options.vae_tile else []),
    ]
    return Manifest(
        schema_version=2,
        schema_minor=SCHEMA_MINOR,
        requires=tuple(requires),
        name=source.name,
        family=source.family.name,
        source=request.record,
        precision=options.precision,
        build_key=request.key,
        prediction_type=source.config("scheduler").get("prediction_type", "epsilon"),
        batch=options.batch,
        size=options.size,
        latents=geometry.latents(source),
        parameters=parameter_table(source, options, tuple(samplers), default),
        tokenizers=tokenizers,
        guidance=options.guidance,
        absent_negative_prompt="zeros" if source.family.zero_negative(source) else "empty",
        graphs={**graphs, "sampler": sampler_graph()},
        methods={options.method.name: options.method.described()},
        caches=_merged(unit.caches for unit in units.values()),
        dimensions=_merged(unit.dimensions for unit in units.values()),
        samplers=samplers,
        versions=versions(),
        files=files,
    )


T = TypeVar("T")


def _merged(parts: Iterable[Mapping[str, T]]) -> dict[str, T]:
    return {name: value for part in parts for name, value in part.items()}


def parameter_table(
    source: ModelSource, options: BuildOptions, samplers: tuple[str, ...], scheduler: str
) -> dict[str, Parameter]:
    """Return what a caller may set for a run of a bundle, with the bundle's defaults.

    Args:
        source: the pipeline.
        options: the build's settings.
        samplers: names of the bundle's.
        scheduler: the default one.
    """
    conditioning, defaults = source.conditioning(), source.defaults
    table = {
        "num_inference_steps": table_entry(
            "num_inference_steps", default=defaults.num_inference_steps
        ),
        **{name: table_entry(name, default=value) for name, value in options.settings.items()},
        "scheduler": table_entry("scheduler", default=scheduler, choices=samplers),
    }
    if options.guidance != "none":
        table["guidance_scale"] = table_entry("guidance_scale", default=defaults.guidance_scale)
    if conditioning.rescale:
        table["guidance_rescale"] = table_entry("guidance_rescale")
    if skips := source.family.clip_skips(source):
        table["clip_skip"] = table_entry("clip_skip", max=skips)
    if options.prompt_syntax is not None:
        table["prompt_syntax"] = table_entry("prompt_syntax", default=options.prompt_syntax)
    if options.image_to_image:
        table |= {name: table_entry(name) for name in ("image", "strength")}
    return table | dict(source.family.parameters(source))
