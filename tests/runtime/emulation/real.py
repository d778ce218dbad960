"""Plans of a bundle's graphs made by the real TensorRT-RTX or TensorRT."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tgate_export.bundle.integrity import open_bundle
from tgate_export.bundle.plans import Flavour
from tgate_export.compile.compile import compile_plans, prepare
from tgate_export.compile.request import PlanRequest
from tgate_export.export.progress import Progress

FLAVOURS: tuple[Flavour, ...] = ("tensorrt-rtx", "tensorrt")


def installed_flavour() -> Flavour | None:
    """Return what is installed here; TensorRT-RTX if both are."""
    for flavour in FLAVOURS:
        if importlib.util.find_spec(flavour.replace("-", "_")):
            return flavour
    return None


def write_real(
    path: Path, flavour: Flavour, sm: Sequence[str] = (), graphs: Sequence[str] = ()
) -> None:
    """Compile all graphs, or some, for a batch of one: for GPUs, or the one that is there."""
    bundle = open_bundle(path)
    if graphs:
        chosen = {graph: bundle.manifest.graph(graph) for graph in graphs}
        bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"graphs": chosen}))
    request = PlanRequest(flavour, tuple(sm))
    compile_plans(bundle, prepare(request, bundle.manifest.batch), Progress())
