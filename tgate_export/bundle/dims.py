"""What the named dimensions of a bundle's tensors are at a given batch and image size."""

from __future__ import annotations

import math

from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.manifest_graphs import Tensor
from tgate_export.common.errors import BundleError


def named_dims(manifest: Manifest, *, batch: int, height: int, width: int) -> dict[str, int]:
    """Return the value of every named dimension.

    Args:
        manifest: the bundle's manifest.
        batch: samples in a call.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    h, w = height // manifest.latents.downscale, width // manifest.latents.downscale
    return {
        **{
            name: dimension.times
            * math.ceil(h / dimension.downsample)
            * math.ceil(w / dimension.downsample)
            for name, dimension in manifest.dimensions.items()
        },
        "batch": batch,
        "channels": manifest.latents.channels,
        "height": height,
        "width": width,
        "latent_height": h,
        "latent_width": w,
    }


def graph_dims(
    manifest: Manifest, graph: str, *, batch: int, height: int, width: int
) -> dict[str, int]:
    """Return the named dimensions of one graph: of one that is run on tiles, those of a tile."""
    if (tiles := manifest.graph(graph).tiles) is not None:
        height, width = min(height, tiles.size), min(width, tiles.size)
    return named_dims(manifest, batch=batch, height=height, width=width)


def concrete_shape(graph: str, tensor: Tensor, dims: dict[str, int]) -> tuple[int, ...]:
    """Return a tensor's shape in numbers.

    Raises:
        BundleError: a dimension of unknown meaning.
    """
    return concrete(f"graph {graph!r}: {tensor.name}", tensor.shape, dims)


def concrete(where: str, shape: tuple[int | str, ...], dims: dict[str, int]) -> tuple[int, ...]:
    """Return a shape in numbers; `where` is what an error says that it is of.

    Raises:
        BundleError: a dimension of unknown meaning.
    """
    unknown = [dim for dim in shape if isinstance(dim, str) and dim not in dims]
    if unknown:
        raise BundleError(f"{where} has a dimension {unknown[0]!r}")
    return tuple(dims[dim] if isinstance(dim, str) else dim for dim in shape)
