"""What plans a build was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tgate_export.bundle.manifest import Range
from tgate_export.bundle.plans import Library, PlanSettings

DEFAULT_PLAN_BATCH = Range(min=1, opt=1, max=1)


@dataclass(frozen=True)
class PlanRequest:
    """Plans to compile for every graph of a bundle.

    Attributes:
        library: "tensorrt", for the GPU of this machine, or "tensorrt-rtx".
        compute_capabilities: GPUs, such as "8.9"; the GPU of this machine when empty.
        batch: images in one call; static by default, which is fastest.
        settings: what the compiler is told.
        timing_cache: file of kernel timings to read and extend.
    """

    library: Library
    compute_capabilities: tuple[str, ...] = ()
    batch: Range = DEFAULT_PLAN_BATCH
    settings: PlanSettings = field(default_factory=PlanSettings)
    timing_cache: Path | None = None
