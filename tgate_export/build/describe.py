"""The manifest of what was exported."""

from __future__ import annotations

from collections.abc import Mapping

from tgate_export.build.options import versions
from tgate_export.build.request import BuildRequest
from tgate_export.bundle.manifest import (
    File,
    Graph,
    HostInput,
    Manifest,
    Sampler,
    Tokenizer,
)
from tgate_export.export.unit import ExportedUnit
from tgate_export.families import geometry
from tgate_export.families.source import ModelSource
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
        tokenizers: by the input that takes the ids.
        files: the hashes of all files.
    """
    source, options = request.source, request.options
    graphs: dict[str, Graph] = {}
    for unit in units.values():
        graphs |= unit.graphs
    return Manifest(
        schema_version=1,
        name=source.name,
        family=source.family.name,
        source=request.record,
        precision=options.precision,
        build_key=request.key,
        prediction_type=source.config("scheduler").get("prediction_type", "epsilon"),
        defaults=source.defaults.model_copy(
            update={
                "scheduler": default,
                "gate_step": options.gate_step,
                "sp_interval": options.sp_interval,
                "fi_interval": options.fi_interval,
                "warm_up": options.warm_up,
                # The scale at which classifier-free guidance is the prompt's pass alone.
                **({"guidance_scale": 1.0} if options.guidance == "none" else {}),
            }
        ),
        batch=options.batch,
        size=options.size,
        latents=geometry.latents(source),
        tokenizers=tokenizers,
        clip_skips=source.family.clip_skips(source),
        guidance=options.guidance,
        absent_negative_prompt="zeros" if source.family.zero_negative(source) else "empty",
        conditioning=_host_inputs(source),
        graphs={**graphs, "sampler": sampler_graph()},
        cache=tuple(cache for unit in units.values() for cache in unit.caches),
        samplers=samplers,
        versions=versions(),
        files=files,
    )


def _host_inputs(source: ModelSource) -> dict[str, HostInput]:
    return {
        name: entry.host
        for entry in source.conditioning().conditions
        if entry.host
        for name in entry.full_inputs
    }
