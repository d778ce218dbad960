"""Writes plan sets: real records, with contents that a test gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.emulation.tensorrt import VERSIONS
from tests.support.step_plans import tgate_plan
from tgate_export.bundle.hashing import hash_file
from tgate_export.bundle.integrity import read_manifest
from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.plans import (
    PLANS_FOLDER,
    RECORD_NAME,
    Library,
    Plan,
    PlanKey,
    PlanRecord,
    PlanSettings,
    ShapeRange,
)
from tgate_export.runtime.backends.plan_choice import input_shapes
from tgate_export.runtime.plan import RunShape, plan_run

Ranges = dict[str, dict[str, ShapeRange]]
Triple = tuple[int, int, int]


def shape_ranges(manifest: Manifest, batch: Triple, size: Triple | None = None) -> Ranges:
    """Shapes of every input for these batches, and square images of these sizes."""
    step_plan = tgate_plan(2, 1)
    default = (manifest.size.height.opt,) * 3
    low, opt, high = (
        input_shapes(plan_run(manifest, RunShape(count, side, side, step_plan)))
        for count, side in zip(batch, size or default, strict=True)
    )
    return {
        graph: {
            name: ShapeRange(min=shape, opt=opt[graph][name], max=high[graph][name])
            for name, shape in inputs.items()
        }
        for graph, inputs in low.items()
    }


def write_plan_set(
    bundle: Path,
    name: str,
    library: Library,
    version: str,
    compute_capabilities: Sequence[str],
    shapes: Ranges,
    contents: Mapping[str, bytes],
    settings: PlanSettings | None = None,
) -> Path:
    """Write plans and their record."""
    manifest = read_manifest(bundle)
    folder = bundle / PLANS_FOLDER / name
    folder.mkdir(parents=True)
    plans = {}
    for graph, content in contents.items():
        (folder / f"{graph}.plan").write_bytes(content)
        spec = manifest.graph(graph)
        key = PlanKey(
            graph=graph,
            graph_sha256=manifest.files[spec.file].sha256,
            weights_sha256=manifest.files[spec.weights].sha256 if spec.weights else None,
            library=library,
            version=version,
            compute_capabilities=tuple(compute_capabilities),
            precision=manifest.precision,
            shapes=shapes[graph],
            settings=settings or PlanSettings(),
            code_sha256=hashlib.sha256(b"test").hexdigest(),
        )
        plans[graph] = Plan(
            file=f"{graph}.plan",
            content=hash_file(folder / f"{graph}.plan"),
            key=key,
            key_sha256=key.digest(),
        )
    record = PlanRecord(schema_version=1, plans=plans)
    (folder / RECORD_NAME).write_text(record.model_dump_json())
    return folder


def write_emulated(
    bundle: Path,
    library: Library = "tensorrt-rtx",
    *,
    name: str = "emulated",
    version: str | None = None,
    compute_capabilities: Sequence[str] = ("8.9",),
    batch: Triple = (1, 1, 8),
    size: Triple | None = None,
    settings: PlanSettings | None = None,
    alter: Mapping[str, Mapping[str, tuple[str | None, str | None]]] | None = None,
    graphs: Sequence[str] | None = None,
) -> Path:
    """Write a set of emulated plans; see `emulation/tensorrt.py`.

    Args:
        alter: what engines declare otherwise: graph -> tensor -> (mode, dtype).
        graphs: those to compile, if not all.
    """
    manifest = read_manifest(bundle)
    settings = settings or PlanSettings()
    shapes = shape_ranges(manifest, batch, size)
    contents = {}
    for graph in graphs or shapes:
        weights = 4 * manifest.graph(graph).parameters
        plan: dict[str, Any] = {
            "graph": graph,
            "onnx": str(bundle / manifest.graph(graph).file),
            "shapes": {n: (r.min, r.opt, r.max) for n, r in shapes[graph].items()},
            "weights": weights,
            "streamable": weights if settings.weight_streaming else 0,
            "stripped": settings.weights_stripped,
            "alter": (alter or {}).get(graph, {}),
        }
        contents[graph] = json.dumps(plan).encode()
    version = version or VERSIONS[library.replace("-", "_")]
    return write_plan_set(
        bundle, name, library, version, compute_capabilities, shapes, contents, settings
    )
