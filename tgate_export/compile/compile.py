"""Every graph of a bundle to a plan set: only what changed is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tgate_export.bundle.hashing import hash_file
from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.manifest import Range
from tgate_export.bundle.plans import (
    PLANS_FOLDER,
    Plan,
    PlanKey,
    PlanSet,
    check_plan_set,
    link_file,
    plan_set_name,
    read_plan_set,
    write_record,
)
from tgate_export.bundle.store import replace_folder
from tgate_export.common.code_hash import code_sha256
from tgate_export.common.errors import BundleError, InvalidRequestError
from tgate_export.common.progress import Progress
from tgate_export.compile.builder import compile_graph
from tgate_export.compile.compiler import Compiler, load_compiler, resolve_targets
from tgate_export.compile.gpu import local_compute_capability
from tgate_export.compile.profiles import graph_shapes
from tgate_export.compile.request import PlanRequest


@dataclass(frozen=True)
class PlanResult:
    """What `compile_plans` did.

    Attributes:
        path: the plan set's folder.
        compiled: graphs that were compiled.
        reused: graphs whose plan was there already.
        bytes: size of all plans.
    """

    path: Path
    compiled: tuple[str, ...]
    reused: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class ReadyRequest:
    """A plan request that was checked against the installed TensorRT and this machine."""

    compiler: Compiler
    request: PlanRequest


def prepare(request: PlanRequest, batch: Range) -> ReadyRequest:
    """Check a request, import TensorRT and settle the target GPUs, before any long work.

    Args:
        request: what was asked for.
        batch: what the bundle's graphs take.

    Raises:
        InvalidRequestError: a GPU or setting that this TensorRT does not know.
        TGateError: TensorRT is missing or there is no GPU where one is needed.
    """
    if request.batch.min not in batch or request.batch.max not in batch:
        raise InvalidRequestError(
            f"plans for a batch of {request.batch} do not fit graphs for {batch}"
        )
    compiler = load_compiler(request.library)
    local, reason = local_compute_capability(request.library)
    targets = resolve_targets(compiler, request.compute_capabilities, local, reason)
    compiler.check_settings(request.settings, gpu=local is not None)
    return ReadyRequest(compiler, replace(request, compute_capabilities=targets))


def compile_plans(
    bundle: Bundle, ready: ReadyRequest, progress: Progress, *, force: bool = False
) -> PlanResult:
    """Compile every graph of a bundle that has no plan of the same key, and store the set.

    The set's folder is replaced when all plans are there: an interrupted build changes nothing.

    Raises:
        VerificationError: a parsed network is not what the manifest describes.
        TGateError: TensorRT cannot compile a graph.
    """
    manifest, request = bundle.manifest, ready.request
    keys = {graph: plan_key(bundle, graph, ready) for graph in manifest.graphs}
    name = plan_set_name(
        request.library,
        ready.compiler.version,
        request.compute_capabilities,
        manifest.precision,
        request.batch,
        manifest.size.width,
        manifest.size.height,
    )
    out = bundle.path / PLANS_FOLDER / name
    known = {} if force else _usable(out, bundle, keys)
    if known.keys() == keys.keys():
        size = sum(plan.content.bytes for plan in known.values())
        return PlanResult(out, (), tuple(known), size)
    with replace_folder(out) as staging:
        plans: dict[str, Plan] = {}
        for graph, key in keys.items():
            target = staging / f"{graph}.plan"
            if graph in known:
                link_file(out / known[graph].file, target)
                plans[graph] = known[graph]
                continue
            with progress.stage(f"compiling {graph}"):
                compile_graph(ready.compiler, bundle, graph, key.shapes, request, target, progress)
                plans[graph] = Plan(
                    file=target.name, content=hash_file(target), key=key, key_sha256=key.digest()
                )
        write_record(staging, plans)
    return PlanResult(
        path=out,
        compiled=tuple(graph for graph in keys if graph not in known),
        reused=tuple(known),
        bytes=sum(plan.content.bytes for plan in plans.values()),
    )


def plan_key(bundle: Bundle, graph: str, ready: ReadyRequest) -> PlanKey:
    """Return the key of the plan that a request makes of a graph."""
    manifest, request = bundle.manifest, ready.request
    entry = manifest.graph(graph)
    return PlanKey(
        graph=graph,
        graph_sha256=manifest.files[entry.file].sha256,
        weights_sha256=manifest.files[entry.weights].sha256 if entry.weights else None,
        library=request.library,
        version=ready.compiler.version,
        compute_capabilities=request.compute_capabilities,
        precision=entry.precision,
        shapes=graph_shapes(manifest, graph, request.batch),
        settings=request.settings,
        code_sha256=code_sha256("compile.builder"),
    )


def _usable(out: Path, bundle: Bundle, keys: Mapping[str, PlanKey]) -> dict[str, Plan]:
    """Return the plans in a set's folder that need not be compiled again."""
    if not out.is_dir():
        return {}
    try:
        found = read_plan_set(out)
        plans = {
            graph: plan
            for graph, plan in found.plans.items()
            if graph in keys and plan.key == keys[graph]
        }
        check_plan_set(PlanSet(out, found.plans), bundle.manifest, check_hashes=True)
    except BundleError:  # damaged: compile it again
        return {}
    return plans
