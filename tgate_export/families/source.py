"""Where a model's weights come from, checked before anything heavy is imported.

Nothing is ever unpickled: a component without safetensors weights is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tgate_export.bundle.hashing import hash_files
from tgate_export.bundle.manifest import Defaults, Guidance, Source
from tgate_export.errors import InvalidRequestError, ModelError, first_line
from tgate_export.families.base import Family
from tgate_export.families.names import NAMED_MODELS, unknown_model
from tgate_export.families.registry import FAMILIES, family_of
from tgate_export.families.tokenizer_files import check_tokenizer_files
from tgate_export.gating.conditioning import Conditioning

Weights = Literal["pretrained", "random"]

_CONFIG_FILES = {
    "scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
}
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class ModelSource:
    """A diffusers pipeline directory and how its weights are made.

    Attributes:
        kind: packaged, local, hub, or random (the configuration only; weights from a seed).
        model: what the user asked for.
        name: short name, the default folder of the bundle.
        directory: the pipeline's files.
        revision: commit of a hub snapshot.
        pipeline: its class in `model_index.json`.
        family: how pipelines of this class are built.
        defaults: how the model is sampled unless told otherwise.
        shared: components whose configuration is another packaged pipeline's -> its folder.
        guidance: how the denoiser is told to follow the prompt.
    """

    kind: Literal["packaged", "local", "hub", "random"]
    model: str
    name: str
    directory: Path
    revision: str | None
    pipeline: str
    family: Family
    defaults: Defaults
    shared: Mapping[str, Path] = field(default_factory=dict)
    guidance: Guidance = "classifier-free"

    def guided_by(self, guidance: Literal["classifier-free", "none"] | None) -> ModelSource:
        """Return this model with another kind of guidance; its own when None.

        Raises:
            InvalidRequestError: when the model takes the scale as an embedding.
        """
        if guidance is None or guidance == self.guidance:
            return self
        if self.guidance == "embedded":
            raise InvalidRequestError(
                f"{self.model}: its denoiser takes the guidance scale as an embedding "
                "(time_cond_proj_dim): leave --guidance out"
            )
        return replace(self, guidance=guidance)

    def conditioning(self) -> Conditioning:
        """Return what the denoiser is told, with this model's guidance."""
        return self.family.conditioning(self).guided_by(self.guidance)

    def folder(self, component: str) -> Path:
        """Return a component's folder."""
        return self.shared.get(component, self.directory) / component

    def config(self, component: str) -> dict[str, Any]:
        """Return a component's configuration.

        Raises:
            ModelError: when it is missing or no JSON.
        """
        return _read_json(self.folder(component) / _CONFIG_FILES.get(component, "config.json"))

    def index(self) -> dict[str, Any]:
        """Return `model_index.json`."""
        return _read_json(self.directory / "model_index.json")

    def files(self) -> tuple[str, ...]:
        """Files that the build depends on, relative to the directory."""
        names = ["model_index.json"]
        for component in self.family.components(self):
            names += [
                Path(os.path.relpath(path, self.directory)).as_posix()
                for path in sorted(self.folder(component).glob("*"))
                if path.suffix in (".json", ".txt", ".model")
                or (path.suffix == ".safetensors" and self.kind != "random")
            ]
        return tuple(names)

    def record(self) -> Source:
        """Return what the manifest says of the source; hashes every file."""
        digest = hashlib.sha256()
        for name, file in hash_files(self.directory, self.files()):
            digest.update(f"{name}\0{file.sha256}\n".encode())
        return Source(
            kind=self.kind,
            model=self.model,
            revision=self.revision,
            fingerprint=digest.hexdigest(),
        )


def resolve_source(model: str, weights: Weights = "pretrained") -> ModelSource:
    """Find a model by name, folder or Hugging Face id, and check that it can be built.

    Only an id (or a name whose weights live on the hub) is ever downloaded.

    Raises:
        InvalidRequestError: an unknown name.
        ModelError: no diffusers pipeline, one that has nothing to gate, pickled, missing or
            truncated weights, or a download that failed.
    """
    located = _locate(model, weights)
    pipeline = _pipeline_class(located.directory, located.model)
    family = family_of(pipeline, located.model)
    source = ModelSource(
        kind=located.kind,
        model=located.model,
        name=located.name,
        directory=located.directory,
        revision=located.revision,
        pipeline=pipeline,
        family=family,
        defaults=located.defaults or family.defaults,
        shared=located.shared,
        guidance=located.guidance,
    )
    _check_components(source)
    family.check(source)
    if source.config(family.denoiser).get("time_cond_proj_dim") is not None:
        source = replace(source, guidance="embedded")
    if source.kind != "random":
        for component in family.weights:
            _check_weights(source.folder(component))
    return source


@dataclass(frozen=True)
class _Located:
    """Where a model's files are, before anything is read; `defaults` are a name's own."""

    kind: Literal["packaged", "local", "hub", "random"]
    model: str
    name: str
    directory: Path
    revision: str | None = None
    defaults: Defaults | None = None
    shared: Mapping[str, Path] = field(default_factory=dict)
    guidance: Guidance = "classifier-free"


def _locate(model: str, weights: Weights) -> _Located:
    path = Path(model)
    named = NAMED_MODELS.get(model)
    if named is not None:
        if weights == "random":
            return _Located(
                "random", model, model, named.directory, None, named.defaults, named.shared,
                named.guidance,
            )  # fmt: skip
        if named.hub_id is None:
            return _Located("packaged", model, model, named.directory, None, named.defaults)
        directory, revision = _download(named.hub_id)
        return _Located(
            "hub", named.hub_id, model, directory, revision, named.defaults,
            guidance=named.guidance,
        )  # fmt: skip
    if path.is_dir():
        resolved = path.resolve()
        kind: Literal["random", "local"] = "random" if weights == "random" else "local"
        return _Located(kind, str(resolved), resolved.name, resolved)
    if path.is_file():
        raise ModelError(
            f"{model} is a single file: convert it to a diffusers folder first "
            "(StableDiffusionPipeline.from_single_file(...).save_pretrained(FOLDER))"
        )
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        if weights == "random":
            raise InvalidRequestError(
                f"--weights random takes a model name or a folder, not the hub id {model!r}"
            )
        directory, revision = _download(model)
        return _Located("hub", model, model.rsplit("/", 1)[1], directory, revision)
    raise unknown_model(model)


def _download(hub_id: str) -> tuple[Path, str]:
    """Fetch the safetensors weights and configuration of a pipeline into the hub's own cache."""
    from huggingface_hub import snapshot_download

    weights = {component for family in FAMILIES.values() for component in family.weights}
    patterns = ["model_index.json", "scheduler/*.json", "feature_extractor/*.json"]
    patterns += [f"tokenizer{suffix}/*{end}" for suffix in ("", "_2")
                 for end in (".json", ".txt", ".model")]  # fmt: skip
    for component in sorted(weights):
        patterns += [f"{component}/*.json", f"{component}/*.safetensors"]
    try:
        snapshot = Path(
            snapshot_download(
                hub_id, allow_patterns=patterns, ignore_patterns=["*non_ema*", "*.fp16.*"]
            )
        )
    except Exception as error:  # the hub's own types, its HTTP client's, and the disk's
        raise ModelError(
            f"cannot download {hub_id} from Hugging Face ({first_line(error)}): check the id "
            "and the network, give a local folder, or use --weights random to build the "
            "architecture only"
        ) from None
    return snapshot, snapshot.name


def _pipeline_class(directory: Path, model: str) -> str:
    index_file = directory / "model_index.json"
    if not index_file.is_file():
        raise ModelError(
            f"{model} is not a diffusers pipeline: it has no model_index.json "
            "(save one with pipeline.save_pretrained(FOLDER))"
        )
    pipeline = _read_json(index_file).get("_class_name")
    if not isinstance(pipeline, str):
        raise ModelError(
            f"{model} is not a diffusers pipeline: its model_index.json names no class"
        )
    return pipeline


def _check_components(source: ModelSource) -> None:
    weights = source.family.weights
    for component in (*weights, "scheduler", *source.family.extras):
        _check_component(source, component)
    if source.kind != "random":
        for spec in source.family.tokenizers(source):
            _check_component(source, spec.component)
            check_tokenizer_files(source.folder(spec.component), spec.class_name)


def _check_component(source: ModelSource, component: str) -> None:
    if not source.folder(component).is_dir():
        raise ModelError(f"{source.model} lacks the component {component}/: download it again")


def _check_weights(component: Path) -> None:
    files = list(component.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for path in component.glob("*") if path.suffix in _PICKLES)
        if pickled:
            raise ModelError(
                f"{component} has only pickled weights ({pickled[0]}), which are never loaded: "
                "convert them with pipeline.save_pretrained(FOLDER, safe_serialization=True)"
            )
        raise ModelError(f"{component} has no safetensors weights: download the model again")
    for index in component.glob("*.safetensors.index.json"):
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ModelError(f"{index} has no weight_map: download the model again")
        for shard in sorted(set(map(str, shards.values()))):
            if not (component / shard).is_file():
                raise ModelError(f"{component / shard} is missing: download the model again")
    for file in files:
        _check_safetensors(file)


def _check_safetensors(path: Path) -> None:
    """Compare a file's size with what its header promises."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > 100_000_000:
                raise ValueError("its header is too long")
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{path} is not a safetensors file: download the model again") from None
    if path.stat().st_size != expected:
        raise ModelError(
            f"{path} is truncated: {path.stat().st_size} bytes, its header promises {expected}; "
            "download the model again"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: download the model again") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}): download the model again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object: download the model again")
    return content
