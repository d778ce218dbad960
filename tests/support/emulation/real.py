"""Plans of a bundle's graphs made by the real TensorRT-RTX or TensorRT."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tgate_export.bundle.integrity import open_bundle
from tgate_export.bundle.plans import Library
from tgate_export.common.progress import Progress
from tgate_export.compile.compile import compile_plans, prepare
from tgate_export.compile.request import PlanRequest

LIBRARIES: tuple[Library, ...] = ("tensorrt-rtx", "tensorrt")


def installed_library() -> Library | None:
    """Return what is installed here; TensorRT-RTX if both are."""
    for library in LIBRARIES:
        if importlib.util.find_spec(library.replace("-", "_")):
            return library
    return None


def write_real(
    path: Path, library: Library, sm: Sequence[str] = (), graphs: Sequence[str] = ()
) -> None:
    """Compile all graphs, or some, for a batch of one: for GPUs, or the one that is there."""
    bundle = open_bundle(path)
    if graphs:
        chosen = {graph: bundle.manifest.graph(graph) for graph in graphs}
        bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"graphs": chosen}))
    request = PlanRequest(library, tuple(sm))
    compile_plans(bundle, prepare(request, bundle.manifest.batch), Progress())
