"""Where a model's weights come from, checked before anything heavy is imported.

Nothing is ever unpickled: a component without safetensors weights is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tgate_export.bundle.hash_cache import cached_hashes
from tgate_export.bundle.hashing import hash_files
from tgate_export.bundle.manifest import Defaults, File, Guidance, Source
from tgate_export.common.errors import InvalidRequestError
from tgate_export.common.hints import Argument
from tgate_export.families import hub
from tgate_export.families.components import check_components, inner_config, pipeline_class
from tgate_export.families.model_files import (
    WeightFiles,
    check_file,
    check_safetensors,
    choose_weights,
    read_json,
)
from tgate_export.families.names import NAMED_MODELS, named_by_hub_id
from tgate_export.families.reference import reference
from tgate_export.families.registry import family_of
from tgate_export.families.repairs import effective_config
from tgate_export.families.sampling import own_defaults, samplers
from tgate_export.families.spec import Family
from tgate_export.families.tokenizer_files import check_tokenizer_files
from tgate_export.methods.conditioning import Conditioning

Weights = Literal["pretrained", "random"]

_CONFIG_FILES = {
    "scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
}
_TEXTS = (".json", ".txt", ".model")


@dataclass(frozen=True)
class ModelSource:
    """A diffusers pipeline directory and how its weights are made.

    Attributes:
        kind: packaged, local, hub, or random (the configuration only; weights from a seed).
        model: what the user asked for.
        name: short name, the default folder of the bundle.
        directory: the pipeline's files.
        revision: commit of a hub snapshot; of the part and of its base, with a + between them.
        pipeline: its class in `model_index.json`.
        family: how pipelines of this class are built.
        defaults: how the model is sampled unless told otherwise.
        shared: components whose configuration is another packaged pipeline's -> its folder.
        guidance: how the denoiser is told to follow the prompt.
        parts: components that are folders of their own -> the folder.
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
    parts: Mapping[str, Path] = field(default_factory=dict)

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
                "(time_cond_proj_dim)",
                "leave ",
                Argument("guidance"),
                " out",
            )
        return replace(self, guidance=guidance)

    def conditioning(self) -> Conditioning:
        """Return what the denoiser is told, with this model's guidance."""
        return self.family.conditioning(self).guided_by(self.guidance)

    def root(self, component: str) -> Path:
        """Return the model folder that a component belongs to."""
        return self.parts.get(component) or self.shared.get(component, self.directory)

    @property
    def samplers(self) -> tuple[str, ...] | None:
        """The samplers that serve it; all that can be compiled when None."""
        return samplers(self)

    def folder(self, component: str) -> Path:
        """Return a component's folder."""
        part = self.parts.get(component)
        return self.root(component) / component if part is None else part

    def config(self, component: str) -> dict[str, Any]:
        """Return a component's configuration, as diffusers' pipeline would have it.

        Raises:
            ModelError: when it is missing or no JSON.
        """
        path = self.folder(component) / _CONFIG_FILES.get(component, "config.json")
        class_name = self.family.weights.get(component)
        config = inner_config(read_json(path), class_name)
        return effective_config(self.pipeline, component, class_name, config)

    def index(self) -> dict[str, Any]:
        """Return `model_index.json`."""
        return read_json(self.directory / "model_index.json")

    def weight_files(self, component: str) -> WeightFiles:
        """Return which files a component's weights are loaded from.

        Raises:
            ModelError: there are none that can be.
        """
        folder = self.folder(component)
        names = [path.name for path in folder.glob("*")]
        return choose_weights(folder, names, self.family.weights[component])

    def text_files(self, component: str) -> tuple[Path, ...]:
        """Return a component's configurations and vocabularies."""
        paths = sorted(self.folder(component).glob("*"))
        return tuple(path for path in paths if path.suffix in _TEXTS)

    def component_paths(self, component: str) -> tuple[Path, ...]:
        """Return every file of a component that is read, sorted."""
        files = list(self.text_files(component))
        if component in self.family.weights and self.kind != "random":
            folder = self.folder(component)
            files += [folder / name for name in self.weight_files(component).files]
        return tuple(sorted(files))

    def paths(self) -> tuple[Path, ...]:
        """Return every file that is read."""
        found = [self.directory / "model_index.json"]
        for component in self.family.components(self):
            found += self.component_paths(component)
        return tuple(found)

    def files(self) -> tuple[str, ...]:
        """Return the names of `paths`, relative to the directory."""
        return tuple(
            Path(os.path.relpath(path, self.directory)).as_posix() for path in self.paths()
        )

    def hashes(self, *, cached: bool = False) -> dict[Path, File]:
        """Hash every file that is read.

        Args:
            cached: but no large one that was hashed before, and not touched since; see
                `cached_hashes`.
        """
        hashed = (cached_hashes if cached else hash_files)(self.directory, self.files())
        return dict(zip(self.paths(), (file for _, file in hashed), strict=True))

    def check_texts(self, components: Iterable[str]) -> None:
        """Check that configurations and vocabularies are files inside the model's folders.

        Raises:
            ModelError: names the file.
        """
        for component in components:
            for path in self.text_files(component):
                check_file(self.root(component), path)

    def check_weights(self) -> None:
        """Check that weights are whole, and inside the model's folders.

        Raises:
            ModelError: names the file.
        """
        for component in self.family.weights:
            for name in self.weight_files(component).files:
                check_file(self.root(component), self.folder(component) / name)
                check_safetensors(self.folder(component) / name)

    def record(self, hashes: Mapping[Path, File] | None = None) -> Source:
        """Return what the manifest says of the source.

        Args:
            hashes: those of its files, where they are known; they are hashed otherwise.
        """
        hashes = self.hashes() if hashes is None else hashes
        digest = hashlib.sha256()
        for name, path in zip(self.files(), self.paths(), strict=True):
            digest.update(f"{name}\0{hashes[path].sha256}\n".encode())
        return Source(
            kind=self.kind,
            model=self.model,
            revision=self.revision,
            fingerprint=digest.hexdigest(),
        )


def resolve_source(
    model: str,
    weights: Weights = "pretrained",
    *,
    revision: str | None = None,
    download: bool = True,
) -> ModelSource:
    """Find a model by name, folder or Hugging Face id, and check that it can be built.

    Only an id (or a name whose weights live on the hub) is ever downloaded: first its
    configuration, and when that can be built, the weights that are read.

    Args:
        model: the name, folder or id; an id may end with `@` and a revision.
        weights: "pretrained", or "random" for the configuration alone.
        revision: of an id, as a bundle's manifest records it.
        download: whether anything may be downloaded that is not in the cache.

    Raises:
        InvalidRequestError: an unknown name.
        ModelError: no diffusers pipeline, one that has nothing to gate, pickled, missing or
            truncated weights, or a download that failed.
    """
    located = _locate(model, weights, revision, download)
    pipeline = pipeline_class(located.directory, located.model, located.names(download=download))
    family = family_of(pipeline, located.model)
    source = ModelSource(
        kind=located.kind,
        model=located.model,
        name=located.name,
        directory=located.directory,
        revision=located.hub.revision if located.hub else None,
        pipeline=pipeline,
        family=family,
        defaults=located.defaults or family.defaults,
        shared=located.shared,
        guidance=located.guidance,
        parts=located.hub.folders() if located.hub else {},
    )
    source.check_texts((*family.weights, "scheduler", *family.extras))
    check_components(source, partial(located.listing, download=download))
    if source.kind != "random":
        source.check_texts(spec.component for spec in family.tokenizers(source))
        for spec in family.tokenizers(source):
            check_tokenizer_files(source.folder(spec.component), spec.class_name)
    family.check(source)
    if source.config(family.denoiser).get("time_cond_proj_dim") is not None:
        source = replace(source, guidance="embedded")
    if located.defaults is None:
        source = replace(source, defaults=own_defaults(source))
    samplers(source)  # refuses a model that none serves
    if located.hub:
        hub.fetch_weights(located.hub, family.weights, download=download)
    if source.kind != "random":
        source.check_weights()
    return source


@dataclass(frozen=True)
class _Located:
    """Where a model's files are, before anything is read; `defaults` are a name's own."""

    kind: Literal["packaged", "local", "hub", "random"]
    model: str
    name: str
    directory: Path
    hub: hub.HubModel | None = None
    defaults: Defaults | None = None
    shared: Mapping[str, Path] = field(default_factory=dict)
    guidance: Guidance = "classifier-free"

    def names(self, *, download: bool) -> Collection[str]:
        """Names of its files, here or on the hub; none of a pipeline, which needs no telling."""
        if (self.directory / "model_index.json").is_file():
            return ()
        if self.hub:
            return hub.names_of(self.hub, download=download)
        return os.listdir(self.directory)

    def listing(self, folder: str, *, download: bool) -> Collection[str]:
        """Names of the files of a folder, here or on the hub."""
        if self.hub is None:
            return [path.name for path in (self.directory / folder).glob("*")]
        names = hub.names_of(self.hub, download=download)
        return [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]


def _locate(model: str, weights: Weights, revision: str | None, download: bool) -> _Located:
    named = NAMED_MODELS.get(model)
    if named is not None and weights == "random":
        return _Located(
            "random", model, model, named.directory, None, named.defaults, named.shared,
            named.guidance,
        )  # fmt: skip
    known = reference(model)
    if known.kind == "local":
        kind: Literal["random", "local"] = "random" if weights == "random" else "local"
        return _Located(kind, known.model, known.name, Path(known.model))
    if known.kind == "packaged":
        assert named is not None  # packaged models are named
        return _Located("packaged", model, model, named.directory, None, named.defaults)
    if weights == "random":
        raise InvalidRequestError(
            f"weights random takes a model name or a folder, not the hub id {model!r}"
        )
    found = hub.find_model(known.model, revision or known.revision, download=download)
    return _Located(
        "hub", known.model, known.name, found.pipeline.directory, found,
        **named_by_hub_id(known.model),
    )  # fmt: skip
