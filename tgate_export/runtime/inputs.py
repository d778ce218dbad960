"""What the host writes for an image, by the origins of the graphs' inputs."""

from __future__ import annotations

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.origins import FromFormula, FromImage, FromParameter
from tgate_export.runtime.buffers import buffer_of
from tgate_export.runtime.formulas import formula_row
from tgate_export.runtime.guidance import effective_scale
from tgate_export.runtime.request import Request


def host_rows(manifest: Manifest, request: Request, index: int) -> dict[str, np.ndarray]:
    """Return what one of a request's images puts into the denoiser's inputs, by buffer.

    Args:
        manifest: the bundle's.
        request: the checked call.
        index: which of its images.
    """
    values = {name: each[index] for name, each in request.values.items()}
    if "guidance_scale" in values:
        values["guidance_scale"] = effective_scale(manifest, values["guidance_scale"])
    rows: dict[str, np.ndarray] = {}
    for phase in manifest.phases:
        for tensor in manifest.graph(phase).inputs:
            if (buffer := buffer_of(tensor)) in rows:
                continue
            origin = tensor.origin
            if isinstance(origin, FromParameter):
                rows[buffer] = np.array(values[origin.parameter], dtype=tensor.dtype)
            elif isinstance(origin, FromFormula):
                rows[buffer] = formula_row(
                    origin.formula, values,
                    height=request.height, width=request.width, frames=manifest.latents.frames,
                )  # fmt: skip
            elif isinstance(origin, FromImage):
                rows[buffer] = _pixels(request.pictures[origin.image][index], *origin.range)
    return rows


def _pixels(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map a picture in [0, 1] to another range."""
    if (low, high) == (0, 1):
        return picture
    return picture * np.float32(high - low) + np.float32(low)
