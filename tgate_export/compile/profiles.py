"""Shape ranges of a graph's inputs: what a plan is compiled for."""

from __future__ import annotations

from tgate_export.bundle.dims import concrete_shape, graph_dims
from tgate_export.bundle.manifest import Manifest, Range
from tgate_export.bundle.plans import ShapeRange


def graph_shapes(manifest: Manifest, graph: str, batch: Range) -> dict[str, ShapeRange]:
    """Return the shapes of every input of a graph, from the bundle's size and a batch range.

    Raises:
        BundleError: an input has a dimension of unknown meaning.
    """
    size = manifest.size
    low, usual, high = (
        graph_dims(
            manifest,
            graph,
            batch=getattr(batch, end),
            height=getattr(size.height, end),
            width=getattr(size.width, end),
        )
        for end in ("min", "opt", "max")
    )
    return {
        tensor.name: ShapeRange(
            min=concrete_shape(graph, tensor, low),
            opt=concrete_shape(graph, tensor, usual),
            max=concrete_shape(graph, tensor, high),
        )
        for tensor in manifest.graph(graph).inputs
    }
