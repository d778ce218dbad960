"""Every graph of a bundle against PyTorch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tgate_export.bundle.dims import concrete_shape, graph_dims
from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.manifest_graphs import Input
from tgate_export.bundle.origins import (
    FromCache,
    FromFormula,
    FromGraph,
    FromImage,
    FromMask,
    FromParameter,
    FromTokens,
)
from tgate_export.common.memory import release_memory
from tgate_export.common.progress import Progress
from tgate_export.families.graphs import GraphInput, graph_exports
from tgate_export.families.loading import Components, computing_in_fp32, convert
from tgate_export.families.source import ModelSource
from tgate_export.methods.denoiser_phases import DenoiserPhases
from tgate_export.parameters import Parameter
from tgate_export.runtime.backends.base import Backend
from tgate_export.runtime.backends.onnx_check import read_graph
from tgate_export.runtime.buffers import NEGATIVE
from tgate_export.runtime.formulas import formula_row
from tgate_export.verify.differences import Difference, compare, computed_in, graph_bound
from tgate_export.verify.run_graph import Arrays, run_file, run_on

SEED = 0


@dataclass(frozen=True)
class Reference:
    """A graph's inputs, and what PyTorch made of them in fp32."""

    inputs: Arrays
    outputs: Arrays


@torch.no_grad()
def graph_references(
    source: ModelSource,
    parts: Components,
    manifest: Manifest,
    phases: DenoiserPhases | None,
    *,
    batch: int,
    only: Collection[str] | None = None,
) -> dict[str, Reference]:
    """Run every graph's PyTorch module in fp32 on inputs like real ones.

    Leaves `parts` without weights: each component is freed after its last graph. Weights are
    converted to fp32 layer by layer. The gated phase gets the caches that the full phase wrote.

    Args:
        source: where the pipeline came from.
        parts: the loaded pipeline; with `only`, what those graphs need of it. That of a denoiser
            is the prompt encoder, too.
        manifest: the bundle's manifest: dtypes and sizes.
        phases: the denoiser's; None where it is not loaded.
        batch: samples in each input.
        only: give these graphs alone; of the denoiser all or none.
    """
    known = _random_inputs(source, manifest, batch)
    references = {}
    image_to_image = "vae_encoder" in manifest.graphs
    declared = graph_exports(
        source, parts, manifest.size, phases,
        image_to_image=image_to_image, vae_tile=manifest.vae_tile,
    )  # fmt: skip
    encoder = manifest.prompt_encoder
    # A denoiser is run on what the encoder makes of a prompt.
    wanted = None if only is None else {*only, *([encoder] if "full" in only else [])}
    graphs = [graph for graph in declared if wanted is None or graph.name in wanted]
    for index, graph in enumerate(graphs):
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
            known |= named
            if graph.name == encoder:
                known |= _in_chunks(module, inputs, graph.outputs, named, manifest.chunks)
                if manifest.takes_negative:
                    negative = {name: known[NEGATIVE + name] for name in inputs}
                    made = _call(module, negative, graph.outputs)
                    made |= _in_chunks(module, negative, graph.outputs, made, manifest.chunks)
                    known |= {NEGATIVE + name: value for name, value in made.items()}
        if only is None or graph.name in only:
            references[graph.name] = Reference(inputs, named)
        later = {component for entry in graphs[index + 1 :] for component in entry.components}
        for name in set(graph.components) - later:
            parts[name].to("meta")
        del module
        release_memory()
    return references


def _random_inputs(source: ModelSource, manifest: Manifest, batch: int) -> Arrays:
    """Return inputs of the graphs by name, all but those that another graph makes.

    What the prompt encoder reads of the negative prompt has the same names after `NEGATIVE`.
    """
    random = np.random.default_rng(SEED)
    height, width = manifest.size.height.opt, manifest.size.width.opt
    sizes = {"batch": batch, "height": height, "width": width}
    vocabularies = {
        spec.input: source.config(spec.encoder)["vocab_size"]
        for spec in source.family.tokenizers(source)
    }
    defaults = {name: entry.default for name, entry in manifest.parameters.items()}
    known: Arrays = {}

    def value(tensor: Input, shape: tuple[int, ...]) -> np.ndarray:
        origin = tensor.origin
        if isinstance(origin, FromTokens):
            return random.integers(0, vocabularies[origin.tokens], shape)
        if isinstance(origin, FromMask):
            filled = random.integers(1, shape[1], (batch, 1))
            return (np.arange(shape[1]) < filled).astype(np.int64)
        if isinstance(origin, FromParameter):
            return random_parameter(random, manifest.parameters[origin.parameter], shape)
        if isinstance(origin, FromFormula):
            guidance = {"guidance_scale": 10.0, "min_guidance_scale": 1.0}
            row = formula_row(
                origin.formula, defaults | guidance,
                height=height, width=width, frames=manifest.latents.frames,
            )  # fmt: skip
            return np.stack([row] * batch)
        if isinstance(origin, FromImage):
            return random.random(shape, dtype=np.float32)
        if tensor.name == "timestep":
            return random.integers(1, 1000, batch).astype(np.float32)
        return random.standard_normal(shape, dtype=np.float32)

    for name, graph in manifest.graphs.items():
        negative = name == manifest.prompt_encoder and manifest.takes_negative
        dims = graph_dims(manifest, name, **sizes)
        for prefix in ("", NEGATIVE) if negative else ("",):
            for tensor in graph.inputs:
                key = prefix + tensor.name
                if key not in known and not isinstance(tensor.origin, FromGraph | FromCache):
                    known[key] = value(tensor, concrete_shape(name, tensor, dims))
    for tensor in manifest.graph("full").inputs:  # of an encoder that runs later
        if tensor.name not in known and isinstance(tensor.origin, FromGraph):
            shape = concrete_shape("full", tensor, graph_dims(manifest, "full", **sizes))
            known[tensor.name] = random.standard_normal(shape, dtype=np.float32)
    return known


def random_parameter(
    random: np.random.Generator, entry: Parameter, shape: tuple[int, ...]
) -> np.ndarray:
    """Return values that a parameter may have, in f64 or i64."""
    low = entry.above if entry.min is None else entry.min
    low = 1 if low is None else low
    high = low + 10 if entry.max is None else entry.max
    if entry.type == "number":
        return random.uniform(low, high, shape)
    return random.integers(int(low), int(high) + 1, shape)


def _call(module: torch.nn.Module, inputs: Arrays, outputs: Iterable[GraphInput]) -> Arrays:
    tensors = []
    for array in inputs.values():
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        tensors.append(tensor.float() if tensor.is_floating_point() else tensor)
    result = module(*tensors)
    values = result if isinstance(result, tuple) else (result,)
    return {entry.name: value.numpy() for entry, value in zip(outputs, values, strict=True)}


def _in_chunks(
    module: torch.nn.Module,
    inputs: Arrays,
    outputs: Iterable[GraphInput],
    first: Arrays,
    chunks: Mapping[str, int],
) -> Arrays:
    """Return what the denoiser reads by token of the prompt encoder, every chunk another.

    Args:
        module: the encoder.
        inputs: of the first chunk; the others' are the same, moved along.
        outputs: the encoder's.
        first: what it made of the first.
        chunks: of how many the outputs are that are by token.
    """
    made = [first]
    for chunk in range(1, max(chunks.values(), default=1)):
        moved = {
            name: np.roll(value, chunk, axis=1) if value.ndim > 1 else value
            for name, value in inputs.items()
        }
        made.append(_call(module, moved, outputs))
    return {name: np.concatenate([each[name] for each in made], axis=1) for name in chunks}


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
            bound = graph_bound(tensor, computed_in(backend, graph.precision))
            cache, scale = bundle.manifest.caches.get(tensor), None
            if cache is not None and cache.kind == "guidance_delta":
                # Two predictions that are close to each other have the errors of each.
                scale = float(np.abs(reference.outputs["noise_pred"]).max())
            differences.append(compare(name, tensor, found[tensor], expected, bound, scale))
    return tuple(differences)
