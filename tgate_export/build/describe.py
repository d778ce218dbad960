"""What a manifest says of a bundle's run: parameters, method, caches, origins of inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from tgate_export.build.options import BuildOptions
from tgate_export.bundle.manifest import Cache, Dimension, DType, Graph, Input, Method, Tensor
from tgate_export.families.graphs import GraphExport, GraphInput
from tgate_export.families.source import ModelSource
from tgate_export.methods.cross_attention import CacheGroup
from tgate_export.parameters import Parameter, table_entry
from tgate_export.steps import tgate

TGATE = Method(parameters=tgate.PARAMETERS, at_least=dict(tgate.AT_LEAST), rule=tgate.RULE)
_DTYPES: Mapping[torch.dtype, DType] = {
    torch.float32: "float32", torch.float16: "float16", torch.int64: "int64",
}  # fmt: skip


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
        "gate_step": table_entry("gate_step", default=options.gate_step),
        "sp_interval": table_entry("sp_interval", default=options.sp_interval),
        "fi_interval": table_entry("fi_interval", default=options.fi_interval),
        "warm_up": table_entry("warm_up", default=options.warm_up),
        "scheduler": table_entry("scheduler", default=scheduler, choices=samplers),
    }
    if options.guidance != "none":
        table["guidance_scale"] = table_entry("guidance_scale", default=defaults.guidance_scale)
    if conditioning.rescale:
        table["guidance_rescale"] = table_entry("guidance_rescale")
    if skips := source.family.clip_skips(source):
        table["clip_skip"] = table_entry("clip_skip", max=skips)
    if options.image_to_image:
        table |= {name: table_entry(name) for name in ("image", "strength")}
    return table | dict(source.family.parameters(source))


def inputs_of(graph: GraphExport) -> tuple[Input, ...]:
    """Return a graph's inputs as a manifest has them."""
    return tuple(
        Input(**_tensor(entry).model_dump(), origin=entry.origin)
        for entry in graph.inputs
        if entry.origin is not None
    )


def outputs_of(graph: GraphExport) -> tuple[Tensor, ...]:
    """Return a graph's outputs as a manifest has them."""
    return tuple(_tensor(entry) for entry in graph.outputs)


def _tensor(entry: GraphInput) -> Tensor:
    return Tensor(name=entry.name, dtype=_DTYPES[entry.dtype], shape=entry.shape)


def caches(groups: Iterable[CacheGroup], graphs: Mapping[str, Graph]) -> dict[str, Cache]:
    """Return the caches of a bundle, by name."""
    written = {tensor.name: tensor for graph in graphs.values() for tensor in graph.outputs}
    return {
        group.name: Cache(
            dtype=written[group.name].dtype,
            shape=written[group.name].shape,
            kind=group.kind,
            layers=group.layers,
        )
        for group in groups
    }


def dimensions(groups: Iterable[CacheGroup], graphs: Mapping[str, Graph]) -> dict[str, Dimension]:
    """Return the named dimensions of caches; none where the size is fixed."""
    named = {
        dim
        for graph in graphs.values()
        for tensor in graph.outputs
        for dim in tensor.shape
        if isinstance(dim, str)
    }
    return {
        f"tokens_{index}": Dimension(downsample=group.downsample, times=group.frames or 1)
        for index, group in enumerate(groups)
        if group.downsample is not None and f"tokens_{index}" in named
    }
