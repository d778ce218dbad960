"""Shape ranges of a graph's inputs: what a plan is compiled for."""

from __future__ import annotations

import math

from tgate_export.bundle.manifest import Manifest, Range, Tensor
from tgate_export.bundle.plans import ShapeRange
from tgate_export.errors import BundleError


def graph_shapes(manifest: Manifest, graph: str, batch: Range) -> dict[str, ShapeRange]:
    """Return the shapes of every input of a graph, from the bundle's size and a batch range.

    Raises:
        BundleError: an input has a dimension of unknown meaning.
    """
    ends = [_dims(manifest, batch, end) for end in ("min", "opt", "max")]
    ranges = {}
    for tensor in manifest.graph(graph).inputs:
        shapes = [_shape(graph, tensor, dims) for dims in ends]
        ranges[tensor.name] = ShapeRange(min=shapes[0], opt=shapes[1], max=shapes[2])
    return ranges


def _dims(manifest: Manifest, batch: Range, end: str) -> dict[str, int]:
    """Return the value of every named dimension at one end of the ranges."""
    height, width = (getattr(side, end) for side in (manifest.size.height, manifest.size.width))
    h, w = height // manifest.latents.downscale, width // manifest.latents.downscale
    dims = {
        "batch": getattr(batch, end),
        "channels": manifest.latents.channels,
        "height": height,
        "width": width,
        "latent_height": h,
        "latent_width": w,
    }
    for index, cache in enumerate(manifest.cache):
        dims[f"tokens_{index}"] = math.ceil(h / cache.downsample) * math.ceil(w / cache.downsample)
    return dims


def _shape(graph: str, tensor: Tensor, dims: dict[str, int]) -> tuple[int, ...]:
    unknown = [dim for dim in tensor.shape if isinstance(dim, str) and dim not in dims]
    if unknown:
        raise BundleError(f"graph {graph!r}: {tensor.name} has a dimension {unknown[0]!r}")
    return tuple(dims[dim] if isinstance(dim, str) else dim for dim in tensor.shape)
