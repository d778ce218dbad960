"""Diffusers pipeline -> a folder of graphs, samplers and tokenizers, proven against PyTorch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgate_export.build.options import BuildOptions, versions
from tgate_export.bundle.hashing import hash_files
from tgate_export.bundle.integrity import Bundle, bundle_files
from tgate_export.bundle.manifest import (
    MANIFEST_NAME,
    Cache,
    Graph,
    HostInput,
    Manifest,
    Source,
    Tensor,
    Tokenizer,
)
from tgate_export.bundle.tokenizer_file import check_tokenizer
from tgate_export.common.errors import ModelError, TGateError
from tgate_export.common.hints import Argument
from tgate_export.common.memory import release_memory
from tgate_export.common.progress import Progress
from tgate_export.families.source import ModelSource
from tgate_export.steps.step_plan import PHASES

if TYPE_CHECKING:
    from tgate_export.families.base import TokenizerSpec
    from tgate_export.families.graphs import GraphExport, GraphInput
    from tgate_export.families.loading import Components
    from tgate_export.methods.cross_attention import CacheGroup
    from tgate_export.verify.differences import Difference


def assemble(
    source: ModelSource,
    record: Source,
    options: BuildOptions,
    key: str,
    staging: Path,
    progress: Progress,
) -> tuple[Manifest, tuple[Difference, ...]]:
    """Write a bundle into an empty folder, and prove it.

    Args:
        source: the pipeline.
        record: what the manifest says of it.
        options: the build's settings.
        key: hash of everything that the bundle depends on.
        staging: the folder.
        progress: told of every stage.

    Raises:
        ModelError: a model that cannot be loaded or has nothing to gate.
        VerificationError: a graph that differs from PyTorch.
        TGateError: the disk has too little space.
    """
    from tgate_export.families import geometry
    from tgate_export.families.graphs import denoiser_cache, graph_exports
    from tgate_export.families.loading import load
    from tgate_export.samplers.compile_all import SamplerJobs, choose_default, sampler_graph
    from tgate_export.samplers.graph import save_sampler_graph
    from tgate_export.verify.differences import require
    from tgate_export.verify.graphs import check_graphs, graph_references

    with progress.stage("loading the model"):
        parts = load(source, options.precision)
        _check_space(staging, parts)
        groups = denoiser_cache(source, parts, options.size, options.caches)
    starts = options.image_to_image
    declared = graph_exports(source, parts, options.size, groups, image_to_image=starts)
    with SamplerJobs(
        parts.scheduler_config, staging / "samplers", source.samplers, starts=starts
    ) as jobs:
        graphs = _export_graphs(source, parts, declared, options, staging, progress)
        save_sampler_graph(staging / "graphs" / "sampler.onnx")
        graphs["sampler"] = sampler_graph()
        with progress.stage("compiling samplers"):
            samplers = jobs.results(progress)
    sampler = choose_default(source.defaults.scheduler, samplers, progress)
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
                "scheduler": sampler,
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
        latents=geometry.latents(source),
        tokenizers=tokenizers,
        clip_skips=source.family.clip_skips(source),
        guidance=options.guidance,
        absent_negative_prompt="zeros" if source.family.zero_negative(source) else "empty",
        conditioning=_host_inputs(source),
        graphs=graphs,
        cache=_cache(groups),
        samplers=samplers,
        versions=versions(),
        files=files,
    )
    bundle = Bundle(staging, manifest)
    small = geometry.check_size(source, options.size)
    if small == options.size:
        with progress.stage("running PyTorch for reference"):
            references = graph_references(source, parts, manifest, groups, batch=options.batch.opt)
        # Never hold the PyTorch model and an engine at once.
        del parts, declared
        release_memory()
        differences = check_graphs(bundle, references, progress)
        require(differences)
    else:
        # It scales the image by kernels that depend on the size, and is small enough.
        encoder = manifest.prompt_encoder
        with progress.stage("running PyTorch for reference"):
            references = graph_references(
                source, parts, manifest, groups, batch=options.batch.opt, only=encoder
            )
        del parts, declared
        release_memory()
        differences = check_graphs(bundle, references, progress)
        require(differences)
        with reduced_copy(source, bundle, options, staging, progress) as (_, others):
            differences += tuple(other for other in others if other.graph != encoder)
    (staging / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest, differences


@contextmanager
def reduced_copy(
    source: ModelSource, bundle: Bundle, options: BuildOptions, folder: Path, progress: Progress
) -> Iterator[tuple[Bundle, tuple[Difference, ...]]]:
    """Assemble a bundle's copy at a size that a CPU can run, and compare their graphs.

    Gives the copy, which is removed at the end, and how far it is from PyTorch.

    Args:
        source: the pipeline.
        bundle: the bundle.
        options: the bundle's settings.
        folder: where there is space for the copy.
        progress: told of every stage.

    Raises:
        VerificationError: as `assemble`, or graphs that differ in more than sizes.
    """
    from tgate_export.families import geometry
    from tgate_export.verify.structure import require_same_graphs

    size = geometry.check_size(source, options.size)
    with tempfile.TemporaryDirectory(dir=folder, prefix="copy-") as copy_folder:
        progress.note(f"comparing with PyTorch at {size.width}x{size.height}, on a copy")
        record, key = bundle.manifest.source, bundle.manifest.build_key
        path = Path(copy_folder)
        manifest, differences = assemble(
            source, record, replace(options, size=size), key, path, progress
        )
        copy = Bundle(path, manifest)
        with progress.stage("comparing graphs with the copy's"):
            require_same_graphs(bundle, copy)
        yield copy, differences


def _check_space(staging: Path, parts: Components) -> None:
    weights = [weight for module in parts.modules.values() for weight in module.parameters()]
    needed = sum(weight.numel() * weight.element_size() for weight in weights)
    free = shutil.disk_usage(staging).free
    if free < needed * 1.02:
        raise TGateError(
            f"the bundle needs {needed / 1e9:.1f} GB and {staging.parent} has {free / 1e9:.1f} GB "
            "free",
            "free some space, or choose another ",
            Argument("out"),
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
    downscale = vae_downscale(source)
    float32_attention = source.family.conditioning(source).float32_attention
    with WeightFiles(staging / "graphs") as files:
        for graph in declared:
            with progress.stage(f"exporting {graph.name}"):
                precision = component_precision(source, graph.components[0], options.precision)
                model = export_graph(graph, options.batch, options.size, downscale)
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
    try:
        check_tokenizer(text)
    except ValueError as error:
        raise ModelError(
            f"the tokenizer in {spec.component} is none that can be run: {error}"
        ) from None
    (staging / spec.component / "tokenizer.json").write_text(text, encoding="utf-8")
    return Tokenizer(
        file=f"{spec.component}/tokenizer.json",
        max_length=spec.max_length,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        mask=spec.mask,
    )
