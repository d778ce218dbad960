"""Pipelines with LoRA files fused by diffusers and PEFT, and bundles compared with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import torch
from onnx import numpy_helper

from tests.support import loras
from tgate_export.build.options import options_of
from tgate_export.bundle.integrity import Bundle, bundle_files
from tgate_export.bundle.layers_file import read_layers
from tgate_export.common.progress import Progress
from tgate_export.families.graphs import denoiser_phases
from tgate_export.families.loading import load
from tgate_export.families.source import resolve_source
from tgate_export.verify.differences import Difference
from tgate_export.verify.graphs import check_graphs, graph_references

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


def pipeline(folder: Path, precision: str = "fp32") -> Any:
    """Load a saved pipeline."""
    dtype = torch.float16 if precision == "fp16" else torch.float32
    return diffusers.DiffusionPipeline.from_pretrained(
        folder, safety_checker=None, torch_dtype=dtype
    )


def changes(pipe: Any, chosen: Any, **options: Any) -> dict[str, loras.Change]:
    """Make random changes for a pipeline's components."""
    parts = {name: getattr(pipe, name, None) for name in COMPONENTS}
    return {
        name: loras.change(part, chosen, **options)
        for name, part in parts.items()
        if part is not None
    }


def save(made: Mapping[str, loras.Change], path: Path) -> Path:
    """Write a LoRA file of changes by component, in diffusers' names."""
    tensors: loras.Tensors = {}
    for component, change in made.items():
        tensors |= loras.peft(f"{component}.", change)
    return loras.save(tensors, path)


def fused(folder: Path, out: Path, *files: tuple[Path, float], precision: str = "fp32") -> Path:
    """Save a pipeline in whose weights diffusers and PEFT have fused LoRA files, one by one."""
    pipe = pipeline(folder, precision)
    for index, (file, scale) in enumerate(files):
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=f"a{index}")
        pipe.fuse_lora(adapter_names=[f"a{index}"], lora_scale=scale)
        pipe.unload_lora_weights()
    pipe.save_pretrained(out)
    return out


def graphs_differ(bundle: Bundle, folder: Path) -> tuple[Difference, ...]:
    """Run every graph of a bundle beside the PyTorch modules of a pipeline."""
    manifest = bundle.manifest
    source = resolve_source(str(folder))
    if manifest.guidance == "none":
        source = source.guided_by("none")
    parts = load(source, manifest.precision)
    options = options_of(manifest)
    phases = denoiser_phases(source, parts, options.size, options.method, options.phases)
    references = graph_references(source, parts, manifest, phases, batch=2)
    return check_graphs(bundle, references, Progress())


def contents(bundle: Path) -> dict[str, bytes]:
    """Return the files that a bundle's manifest lists."""
    return {name: (bundle / name).read_bytes() for name in bundle_files(bundle)}


def constants(bundle: Bundle) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Yield every initializer of a bundle's graphs, wherever its data is."""
    for name, graph in bundle.manifest.graphs.items():
        # onnx itself reads no weights that have a second name.
        model = onnx.load(bundle.file(graph.file), load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.external_data:
                assert graph.weights is not None
                where = {entry.key: entry.value for entry in tensor.external_data}
                with bundle.file(graph.weights).open("rb") as stream:
                    stream.seek(int(where["offset"]))
                    tensor.raw_data = stream.read(int(where["length"]))
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
            yield (name, tensor.name), numpy_helper.to_array(tensor)


def differing(one: Bundle, other: Bundle) -> set[tuple[str, str]]:
    """Return graph and name of the initializers that differ in a bit; names are the same."""
    before, after = dict(constants(one)), dict(constants(other))
    assert before.keys() == after.keys()
    return {key for key, value in before.items() if value.tobytes() != after[key].tobytes()}


def weight_errors(bundle: Bundle, folder: Path) -> dict[tuple[str, str, str], float]:
    """Return how far the constants that are layers' weights are from a pipeline's.

    By component, path of the layer and graph; relative, by their norms.
    """
    pipe = pipeline(folder)
    stored = dict(constants(bundle))
    errors = {}
    for component, layers in read_layers(bundle).items():
        module = getattr(pipe, component)
        for path, layer in layers.items():
            weight = module.get_submodule(path).weight.detach().numpy()
            for constant in layer.constants:
                found = stored[constant.graph, constant.initializer].astype(np.float32)
                found = found.T if constant.transposed else found
                error = np.linalg.norm(found - weight) / np.linalg.norm(weight)
                errors[component, path, constant.graph] = float(error)
    return errors
