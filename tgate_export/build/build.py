"""`build_bundle`: diffusers pipeline -> ONNX graphs -> verified bundle -> plans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tgate_export.build.assemble import assemble
from tgate_export.build.disk import readable_disk_errors
from tgate_export.build.existing import up_to_date
from tgate_export.build.options import (
    BuildOptions,
    build_key,
    check_options,
    default_folder,
)
from tgate_export.build.request import BuildRequest
from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.manifest import Manifest, Range
from tgate_export.bundle.manifest_graphs import Precision
from tgate_export.bundle.plans import keep_plans
from tgate_export.bundle.store import check_replaceable, remove_leftovers, replace_bundle
from tgate_export.common.progress import Progress
from tgate_export.export.content_cache import user_content_cache
from tgate_export.families.embeddings import GivenEmbedding
from tgate_export.families.loras import GivenLora, notes
from tgate_export.families.sampling import sampling_notes
from tgate_export.families.source import Weights, resolve_source

if TYPE_CHECKING:
    from tgate_export.compile.compile import PlanResult, ReadyRequest
    from tgate_export.compile.request import PlanRequest
    from tgate_export.verify.differences import Difference


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
    config: str | None = None,
    vae: str | None = None,
    loras: Sequence[GivenLora] = (),
    embeddings: Sequence[GivenEmbedding] = (),
    precision: Precision = "fp32",
    size: tuple[Range, Range] | None = None,
    batch: Range | None = None,
    gate_step: int | None = None,
    sp_interval: int = 1,
    fi_interval: int = 1,
    warm_up: int = 0,
    cache_blend: float | None = None,
    guidance_carry: float | None = None,
    guidance: Literal["classifier-free", "none"] | None = None,
    image_to_image: bool = False,
    vae_tile: int | None = None,
    samplers: str | None = None,
    prompt_chunks: int = 1,
    prompt_syntax: str | None = None,
    plans: Sequence[PlanRequest] = (),
    out: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> BuildResult:
    """Compile a diffusers pipeline into a bundle, verify it, and put it in place atomically.

    Graphs that were exported and compared with PyTorch before come out of the user's cache.

    Args:
        model: a name of `NAMED_MODELS`, a diffusers folder, a checkpoint in one safetensors file,
            or a Hugging Face id, which may end with `@` and a revision.
        weights: "pretrained", or "random" for the exact architecture with weights from a seed.
        config: of a file, a diffusers folder or a name whose configurations are taken as they are,
            in place of those that the file's keys and shapes ask for; the folder's weights stand in
            for components that the file lacks.
        vae: a file or a folder with a VAE to build in place of the model's own: an AutoencoderKL,
            or an AutoencoderTiny (TAESD), which decodes in a fraction of the time.
        loras: LoRA files, each with the number that its change of the weights is multiplied by, in
            the order in which they are applied; the file's own alpha counts besides.
        embeddings: textual inversion files, each with the token that stands for its vectors in a
            prompt; None for the file's own, or for its name.
        precision: of the weights and the computation; inputs and outputs that matter stay f32.
        size: width and height ranges in pixels; the model's own size when not given.
        batch: images of one call, dynamic unless fixed; when not given 1 to 8, or one video.
        gate_step: the bundle's default gate step; the model's own when not given.
        sp_interval: the bundle's default; above 1, the bundle can reuse self-attention before the
            gate, in any interval.
        fi_interval: the bundle's default; above 1, the bundle can reuse self-attention from the
            gate on, in any interval.
        warm_up: the bundle's default number of steps that never reuse self-attention.
        cache_blend: the bundle's default of how the two passes of guidance make one cache; the
            model's own when not given, which is 0.5, the official method, unless it was measured.
        guidance_carry: the bundle's default of how much guidance gated steps add; the model's own
            when not given, which is 0, the official method, unless it was measured.
        guidance: "none" for a model that was distilled to need none (turbo): one pass a step, no
            negative prompt, no guidance scale. The model's own when not given.
        image_to_image: whether runs can begin with an image: adds the graph `vae_encoder`, and how
            every sampler begins at later steps.
        vae_tile: sides of the tiles in which larger images are decoded (and encoded), in pixels, so
            that their memory is bounded; 0 for whole images. When not given whole up to 1024
            pixels, and tiles of 512 for bundles of larger ones.
        samplers: to compile besides those that every bundle has: "all", or names with commas
            between them (docs/samplers.md). Python and the command line compile others when they
            are first asked for.
        prompt_chunks: how many times the text encoder's tokens a prompt can have, for prompts in
            A1111's syntax; more make cross-attention dearer for all prompts (docs/prompts.md).
            Stable Diffusion and SDXL.
        prompt_syntax: the bundle's default of how prompts are read: "plain" (when not given) or
            "a1111".
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
        source = resolve_source(
            model, weights, config=config, vae=vae, loras=loras, embeddings=embeddings
        )
        source = source.guided_by(guidance).reading(prompt_chunks)
        options = check_options(
            source, precision, size, batch,
            {"gate_step": gate_step, "sp_interval": sp_interval, "fi_interval": fi_interval,
             "warm_up": warm_up, "cache_blend": cache_blend, "guidance_carry": guidance_carry},
            image_to_image=image_to_image, vae_tile=vae_tile, samplers=samplers,
            prompt_syntax=prompt_syntax,
        )  # fmt: skip
        out = out or default_folder(source, options)
        hashes = source.hashes()
        record = source.record(hashes)
        key = build_key(source, hashes, options)
        request = BuildRequest(source, hashes, record, options, key)
        cache = user_content_cache()
        check_replaceable(out, force=force)
        ready = _prepare_plans(plans, options)
        for finding in source.single.findings if source.single else ():
            progress.note(*finding)
        if source.vae:
            progress.note(*source.vae.finding)
        for note in notes(source.loras):
            progress.note(*note)
        steps = source.defaults.num_inference_steps
        if options.gate_step >= steps:
            progress.note(
                f"gate step {options.gate_step} turns gating off in runs of {steps} steps, the "
                f"default: the model's own gate step is {source.defaults.gate_step}"
            )
        existing = None if force else up_to_date(out, key)
    differences: tuple[Difference, ...] = ()
    with readable_disk_errors(out):
        if existing is not None:
            remove_leftovers(out)
            manifest = existing
        else:
            for note in sampling_notes(source):
                progress.note(*note)
            with replace_bundle(out, force=force) as staging:
                manifest, differences = assemble(request, staging, cache, progress)
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
