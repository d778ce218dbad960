"""One component's graphs: torch -> ONNX files that share a weights file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import onnx_ir

from tgate_export.bundle.manifest import Cache, Graph, Precision, Range, Size, Tensor
from tgate_export.common.memory import release_memory
from tgate_export.common.progress import Progress
from tgate_export.export.onnx_export import export_graph
from tgate_export.export.unit import GRAPHS_FOLDER, ExportedUnit
from tgate_export.export.weights import WeightFile, count_parameters
from tgate_export.families.geometry import vae_downscale
from tgate_export.families.graphs import GraphExport, GraphInput
from tgate_export.families.loading import Components, component_precision, float32_layers
from tgate_export.families.source import ModelSource
from tgate_export.families.units import DENOISER, Unit
from tgate_export.methods.cross_attention import CacheGroup


def export_unit(
    source: ModelSource,
    unit: Unit,
    parts: Components,
    declared: Sequence[GraphExport],
    groups: Iterable[CacheGroup],
    folder: Path,
    progress: Progress,
    *,
    batch: Range,
    size: Size,
) -> ExportedUnit:
    """Export a unit's graphs, one after another, and its weights once.

    Args:
        source: the pipeline.
        unit: what is exported.
        parts: the loaded pipeline, or what the unit needs of it.
        declared: the pipeline's graphs.
        groups: how caches are stacked.
        folder: where the files go.
        progress: told of every graph.
        batch: batch range.
        size: image size range.
    """
    precision = component_precision(source, unit.components[0], parts.precision)
    denoising = unit.name == DENOISER
    graphs = {}
    with closing(WeightFile(folder / f"{unit.name}.weights")) as weights:
        for graph in declared:
            if graph.unit != unit.name:
                continue
            with progress.stage(f"exporting {graph.name}"):
                model = export_graph(graph, batch, size, vae_downscale(source))
                weights.externalize(model)
                onnx_ir.save(model, folder / f"{graph.name}.onnx")
                graphs[graph.name] = Graph(
                    file=f"{GRAPHS_FOLDER}/{graph.name}.onnx",
                    weights=f"{GRAPHS_FOLDER}/{weights.path.name}",
                    precision=precision,
                    float32_attention=denoising and source.conditioning().float32_attention,
                    float32_layers=_float32_layers(unit, parts, precision),
                    parameters=count_parameters(model),
                    inputs=_tensors(graph.inputs),
                    outputs=_tensors(graph.outputs),
                )
                del model
                release_memory()
    return ExportedUnit(graphs=graphs, caches=_caches(groups) if denoising else ())


def _float32_layers(unit: Unit, parts: Components, precision: Precision) -> int:
    return (
        0 if precision == "fp32" else sum(float32_layers(parts[name]) for name in unit.components)
    )


def _tensors(entries: Iterable[GraphInput]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(name=entry.name, dtype=str(entry.dtype).removeprefix("torch."), shape=entry.shape)  # type: ignore[arg-type]
        for entry in entries
    )


def _caches(groups: Iterable[CacheGroup]) -> tuple[Cache, ...]:
    return tuple(
        Cache(
            tensor=group.name,
            kind=group.kind,
            passes=group.passes,
            downsample=group.downsample,
            width=group.width,
            layers=group.layers,
        )
        for group in groups
    )
