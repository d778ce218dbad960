"""`verify_bundle`: a bundle from anywhere against the model that it was built from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgate_export.build.options import options_of
from tgate_export.build.request import BuildRequest
from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError, ModelError
from tgate_export.common.hints import Argument
from tgate_export.common.memory import release_memory
from tgate_export.common.progress import Progress
from tgate_export.export.content_cache import user_content_cache
from tgate_export.families.geometry import check_size
from tgate_export.families.graphs import denoiser_phases
from tgate_export.families.loading import load
from tgate_export.families.source import ModelSource, Weights, resolve_source
from tgate_export.runtime.backends import select
from tgate_export.runtime.backends.base import BackendOptions, RunPrecision
from tgate_export.verify.differences import Difference
from tgate_export.verify.graphs import check_graphs, graph_references
from tgate_export.verify.reference import trajectories, trajectory_cases
from tgate_export.verify.trajectories import check_trajectories


@dataclass(frozen=True)
class Verification:
    """What `verify_bundle` measured."""

    graphs: tuple[Difference, ...]
    trajectories: tuple[Difference, ...]

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Every comparison."""
        return self.graphs + self.trajectories


def verify_bundle(
    path: Path,
    source: str | None = None,
    progress: Progress | None = None,
    *,
    backend: str | None = None,
    precision: RunPrecision | None = None,
    download: bool = False,
) -> Verification:
    """Check a bundle's hashes, every graph against PyTorch, and runs across the gate.

    Bounds are not enforced here: call `require` on the result's differences.

    Args:
        path: the bundle.
        source: the pipeline's folder, if it is no longer where the manifest says.
        progress: told of every stage.
        backend: what runs graphs and trajectories, a name that `select` takes. By default graphs
            run as they are written, and trajectories on ONNX Runtime's CPU.
        precision: that it computes in; see `BackendOptions`.
        download: whether the model that the bundle names may be fetched from Hugging Face, when it
            is not in the cache. A bundle can name anything.

    Raises:
        BackendError: the backend cannot be used here, or not load a graph.
        BundleError: a damaged bundle.
        ModelError: the source cannot be found, or is not what the bundle was built from.
    """
    progress = progress or Progress()
    with progress.stage("checking hashes"):
        bundle = open_bundle(path)
    found = _source(bundle.manifest, source, download=download)
    choice = (backend, precision) if backend or precision else None
    if check_size(found, bundle.manifest.size) == bundle.manifest.size:
        return _verify(found, bundle, choice, progress, graphs=True)
    from tgate_export.build.assemble import reduced_copy

    manifest = bundle.manifest
    request = BuildRequest(
        found, found.hashes(), manifest.source, options_of(manifest), manifest.build_key
    )
    with (
        tempfile.TemporaryDirectory(prefix="tgate-export-") as folder,
        reduced_copy(
            request, bundle, Path(folder), user_content_cache(), progress, compare_afresh=True
        ) as (copy, differences),
    ):
        # The copy's graphs were compared as they were assembled, on ONNX Runtime.
        verified = _verify(found, copy, choice, progress, graphs=choice is not None)
        return Verification(verified.graphs or differences, verified.trajectories)


def _verify(
    source: ModelSource,
    bundle: Bundle,
    choice: tuple[str | None, RunPrecision | None] | None,
    progress: Progress,
    *,
    graphs: bool,
) -> Verification:
    manifest = bundle.manifest
    chosen = None
    if choice is not None:
        name, precision = choice
        chosen = select(name or "auto", bundle, BackendOptions(precision=precision))
    with progress.stage("loading the source"):
        parts = load(source, manifest.precision)
        options = options_of(manifest)
        phases = denoiser_phases(source, parts, options.size, options.method, options.phases)
    with progress.stage("running trajectories in PyTorch"):
        cases = trajectory_cases(manifest)
        runs = trajectories(source, parts, phases, manifest, cases)
    differences: tuple[Difference, ...] = ()
    if graphs:
        with progress.stage("running PyTorch for reference"):
            batch = max(manifest.batch.min, min(2, manifest.batch.max))
            references = graph_references(source, parts, manifest, phases, batch=batch)
    del parts
    release_memory()
    if graphs:
        differences = check_graphs(bundle, references, progress, chosen)
    with progress.stage("running trajectories in the runtime"):
        return Verification(differences, check_trajectories(bundle, runs, chosen))


def _source(manifest: Manifest, override: str | None, *, download: bool = False) -> ModelSource:
    recorded = manifest.source
    weights: Weights = "random" if recorded.kind == "random" else "pretrained"
    files = {
        "lora": [lora.file for lora in recorded.loras],
        "embedding": [embedding.file for embedding in recorded.embeddings],
    }
    for kind, paths in files.items():
        for path in paths:
            if not Path(path).is_file():
                raise ModelError(
                    f"{kind} {path}, which the bundle was built with, is not there any more"
                )
    given: dict[str, Any] = {
        "config": recorded.config,
        "vae": recorded.vae,
        "loras": recorded.given_loras(),
        "embeddings": recorded.given_embeddings(),
    }
    try:
        if override:  # whoever asks has named it
            source = resolve_source(override, weights, **given)
        else:
            revision = recorded.revision if recorded.kind == "hub" else None
            source = resolve_source(
                recorded.model, weights, revision=revision, download=download, **given
            )
    except InvalidRequestError:
        raise ModelError(
            f"{recorded.model} is not there any more",
            "give the pipeline's folder or file with ",
            Argument("source"),
        ) from None
    record = source.record()
    for lora, known in zip(record.loras, recorded.loras, strict=True):
        if lora.sha256 != known.sha256:
            raise ModelError(f"lora {lora.file} is not the file that the bundle was built with")
    for embedding, built in zip(record.embeddings, recorded.embeddings, strict=True):
        if embedding.sha256 != built.sha256:
            raise ModelError(
                f"embedding {embedding.file} is not the file that the bundle was built with"
            )
    if record.fingerprint != recorded.fingerprint:
        raise ModelError(
            f"{override or recorded.model} is not what the bundle was built from "
            "(its files differ)",
            "give the right one with ",
            Argument("source"),
            ", or build the bundle again",
        )
    source = source.reading(manifest.prompt_chunks)
    return source if manifest.guidance == "embedded" else source.guided_by(manifest.guidance)
