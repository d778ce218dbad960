"""PyTorch's operators that torch's exporter translates wrongly, or takes apart before it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


def _squeeze(self: Any, dim: int) -> Any:
    """Translate `squeeze(dim)`, which does nothing where the dimension is not 1.

    The exporter's own writes a Squeeze all the same, which no runtime loads.
    """
    from onnxscript import opset18 as op

    if len(self.shape) == 0 or self.shape[dim] != 1:
        return op.Identity(self)
    return op.Squeeze(self, [dim])


def _to_dtype(self: Any, dtype: int, *_: Any, **__: Any) -> Any:
    """Translate `to(dtype)`; how a copy lies in memory means nothing in a graph."""
    from onnxscript import opset18 as op

    return op.Identity(self) if self.dtype == dtype else op.Cast(self, to=dtype)


def _to_device(self: Any, _device: Any, dtype: int, *_: Any, **__: Any) -> Any:
    """Translate `to(device, dtype)`; a graph has one device."""
    return _to_dtype(self, dtype)


def _to_layout(self: Any, *, dtype: int | None = None, **_: Any) -> Any:
    """Translate `to(dtype=..., layout=..., device=...)`, of which only the type may differ."""
    return _to_dtype(self, self.dtype if dtype is None else dtype)


def _square(self: Any) -> Any:
    from onnxscript import opset18 as op

    return op.Mul(self, self)


# Where no more is asked for, as by most denoisers, `quick_export` takes the short way.
TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.squeeze.dim: _squeeze,
    torch.ops.aten.to.dtype: _to_dtype,
    torch.ops.aten.to.device: _to_device,
    torch.ops.aten.to.dtype_layout: _to_layout,
    torch.ops.aten.square.default: _square,
}
