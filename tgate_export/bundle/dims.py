"""What the named dimensions of a bundle's tensors are at a given batch and image size."""

from __future__ import annotations

import math

from tgate_export.bundle.manifest import Manifest, Tensor
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
    dims = {
        "batch": batch,
        "channels": manifest.latents.channels,
        "height": height,
        "width": width,
        "latent_height": h,
        "latent_width": w,
    }
    for index, cache in enumerate(manifest.cache):
        dims[f"tokens_{index}"] = (
            1
            if cache.downsample is None
            else math.ceil(h / cache.downsample)
            * math.ceil(w / cache.downsample)
            * (manifest.latents.frames or 1)
        )
    return dims


def concrete_shape(graph: str, tensor: Tensor, dims: dict[str, int]) -> tuple[int, ...]:
    """Return a tensor's shape in numbers.

    Raises:
        BundleError: a dimension of unknown meaning.
    """
    unknown = [dim for dim in tensor.shape if isinstance(dim, str) and dim not in dims]
    if unknown:
        raise BundleError(f"graph {graph!r}: {tensor.name} has a dimension {unknown[0]!r}")
    return tuple(dims[dim] if isinstance(dim, str) else dim for dim in tensor.shape)
