"""How far a tensor is from PyTorch's, and how far it may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tgate_export.bundle.manifest_graphs import Precision
from tgate_export.common.errors import VerificationError
from tgate_export.common.hints import Argument
from tgate_export.runtime.backends.base import Backend

Computed = Literal["fp32", "fp16", "bf16"]

# Largest difference allowed, relative to the largest reference value. PyTorch computes in fp32 in
# any case; fp16 rounds every activation to 11 bits (5e-4), over the depth of a UNet.
# bf16 rounds to 8 bits (4e-3): over 24 random inputs of `shapes`, OpenVINO's graphs were up to
# 2.2e-2 away. A sharp softmax makes more of it for one cache, which was up to 9.1e-2 away; under
# PyTorch's own bf16 autocast it was up to 8.8e-2.
GRAPH_BOUNDS: Mapping[Computed, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
CACHE_BOUND_BF16 = 1e-1
# A quarter of a grey level of 255. A decoder's error in fp32 grows with the picture, because ONNX
# Runtime normalizes groups of up to 4 M values, whose sums are of fp32. With random weights SDXL's
# is 2.4e-5 from fp64 at 512x512, where PyTorch's is 4.7e-6 from it, and at 1024x1024 2.3e-4 from
# PyTorch's.
IMAGE_BOUND = 1e-3
# In bf16, 48 pictures of `shapes` were up to 4.9e-2 away with DDIM, Euler and DPM-Solver++, and
# with PNDM after a gate. Without one, PNDM multiplies what guidance has multiplied: 23 % of them
# were more than 2e-1 away, one 9.5e-1 (21 % and 6.4e-1 under PyTorch's bf16 autocast), though
# 93.8 % of 128 show what their prompts say, and 94.5 % in fp32. Its bound only tells a picture from
# another one.
TRAJECTORY_BOUNDS: Mapping[Computed, float] = {"fp32": 1e-3, "fp16": 1e-1, "bf16": 2e-1}
PNDM_BOUND_BF16 = 1.0


@dataclass(frozen=True)
class Difference:
    """One tensor compared with PyTorch.

    Attributes:
        graph: graph, or what was run ("ddim, gate 10 of 25").
        tensor: the tensor's name.
        max_abs: largest absolute difference.
        relative: `max_abs` over the largest absolute reference value, of two predictions' delta
            over that of the prediction.
        bound: largest `relative` allowed.
    """

    graph: str
    tensor: str
    max_abs: float
    relative: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the bound holds; not when a value is not finite."""
        return bool(np.isfinite(self.relative) and self.relative <= self.bound)


def compare(
    graph: str,
    tensor: str,
    found: np.ndarray,
    expected: np.ndarray,
    bound: float,
    scale: float | None = None,
) -> Difference:
    """Measure how far `found` is from `expected`.

    A shape that differs never holds, nor does a value that is not finite: those differences are
    infinite and NaN.

    Args:
        graph: what gave it.
        tensor: the tensor's name.
        found: by the bundle.
        expected: by PyTorch.
        bound: largest relative difference allowed.
        scale: what the difference is relative to; the largest value expected when not given.
    """
    if found.shape != expected.shape:
        return Difference(graph, tensor, float("inf"), float("inf"), bound)
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return Difference(graph, tensor, float("nan"), float("nan"), bound)
    reference = expected.astype(np.float64)
    max_abs = float(np.abs(found.astype(np.float64) - reference).max())
    scale = float(np.abs(reference).max()) if scale is None else scale
    return Difference(graph, tensor, max_abs, max_abs / scale if scale else max_abs, bound)


def require(differences: Iterable[Difference]) -> None:
    """Raise for the first bound that is broken.

    Raises:
        VerificationError: names graph and tensor, and says by how much.
    """
    for difference in differences:
        if np.isnan(difference.relative):
            raise VerificationError(
                f"{difference.graph}: {difference.tensor} holds values that are not finite",
                "where fp16 overflows, build with ",
                Argument("precision", "fp32"),
            )
        if not difference.holds:
            raise VerificationError(
                f"{difference.graph}: {difference.tensor} differs from PyTorch by "
                f"{difference.relative:.1e} (relative), allowed is {difference.bound:.0e}"
            )


def graph_bound(tensor: str, computed: Computed) -> float:
    """Return the largest relative difference allowed of a graph's output."""
    bound = GRAPH_BOUNDS[computed]
    if computed == "bf16" and tensor.startswith(("cross_cache_", "self_cache_")):
        return CACHE_BOUND_BF16
    return max(bound, IMAGE_BOUND) if tensor == "images" else bound


def computed_in(backend: Backend | None, stored: Precision) -> Computed:
    """Return the precision that a backend computes graphs of a stored precision in."""
    return stored if backend is None or backend.precision is None else backend.precision
