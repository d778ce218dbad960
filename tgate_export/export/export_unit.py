"""One component's graphs: torch -> ONNX files that share a weights file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import onnx_ir
import torch

from tgate_export.adapters.lora_file import COMPONENTS
from tgate_export.bundle.layers_file import SUFFIX, write_layers
from tgate_export.bundle.manifest import Range
from tgate_export.bundle.manifest_graphs import (
    Cache,
    Dimension,
    DType,
    Graph,
    Input,
    Precision,
    Tensor,
)
from tgate_export.common.errors import VerificationError
from tgate_export.common.memory import release_memory
from tgate_export.common.progress import Progress
from tgate_export.export.layer_constants import LayerConstants
from tgate_export.export.onnx_export import export_graph
from tgate_export.export.unit import GRAPHS_FOLDER, ExportedUnit
from tgate_export.export.weights import WeightFile, count_parameters
from tgate_export.families.geometry import vae_downscale
from tgate_export.families.graphs import GraphExport, GraphInput
from tgate_export.families.loading import Components, component_precision, float32_layers
from tgate_export.families.source import ModelSource
from tgate_export.families.units import DENOISER, Unit
from tgate_export.methods.cross_attention import CacheGroup
from tgate_export.methods.denoiser_phases import CacheTensor, DenoiserPhases

_DTYPES: Mapping[torch.dtype, DType] = {
    torch.float32: "float32", torch.float16: "float16", torch.int64: "int64",
}  # fmt: skip


def export_unit(
    source: ModelSource,
    unit: Unit,
    parts: Components,
    declared: Sequence[GraphExport],
    phases: DenoiserPhases | None,
    folder: Path,
    progress: Progress,
    *,
    batch: Range,
) -> ExportedUnit:
    """Export a unit's graphs, one after another, and its weights once.

    Args:
        source: the pipeline.
        unit: what is exported.
        parts: the loaded pipeline, or what the unit needs of it.
        declared: the pipeline's graphs.
        phases: the denoiser's; None where it is not loaded.
        folder: where the files go.
        progress: told of every graph.
        batch: batch range.
    """
    precision = component_precision(source, unit.components[0], parts.precision)
    denoising = unit.name == DENOISER
    graphs = {}
    layers = _layers(source, unit, parts)
    with closing(WeightFile(folder / f"{unit.name}.weights")) as weights:
        for graph in declared:
            if graph.unit != unit.name:
                continue
            with progress.stage(f"exporting {graph.name}"):
                model = export_graph(graph, batch, graph.size, vae_downscale(source))
                layers = _with_graph(layers, graph.name, model, progress)
                weights.externalize(model)
                onnx_ir.save(model, folder / f"{graph.name}.onnx")
                graphs[graph.name] = Graph(
                    file=f"{GRAPHS_FOLDER}/{graph.name}.onnx",
                    weights=f"{GRAPHS_FOLDER}/{weights.path.name}",
                    precision=precision,
                    float32_attention=denoising and source.conditioning().float32_attention,
                    float32_layers=_float32_layers(unit, parts, precision),
                    parameters=count_parameters(model),
                    inputs=_inputs(graph),
                    outputs=_outputs(graph),
                )
                del model
                release_memory()
    file = f"{unit.name}{SUFFIX}" if layers else None
    if layers and file:
        write_layers(folder / file, layers.layers())
    if phases is None or not denoising:
        return ExportedUnit(graphs=graphs, layers=file)
    return ExportedUnit(
        graphs=graphs,
        layers=file,
        caches=_caches(phases.groups, graphs),
        dimensions=_dimensions(phases.groups, graphs),
    )


def _layers(source: ModelSource, unit: Unit, parts: Components) -> LayerConstants | None:
    """Return what notes where the weights are that a LoRA may change; None where none does."""
    if not source.family.loras or not set(unit.components) <= COMPONENTS:
        return None
    return LayerConstants({name: parts[name] for name in unit.components})


def _with_graph(
    layers: LayerConstants | None, graph: str, model: onnx_ir.Model, progress: Progress
) -> LayerConstants | None:
    """Note a graph's weights; None where they are not found, which takes nothing but `lora`."""
    if layers is not None:
        try:
            layers.add(graph, model)
        except VerificationError as error:
            progress.note(f"the bundle will take no LoRA without a build: {error}")
            return None
    return layers


def _float32_layers(unit: Unit, parts: Components, precision: Precision) -> int:
    return (
        0 if precision == "fp32" else sum(float32_layers(parts[name]) for name in unit.components)
    )


def _inputs(graph: GraphExport) -> tuple[Input, ...]:
    """Return a graph's inputs as a manifest has them."""
    return tuple(
        Input(**_tensor(entry).model_dump(), origin=entry.origin)
        for entry in graph.inputs
        if entry.origin is not None
    )


def _outputs(graph: GraphExport) -> tuple[Tensor, ...]:
    """Return a graph's outputs as a manifest has them."""
    return tuple(_tensor(entry) for entry in graph.outputs)


def _tensor(entry: GraphInput) -> Tensor:
    return Tensor(name=entry.name, dtype=_DTYPES[entry.dtype], shape=entry.shape)


def _caches(groups: Iterable[CacheTensor], graphs: Mapping[str, Graph]) -> dict[str, Cache]:
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


def _dimensions(groups: Iterable[CacheTensor], graphs: Mapping[str, Graph]) -> dict[str, Dimension]:
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
        if isinstance(group, CacheGroup)
        and group.downsample is not None
        and f"tokens_{index}" in named
    }
