"""`build_bundle`: diffusers pipeline -> ONNX graphs -> verified bundle -> plans."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tgate_export.bundle.hashing import hash_files
from tgate_export.bundle.integrity import (
    Bundle,
    bundle_files,
    check_files,
    read_manifest,
)
from tgate_export.bundle.manifest import (
    DEFAULT_BATCH,
    MANIFEST_NAME,
    Cache,
    Graph,
    HostInput,
    Latents,
    Manifest,
    Precision,
    Range,
    Source,
    Tensor,
    Tokenizer,
)
from tgate_export.bundle.plans import keep_plans
from tgate_export.bundle.store import check_replaceable, remove_leftovers, replace_bundle
from tgate_export.errors import BundleError, TGateError
from tgate_export.export.memory import release_memory
from tgate_export.export.options import (
    BuildOptions,
    build_key,
    check_options,
    default_folder,
    versions,
)
from tgate_export.export.progress import Progress
from tgate_export.families.source import ModelSource, Weights, resolve_source
from tgate_export.schedule import PHASES

if TYPE_CHECKING:
    from tgate_export.compile.compile import PlanResult, ReadyRequest
    from tgate_export.compile.request import PlanRequest
    from tgate_export.export.verify import Difference
    from tgate_export.families.base import TokenizerSpec
    from tgate_export.families.graphs import GraphExport, GraphInput
    from tgate_export.families.loading import Components
    from tgate_export.gating.cross_attention import CacheGroup


@dataclass(frozen=True)
class BuildResult:
    """What `build_bundle` did.

    Attributes:
        path: the bundle.
        up_to_date: the bundle was there already, built from the same things.
        differences: what verification measured; empty when nothing was built.
        manifest: the bundle's manifest.
        plans: a result for each plan request.
    """

    path: Path
    up_to_date: bool
    differences: tuple[Difference, ...]
    manifest: Manifest
    plans: tuple[PlanResult, ...] = ()


def build_bundle(
    model: str,
    *,
    weights: Weights = "pretrained",
    precision: Precision = "fp32",
    size: tuple[Range, Range] | None = None,
    batch: Range = DEFAULT_BATCH,
    gate_step: int | None = None,
    sp_interval: int = 1,
    fi_interval: int = 1,
    warm_up: int = 0,
    guidance: Literal["classifier-free", "none"] | None = None,
    image_to_image: bool = False,
    plans: Sequence[PlanRequest] = (),
    out: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> BuildResult:
    """Compile a diffusers pipeline into a bundle, verify it, and put it in place atomically.

    Args:
        model: a name (`tgate-export models`), a diffusers folder, or a Hugging Face id.
        weights: "pretrained", or "random" for the exact architecture with weights from a seed.
        precision: of the weights and the computation; inputs and outputs that matter stay f32.
        size: width and height ranges in pixels; the model's own size when not given.
        batch: images of one call; dynamic unless fixed.
        gate_step: the bundle's default gate step; the model's own when not given.
        sp_interval: the bundle's default; above 1, the bundle can reuse self-attention before the
            gate, in any interval.
        fi_interval: the same from the gate on.
        warm_up: the bundle's default number of steps that never reuse self-attention.
        guidance: "none" for a model that was distilled to need none (turbo): one pass a step, no
            negative prompt, no guidance scale. The model's own when not given.
        image_to_image: whether runs can begin with an image: adds the graph `vae_encoder`, and how
            every sampler begins at later steps.
        plans: TensorRT or TensorRT-RTX plans to compile from the graphs.
        out: the bundle's folder; when not given `engines/<name>`, or `engines/<name>-<size>` for a
            size that is not the model's own.
        force: build even when the bundle is up to date, and replace foreign files in its folder.
        progress: told of every stage.

    Raises:
        InvalidRequestError: an argument out of range.
        ModelError: a model that cannot be loaded or has nothing to gate.
        VerificationError: a graph that differs from PyTorch, a plan that is not what was asked for.
        TGateError: TensorRT is missing or cannot compile a graph.
        BundleError: `out` holds something else.
    """
    progress = progress or Progress()
    with progress.stage("checking the source"):
        source = resolve_source(model, weights).guided_by(guidance)
        options = check_options(
            source, precision, size, batch, gate_step, sp_interval, fi_interval, warm_up,
            image_to_image,
        )  # fmt: skip
        out = out or default_folder(source, options)
        record = source.record()
        key = build_key(record, options)
        check_replaceable(out, force=force)
        ready = _prepare_plans(plans, options)
        existing = None if force else _up_to_date(out, key)
    differences: tuple[Difference, ...] = ()
    with _readable_disk_errors(out):
        if existing is not None:
            remove_leftovers(out)
            manifest = existing
        else:
            with replace_bundle(out, force=force) as staging:
                manifest, differences = _build(source, record, options, key, staging, progress)
                if not force:
                    keep_plans(out, staging, manifest)
        results = _compile_plans(Bundle(out, manifest), ready, progress, force=force)
    return BuildResult(out, existing is not None, differences, manifest, results)


def _prepare_plans(plans: Sequence[PlanRequest], options: BuildOptions) -> list[ReadyRequest]:
    """Check every request before anything is built."""
    if not plans:
        return []
    from tgate_export.compile.compile import prepare

    return [prepare(request, options.batch) for request in plans]


def _compile_plans(
    bundle: Bundle, ready: Iterable[ReadyRequest], progress: Progress, *, force: bool
) -> tuple[PlanResult, ...]:
    results = []
    for request in ready:
        from tgate_export.compile.compile import compile_plans

        results.append(compile_plans(bundle, request, progress, force=force))
    return tuple(results)


@contextlib.contextmanager
def _readable_disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TGateError(
                f"the disk is full: {out.parent} cannot hold the bundle; free some space"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise TGateError(
                f"cannot write {out}: {error.strerror}; choose another --out"
            ) from error
        raise


def _up_to_date(out: Path, key: str) -> Manifest | None:
    if not (out / MANIFEST_NAME).is_file():
        return None
    try:
        manifest = read_manifest(out)
        if manifest.build_key != key:
            return None
        check_files(Bundle(out, manifest), check_hashes=True)
    except BundleError:  # damaged: build it again
        return None
    return manifest


def _build(
    source: ModelSource,
    record: Source,
    options: BuildOptions,
    key: str,
    staging: Path,
    progress: Progress,
) -> tuple[Manifest, tuple[Difference, ...]]:
    from tgate_export.export.solver_graph import save_solver_graph
    from tgate_export.export.solvers import SolverJobs, solver_graph
    from tgate_export.export.verify import check_graphs, graph_references, require
    from tgate_export.families import geometry
    from tgate_export.families.graphs import denoiser_cache, graph_exports
    from tgate_export.families.loading import load

    downscale = geometry.vae_downscale(source)
    with progress.stage("loading the model"):
        parts = load(source, options.precision)
        _check_space(staging, parts)
        groups = denoiser_cache(source, parts, options.size, options.caches)
    starts = options.image_to_image
    declared = graph_exports(source, parts, options.size, groups, image_to_image=starts)
    with SolverJobs(parts.scheduler_config, staging / "solvers", starts=starts) as jobs:
        graphs = _export_graphs(source, parts, declared, options, staging, progress)
        save_solver_graph(staging / "graphs" / "solver.onnx")
        graphs["solver"] = solver_graph()
        with progress.stage("compiling samplers"):
            solvers = jobs.results(source.defaults.scheduler, progress)
    tokenizers = {
        spec.input: _save_tokenizer(spec, parts.tokenizers[spec.input], staging)
        for spec in source.family.tokenizers(source)
    }
    with progress.stage("hashing"):
        files = dict(hash_files(staging, sorted(bundle_files(staging))))
    manifest = Manifest(
        schema_version=1,
        name=source.name,
        family=source.family.name,
        source=record,
        precision=options.precision,
        build_key=key,
        prediction_type=parts.scheduler_config.get("prediction_type", "epsilon"),
        defaults=source.defaults.model_copy(
            update={
                "gate_step": options.gate_step,
                "sp_interval": options.sp_interval,
                "fi_interval": options.fi_interval,
                "warm_up": options.warm_up,
                # The scale at which classifier-free guidance is the prompt's pass alone.
                **({"guidance_scale": 1.0} if options.guidance == "none" else {}),
            }
        ),
        batch=options.batch,
        size=options.size,
        latents=Latents(
            channels=source.config(source.family.denoiser)["in_channels"], downscale=downscale
        ),
        tokenizers=tokenizers,
        clip_skips=source.family.clip_skips(source),
        guidance=options.guidance,
        absent_negative_prompt="zeros" if source.family.zero_negative(source) else "empty",
        conditioning=_host_inputs(source),
        graphs=graphs,
        cache=_cache(groups),
        solvers=solvers,
        versions=versions(),
        files=files,
    )
    with progress.stage("running PyTorch for reference"):
        references = graph_references(source, parts, manifest, groups, batch=options.batch.opt)
    # Never hold the PyTorch model and an engine at once.
    del parts, declared
    release_memory()
    differences = check_graphs(Bundle(staging, manifest), references, progress)
    require(differences)
    (staging / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest, differences


def _check_space(staging: Path, parts: Components) -> None:
    weights = [weight for module in parts.modules.values() for weight in module.parameters()]
    needed = sum(weight.numel() * weight.element_size() for weight in weights)
    free = shutil.disk_usage(staging).free
    if free < needed * 1.02:
        raise TGateError(
            f"the bundle needs {needed / 1e9:.1f} GB and {staging.parent} has {free / 1e9:.1f} GB "
            "free: free some space, or choose another --out"
        )


def _export_graphs(
    source: ModelSource,
    parts: Components,
    declared: Iterable[GraphExport],
    options: BuildOptions,
    staging: Path,
    progress: Progress,
) -> dict[str, Graph]:
    import onnx_ir

    from tgate_export.export.onnx_export import export_graph
    from tgate_export.export.weights import WeightFiles, count_parameters
    from tgate_export.families.geometry import vae_downscale
    from tgate_export.families.loading import component_precision, float32_layers

    (staging / "graphs").mkdir()
    graphs: dict[str, Graph] = {}
    float32_attention = source.family.conditioning(source).float32_attention
    with WeightFiles(staging / "graphs") as files:
        for graph in declared:
            with progress.stage(f"exporting {graph.name}"):
                precision = component_precision(source, graph.components[0], options.precision)
                model = export_graph(graph, options.batch, options.size, vae_downscale(source))
                shared = "denoiser" if graph.name in PHASES else graph.name
                files[shared].externalize(model)
                onnx_ir.save(model, staging / "graphs" / f"{graph.name}.onnx")
                graphs[graph.name] = Graph(
                    file=f"graphs/{graph.name}.onnx",
                    weights=f"graphs/{shared}.weights",
                    precision=precision,
                    float32_attention=graph.name in PHASES and float32_attention,
                    float32_layers=0
                    if precision == "fp32"
                    else sum(float32_layers(parts[name]) for name in graph.components),
                    parameters=count_parameters(model),
                    inputs=_tensors(graph.inputs),
                    outputs=_tensors(graph.outputs),
                )
                del model
                release_memory()
    return graphs


def _tensors(entries: Iterable[GraphInput]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(name=entry.name, dtype=str(entry.dtype).removeprefix("torch."), shape=entry.shape)  # type: ignore[arg-type]
        for entry in entries
    )


def _cache(groups: Iterable[CacheGroup]) -> tuple[Cache, ...]:
    return tuple(
        Cache(
            tensor=g.name,
            kind=g.kind,
            passes=g.passes,
            downsample=g.downsample,
            width=g.width,
            layers=g.layers,
        )
        for g in groups
    )


def _host_inputs(source: ModelSource) -> dict[str, HostInput]:
    return {
        name: entry.host
        for entry in source.conditioning().conditions
        if entry.host
        for name in entry.full_inputs
    }


def _save_tokenizer(spec: TokenizerSpec, tokenizer: Any, staging: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers.normalizers import Lowercase, Sequence, Strip

    backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
    if spec.lowercase:
        rest = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = Sequence([Lowercase(), Strip(), *rest])
    (staging / spec.component).mkdir()
    # Its own save() hides a full disk behind a bare Exception.
    text = backend.to_str(pretty=True)
    (staging / spec.component / "tokenizer.json").write_text(text, encoding="utf-8")
    return Tokenizer(
        file=f"{spec.component}/tokenizer.json",
        max_length=spec.max_length,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        mask=spec.mask,
    )
