"""Compile and run diffusion models with temporally gated attention (T-GATE).

`build_bundle` turns a diffusers pipeline into a bundle, `fuse_loras` a bundle into one with LoRA
files in its weights; `TGatePipeline` generates with one, without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tgate_export.common import telemetry

if TYPE_CHECKING:
    from tgate_export.build.build import build_bundle
    from tgate_export.build.fuse_loras import fuse_loras
    from tgate_export.runtime.pipeline import TGatePipeline

__version__ = "0.1.0"
__all__ = ["TGatePipeline", "build_bundle", "fuse_loras"]

telemetry.turn_off()  # before any part of this package imports an engine

_LAZY = {
    "TGatePipeline": "tgate_export.runtime.pipeline",
    "build_bundle": "tgate_export.build.build",
    "fuse_loras": "tgate_export.build.fuse_loras",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
