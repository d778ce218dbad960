"""Names of the buffers that fill the inputs of graphs, by their origins."""

from __future__ import annotations

from tgate_export.bundle.manifest_graphs import Input
from tgate_export.bundle.origins import (
    FromCache,
    FromFormula,
    FromGraph,
    FromImage,
    FromMask,
    FromParameter,
    FromTokens,
)

# Buffers of the negative prompt have the names of the prompt's after this.
NEGATIVE = "negative_"


def buffer_of(tensor: Input, *, negative: bool = False) -> str:
    """Return the buffer that fills an input: equal origins share one.

    Args:
        tensor: the input.
        negative: its graph encodes the negative prompt.
    """
    origin, prefix = tensor.origin, NEGATIVE if negative else ""
    if isinstance(origin, FromParameter):
        return f"{prefix if origin.of else ''}parameter/{origin.parameter}"
    if isinstance(origin, FromFormula):
        return f"formula/{origin.formula}"
    if isinstance(origin, FromImage):
        low, high = origin.range
        return f"image/{origin.image}/{low}/{high}/{origin.noise or ''}"
    if isinstance(origin, FromTokens):
        return f"{prefix}tokens/{origin.tokens}"
    if isinstance(origin, FromMask):
        return f"{prefix}mask/{origin.mask}"
    if isinstance(origin, FromGraph):
        return f"{NEGATIVE if origin.of == 'negative_prompt' else ''}{origin.output}"
    if isinstance(origin, FromCache):
        return origin.cache
    return tensor.name  # of the loop: its slots are the run's
