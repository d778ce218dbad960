"""What the host writes for an image, by the origins of the graphs' inputs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.manifest_graphs import Input
from tgate_export.bundle.origins import FromFormula, FromImage, FromParameter
from tgate_export.runtime.buffers import buffer_of
from tgate_export.runtime.formulas import formula_row
from tgate_export.runtime.guidance import effective_scale
from tgate_export.runtime.request import Request


def host_inputs(manifest: Manifest, graphs: Iterable[str]) -> dict[str, Input]:
    """Return the inputs of graphs that a request's own values fill, by their buffers."""
    return {
        buffer_of(tensor): tensor
        for name in graphs
        for tensor in manifest.graph(name).inputs
        if isinstance(tensor.origin, FromParameter | FromFormula | FromImage)
    }


def host_row(manifest: Manifest, request: Request, index: int, tensor: Input) -> np.ndarray:
    """Return what one of a request's images puts into such an input.

    Args:
        manifest: the bundle's.
        request: the checked call.
        index: which of its images.
        tensor: one of `host_inputs`.
    """
    origin = tensor.origin
    if isinstance(origin, FromImage):
        low, high = (np.float32(end) for end in origin.range)
        pixels = request.pictures[origin.image][index]
        return pixels if (low, high) == (0, 1) else pixels * (high - low) + low
    values = {name: each[index] for name, each in request.values.items()}
    if "guidance_scale" in values:
        values["guidance_scale"] = effective_scale(manifest, values["guidance_scale"])
    if isinstance(origin, FromParameter):
        return np.array(values[origin.parameter], dtype=tensor.dtype)
    assert isinstance(origin, FromFormula)
    return formula_row(
        origin.formula, values,
        height=request.height, width=request.width, frames=manifest.latents.frames,
    )  # fmt: skip
