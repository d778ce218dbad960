"""Exported units, and what each of them depends on (no torch)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from pydantic import Field

from tgate_export.bundle.fields import BundleModel, Name
from tgate_export.bundle.manifest import File, Range, Size
from tgate_export.bundle.manifest_graphs import Cache, Dimension, Graph, Precision
from tgate_export.common.code_hash import code_sha256
from tgate_export.common.versions import versions_of
from tgate_export.families.embeddings import token_names
from tgate_export.families.geometry import vae_downscale, vae_size
from tgate_export.families.loras import file_hashes
from tgate_export.families.registry import family_module
from tgate_export.families.source import ModelSource
from tgate_export.families.spec import TokenizerSpec
from tgate_export.families.units import DENOISER, Unit
from tgate_export.methods.method import Method

GRAPHS_FOLDER = "graphs"
EXPORTERS = ("torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "numpy")
_TOKENIZER_LIBRARIES = ("transformers", "tokenizers", "sentencepiece")


class Measured(BundleModel):
    """How far a graph's output was from PyTorch's; see `Difference`."""

    graph: Name
    tensor: Name
    max_abs: float
    relative: float


class Comparison(BundleModel):
    """What a comparison with PyTorch measured.

    Attributes:
        by: hash of all that it was done with.
        measured: one for each output of the unit's graphs.
    """

    by: str
    measured: tuple[Measured, ...]


class ExportedUnit(BundleModel):
    """One component's graphs, and what the manifest says of them.

    Attributes:
        graphs: in the order in which they were exported.
        caches: of the denoiser.
        dimensions: named ones of its caches.
        layers: name of the file that says where weights are that a LoRA may change; None without.
        compared: None before they were.
    """

    graphs: dict[Name, Graph]
    caches: dict[Name, Cache] = Field(default_factory=dict)
    dimensions: dict[Name, Dimension] = Field(default_factory=dict)
    layers: Name | None = None
    compared: Comparison | None = None

    def files(self) -> set[str]:
        """Return the names of its files in the bundle's folder of graphs."""
        named = {path for graph in self.graphs.values() for path in (graph.file, graph.weights)}
        files = {path.removeprefix(f"{GRAPHS_FOLDER}/") for path in named if path is not None}
        return files | ({self.layers} if self.layers else set())


def unit_key(
    source: ModelSource,
    unit: Unit,
    hashes: Mapping[Path, File],
    *,
    precision: Precision,
    size: Size,
    batch: Range,
    method: Method,
    phases: Iterable[str],
    vae_tile: int = 0,
) -> str:
    """Hash everything that a unit's files depend on.

    Of other components it is their configuration: a denoiser's inputs have the text encoder's
    width, and latents are as small as the VAE makes them.

    Args:
        source: the pipeline.
        unit: which of its units.
        hashes: of the pipeline's files.
        precision: the bundle's.
        size: the bundle's image size.
        batch: the bundle's.
        method: that the denoiser is exported for.
        phases: its graphs, of the method's.
        vae_tile: sides of the tiles that the VAE takes, in pixels; 0 for whole images.
    """
    family = source.family
    tile = vae_tile if "vae" in unit.components else 0
    # Guidance, chunks of prompts and the method are the denoiser's alone. Nothing that is exported
    # imports the method: it is named.
    denoising = {
        "guidance": source.guidance,
        "phases": list(phases),
        "prompt_chunks": source.prompt_chunks,
        "code": code_sha256(method.module),
    }
    return _digest(
        {
            "unit": unit.name,
            "family": family.name,
            "pipeline": source.pipeline,
            "weights": "random" if source.kind == "random" else "files",
            "files": {name: _files(source, name, hashes) for name in unit.components},
            "loras": {name: file_hashes(source.loras, hashes, name) for name in unit.components},
            "embeddings": _embeddings(source, unit, hashes),
            "configurations": {
                name: _configuration(source, unit, name)
                for name in (*family.weights, *family.extras)
            },
            "precision": precision,
            "size": vae_size(size, tile).model_dump(),
            "tiled": tile > 0,
            "batch": batch.model_dump(),
            "denoising": denoising if unit.name == DENOISER else None,
            "code": code_sha256("export.export_unit", family_module(family)),
            "versions": versions_of(EXPORTERS),
        }
    )


def tokenizer_key(source: ModelSource, spec: TokenizerSpec, hashes: Mapping[Path, File]) -> str:
    """Hash everything that a tokenizer's file depends on; see `unit_key`."""
    return _digest(
        {
            "tokenizer": repr(spec),
            "weights": "random" if source.kind == "random" else "files",
            "files": _files(source, spec.component, hashes),
            "encoder": source.config(spec.encoder),
            "embeddings": token_names(source.embeddings),
            "code": code_sha256("export.tokenizer", "families.loading"),
            "versions": versions_of(_TOKENIZER_LIBRARIES),
        }
    )


def _configuration(source: ModelSource, unit: Unit, name: str) -> dict[str, Any]:
    """Return what of a component's configuration a unit depends on."""
    config = source.config(name)
    if name != "vae" or "vae" in unit.components:
        return config
    # Others know how small the VAE makes latents.
    return {"downscale": vae_downscale(source), "channels": config.get("latent_channels")}


def _embeddings(source: ModelSource, unit: Unit, hashes: Mapping[Path, File]) -> list[object]:
    """Return what vectors of a unit's text encoders depend on: their files, and tokens' ids."""
    specs = [spec for spec in source.family.tokenizers(source) if spec.encoder in unit.components]
    if not source.embeddings or not specs:
        return []
    vectors = [(hashes[found.path].sha256, found.token) for found in source.embeddings]
    return [vectors, [_files(source, spec.component, hashes) for spec in specs]]


def _files(source: ModelSource, component: str, hashes: Mapping[Path, File]) -> dict[str, str]:
    """Hashes by plain name: the same component of another pipeline is the same unit."""
    paths = source.component_paths(component)
    return {PurePath(source.file_name(path)).name: hashes[path].sha256 for path in paths}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
