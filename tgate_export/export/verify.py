"""Prove a bundle against PyTorch: every graph, and the whole trajectory across the gate."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.bundle.manifest import Manifest, Precision
from tgate_export.errors import InvalidRequestError, ModelError, VerificationError
from tgate_export.export.memory import release_memory
from tgate_export.export.options import options_of
from tgate_export.export.progress import Progress
from tgate_export.export.reference import (
    Trajectory,
    TrajectoryCase,
    trajectories,
    trajectory_cases,
)
from tgate_export.export.run_graph import Arrays, run_file, run_on
from tgate_export.families.geometry import check_size
from tgate_export.families.graphs import GraphInput, denoiser_cache, graph_exports
from tgate_export.families.loading import Components, computing_in_fp32, convert, load
from tgate_export.families.source import ModelSource, Weights, resolve_source
from tgate_export.gating.cross_attention import CacheGroup
from tgate_export.runtime.backends import select
from tgate_export.runtime.backends.base import Backend, BackendOptions, RunPrecision
from tgate_export.runtime.backends.onnx_check import read_graph
from tgate_export.runtime.conditioning import ImageSize, host_input
from tgate_export.runtime.plan import NEGATIVE

Computed = Literal["fp32", "fp16", "bf16"]

# Largest difference allowed, relative to the largest reference value. PyTorch computes in fp32 in
# any case; fp16 rounds every activation to 11 bits (5e-4), over the depth of a UNet.
# bf16 rounds to 8 bits (4e-3): over 24 random inputs of `shapes`, OpenVINO's graphs were up to
# 2.2e-2 away. A sharp softmax makes more of it for one cache, which was up to 9.1e-2 away; under
# PyTorch's own bf16 autocast it was up to 8.8e-2.
GRAPH_BOUNDS: Mapping[Computed, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
CACHE_BOUND_BF16 = 1e-1
# A quarter of a grey level of 255. A decoder's error in fp32 grows with the picture, because ONNX
# Runtime normalizes groups of up to 4 M values, whose sums are of fp32. With random weights SDXL's
# is 2.4e-5 from fp64 at 512x512, where PyTorch's is 4.7e-6 from it, and at 1024x1024 2.3e-4 from
# PyTorch's.
IMAGE_BOUND = 1e-3
# In bf16, 48 pictures of `shapes` were up to 4.9e-2 away with DDIM, Euler and DPM-Solver++, and
# with PNDM after a gate. Without one, PNDM multiplies what guidance has multiplied: 23 % of them
# were more than 2e-1 away, one 9.5e-1 (21 % and 6.4e-1 under PyTorch's bf16 autocast), though
# 93.8 % of 128 show what their prompts say, and 94.5 % in fp32. Its bound only tells a picture from
# another one.
TRAJECTORY_BOUNDS: Mapping[Computed, float] = {"fp32": 1e-3, "fp16": 1e-1, "bf16": 2e-1}
PNDM_BOUND_BF16 = 1.0
SEED = 0


@dataclass(frozen=True)
class Difference:
    """One tensor compared with PyTorch.

    Attributes:
        graph: graph, or what was run ("ddim, gate 10 of 25").
        tensor: the tensor's name.
        max_abs: largest absolute difference.
        relative: `max_abs` over the largest absolute reference value.
        bound: largest `relative` allowed.
    """

    graph: str
    tensor: str
    max_abs: float
    relative: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the bound holds; not when a value is not finite."""
        return bool(np.isfinite(self.relative) and self.relative <= self.bound)


@dataclass(frozen=True)
class Reference:
    """A graph's inputs, and what PyTorch made of them in fp32."""

    inputs: Arrays
    outputs: Arrays


def compare(
    graph: str, tensor: str, found: np.ndarray, expected: np.ndarray, bound: float
) -> Difference:
    """Measure how far `found` is from `expected`.

    A shape that differs never holds, nor does a value that is not finite: those differences are
    infinite and NaN.
    """
    if found.shape != expected.shape:
        return Difference(graph, tensor, float("inf"), float("inf"), bound)
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return Difference(graph, tensor, float("nan"), float("nan"), bound)
    reference = expected.astype(np.float64)
    max_abs = float(np.abs(found.astype(np.float64) - reference).max())
    scale = float(np.abs(reference).max())
    return Difference(graph, tensor, max_abs, max_abs / scale if scale else max_abs, bound)


def require(differences: Iterable[Difference]) -> None:
    """Raise for the first bound that is broken.

    Raises:
        VerificationError: names graph and tensor, and says by how much.
    """
    for difference in differences:
        if np.isnan(difference.relative):
            raise VerificationError(
                f"{difference.graph}: {difference.tensor} holds values that are not finite: "
                "where fp16 overflows, build with --precision fp32"
            )
        if not difference.holds:
            raise VerificationError(
                f"{difference.graph}: {difference.tensor} differs from PyTorch by "
                f"{difference.relative:.1e} (relative), allowed is {difference.bound:.0e}"
            )


@torch.no_grad()
def graph_references(
    source: ModelSource,
    parts: Components,
    manifest: Manifest,
    groups: tuple[CacheGroup, ...],
    *,
    batch: int,
    only: str | None = None,
) -> dict[str, Reference]:
    """Run every graph's PyTorch module in fp32 on inputs like real ones.

    Leaves `parts` without weights: each component is freed after its last graph. Weights are
    converted to fp32 layer by layer. The gated phase gets the caches that the full phase wrote.

    Args:
        source: where the pipeline came from.
        parts: the loaded pipeline.
        manifest: the bundle's manifest: dtypes and sizes.
        groups: how caches are stacked.
        batch: samples in each input.
        only: run this graph alone.
    """
    known = _random_inputs(source, manifest, batch)
    references = {}
    image_to_image = "vae_encoder" in manifest.graphs
    graphs = graph_exports(source, parts, manifest.size, groups, image_to_image=image_to_image)
    encoder = manifest.prompt_encoder
    for index, graph in enumerate(graphs):
        if only not in (None, graph.name):
            continue
        if graph.name in ("image_encoder", "vae_encoder", "vae_decoder"):
            # They read the types of their own weights, see `computing_in_fp32`.
            for name in graph.components:
                convert(parts[name], torch.float32)
        module = graph.module().eval()
        # Round to the graph's own dtype first, so that only the computation differs.
        stored = {tensor.name: tensor.dtype for tensor in manifest.graph(graph.name).inputs}
        inputs = {name: known[name].astype(dtype) for name, dtype in stored.items()}
        with computing_in_fp32(module):
            named = _call(module, inputs, graph.outputs)
            if graph.name == encoder and manifest.takes_negative:
                negative = {name: known[NEGATIVE + name] for name in inputs}
                for name, value in _call(module, negative, graph.outputs).items():
                    known[NEGATIVE + name] = value
        known |= named
        references[graph.name] = Reference(inputs, named)
        later = {component for entry in graphs[index + 1 :] for component in entry.components}
        for name in set(graph.components) - later:
            parts[name].to("meta")
        del module
        release_memory()
    return references


def _random_inputs(source: ModelSource, manifest: Manifest, batch: int) -> Arrays:
    """Return inputs of the graphs by name, all but those that another graph makes."""
    random = np.random.default_rng(SEED)
    space, frames = manifest.latents, manifest.latents.frames
    height, width = manifest.size.height.opt, manifest.size.width.opt
    sides = height // space.downscale, width // space.downscale
    latents = (batch, space.channels, *sides)
    known: Arrays = {
        "sample": random.standard_normal(latents, dtype=np.float32),
        "timestep": random.integers(1, 1000, batch).astype(np.float32),
        "guidance_scale": random.uniform(1, 10, (batch, frames) if frames else batch).astype(
            np.float32
        ),
        "guidance_rescale": random.uniform(0, 1, batch).astype(np.float32),
        "latents": random.standard_normal(latents, dtype=np.float32),
        "images": random.random((batch, height, width, 3), dtype=np.float32),
    }
    if frames is not None:
        known["image"] = known["noisy_image"] = known["images"]
        image_latents = (batch, space.channels // frames, *sides)
        known["image_latents"] = random.standard_normal(image_latents, dtype=np.float32)
    for prefix in ("", NEGATIVE):
        for spec in source.family.tokenizers(source):
            length, vocabulary = spec.max_length, source.config(spec.encoder)["vocab_size"]
            known[prefix + spec.input] = random.integers(0, vocabulary, (batch, length))
            if spec.mask is not None:
                filled = random.integers(1, length, (batch, 1))
                known[prefix + spec.mask] = (np.arange(length) < filled).astype(np.int64)
        known[prefix + "clip_skip"] = random.integers(0, manifest.clip_skips + 1, batch)
    for name, kind in manifest.conditioning.items():
        known[name] = host_input(kind, batch, ImageSize.of(height, width))
    return known


def _call(module: torch.nn.Module, inputs: Arrays, outputs: Iterable[GraphInput]) -> Arrays:
    tensors = []
    for array in inputs.values():
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        tensors.append(tensor.float() if tensor.is_floating_point() else tensor)
    result = module(*tensors)
    values = result if isinstance(result, tuple) else (result,)
    return {entry.name: value.numpy() for entry, value in zip(outputs, values, strict=True)}


def check_graphs(
    bundle: Bundle,
    references: Mapping[str, Reference],
    progress: Progress,
    backend: Backend | None = None,
) -> tuple[Difference, ...]:
    """Compare every graph with PyTorch: as it is written, on ONNX Runtime's CPU, or as it is run.

    Args:
        bundle: what is verified.
        references: by graph.
        progress: told of every stage.
        backend: runs the graphs instead.
    """
    differences = []
    for name, reference in references.items():
        graph = bundle.manifest.graph(name)
        with progress.stage(f"verifying {name}"):
            if backend:
                found = run_on(backend, bundle.manifest, name, reference.inputs)
            else:
                read_graph(bundle, name)  # ONNX Runtime opens the file and its weights by itself
                found = run_file(bundle.file(graph.file), reference.inputs)
        for tensor, expected in reference.outputs.items():
            bound = graph_bound(tensor, _computed(backend, graph.precision))
            differences.append(compare(name, tensor, found[tensor], expected, bound))
    return tuple(differences)


def graph_bound(tensor: str, computed: Computed) -> float:
    """Return the largest relative difference allowed of a graph's output."""
    bound = GRAPH_BOUNDS[computed]
    if computed == "bf16" and tensor.startswith(("cross_cache_", "self_cache_")):
        return CACHE_BOUND_BF16
    return max(bound, IMAGE_BOUND) if tensor == "images" else bound


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
        backend: what runs graphs and trajectories, as `--backend` names it. By default graphs run
            as they are written, and trajectories on ONNX Runtime's CPU.
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
    from tgate_export.export.assemble import small_twin

    options = options_of(bundle.manifest)
    with (
        tempfile.TemporaryDirectory(prefix="tgate-export-") as folder,
        small_twin(found, bundle, options, Path(folder), progress) as (twin, differences),
    ):
        # The twin's graphs were compared as they were assembled, on ONNX Runtime.
        verified = _verify(found, twin, choice, progress, graphs=choice is not None)
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
        groups = denoiser_cache(
            source, parts, manifest.size, {cache.kind for cache in manifest.cache}
        )
    with progress.stage("running trajectories in PyTorch"):
        cases = trajectory_cases(manifest)
        runs = trajectories(source, parts, groups, manifest, cases)
    differences: tuple[Difference, ...] = ()
    if graphs:
        with progress.stage("running PyTorch for reference"):
            batch = max(manifest.batch.min, min(2, manifest.batch.max))
            references = graph_references(source, parts, manifest, groups, batch=batch)
    del parts
    release_memory()
    if graphs:
        differences = check_graphs(bundle, references, progress, chosen)
    with progress.stage("running trajectories in the runtime"):
        return Verification(differences, check_trajectories(bundle, runs, chosen))


def check_trajectories(
    bundle: Bundle, runs: Iterable[Trajectory], backend: Backend | None = None
) -> tuple[Difference, ...]:
    """Compare final latents of the torch-free runtime with PyTorch's."""
    from tgate_export.runtime.pipeline import TGatePipeline

    backend = backend or select("onnxruntime:cpu", bundle)
    pipeline = TGatePipeline(bundle, backend)
    computed = _computed(backend, bundle.manifest.precision)
    copies = bundle.manifest.batch.min  # as few as a call can draw
    differences = []
    for run in runs:
        output = pipeline(
            num_images_per_prompt=copies,
            num_inference_steps=run.case.steps,
            gate_step=run.case.gate_step,
            sp_interval=run.case.sp_interval,
            fi_interval=run.case.fi_interval,
            warm_up=run.case.warm_up,
            scheduler=run.case.scheduler,
            latents=np.concatenate([run.latents] * copies),
            output_type="latent",
            **run.call,
        )
        latents = np.asarray(output.images)
        expected = np.concatenate([run.expected] * copies)
        bound = trajectory_bound(run.case, computed)
        differences.append(compare(str(run.case), "latents", latents, expected, bound))
    return tuple(differences)


def trajectory_bound(case: TrajectoryCase, computed: Computed) -> float:
    """Return the largest relative difference allowed of a run's final latents."""
    if computed == "bf16" and case.scheduler == "pndm" and case.gate_step >= case.steps:
        return PNDM_BOUND_BF16
    return TRAJECTORY_BOUNDS[computed]


def _computed(backend: Backend | None, stored: Precision) -> Computed:
    return stored if backend is None or backend.precision is None else backend.precision


def _source(manifest: Manifest, override: str | None, *, download: bool = False) -> ModelSource:
    recorded = manifest.source
    weights: Weights = "random" if recorded.kind == "random" else "pretrained"
    try:
        if override:  # whoever asks has named it
            source = resolve_source(override, weights)
        else:
            revision = recorded.revision if recorded.kind == "hub" else None
            source = resolve_source(recorded.model, weights, revision=revision, download=download)
    except InvalidRequestError:
        raise ModelError(
            f"{recorded.model} is not there any more: give the pipeline's folder with --source"
        ) from None
    if source.record().fingerprint != recorded.fingerprint:
        raise ModelError(
            f"{override or recorded.model} is not what the bundle was built from "
            "(its files differ): give the right folder with --source, or build the bundle again"
        )
    return source if manifest.guidance == "embedded" else source.guided_by(manifest.guidance)
