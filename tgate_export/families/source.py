"""Where a model's weights come from, checked before anything heavy is imported.

Nothing is ever unpickled: a component without safetensors weights is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tgate_export.adapters.embedding_file import Embedding
from tgate_export.adapters.lora_file import Lora
from tgate_export.bundle.hash_cache import cached_hashes
from tgate_export.bundle.hashing import hash_files
from tgate_export.bundle.manifest import Defaults, File, Guidance, Source
from tgate_export.bundle.origins import MOST_CHUNKS
from tgate_export.common.errors import InvalidRequestError
from tgate_export.common.hints import Argument
from tgate_export.families import hub
from tgate_export.families.checkpoint_parts import Part
from tgate_export.families.components import check_components, inner_config, pipeline_class
from tgate_export.families.embeddings import GivenEmbedding, added, with_embeddings
from tgate_export.families.locate import Kind, Weights, locate
from tgate_export.families.loras import GivenLora, applied, hash_with_loras, with_loras
from tgate_export.families.model_files import (
    WeightFiles,
    check_file,
    check_safetensors,
    choose_weights,
    read_json,
)
from tgate_export.families.registry import family_of
from tgate_export.families.repairs import effective_config
from tgate_export.families.sampling import own_defaults, samplers
from tgate_export.families.single_file import SingleFile, check_complete, clip_files
from tgate_export.families.spec import Family
from tgate_export.families.tokenizer_files import check_tokenizer_files
from tgate_export.families.vae import Vae, open_vae, with_vae
from tgate_export.methods.conditioning import Conditioning

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
        single: the checkpoint in one file that it is; `directory` has its configurations.
        vae: what is built in place of its own VAE.
        loras: LoRA files that change its weights, in this order.
        prompt_chunks: how many runs of the text encoder a prompt can have.
        embeddings: textual inversion files, whose tokens its tokenizers know, in this order.
    """

    kind: Kind
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
    single: SingleFile | None = None
    vae: Vae | None = None
    loras: tuple[Lora, ...] = ()
    prompt_chunks: int = 1
    embeddings: tuple[Embedding, ...] = ()

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

    def reading(self, prompt_chunks: int) -> ModelSource:
        """Return this model with a denoiser that reads prompts of so many chunks.

        Raises:
            InvalidRequestError: it cannot, or not as many.
        """
        if not 1 <= prompt_chunks <= MOST_CHUNKS:
            raise InvalidRequestError(
                f"prompt_chunks must be 1 to {MOST_CHUNKS}, got {prompt_chunks}",
                field="prompt_chunks",
            )
        if prompt_chunks > 1 and not self.by_token:
            raise InvalidRequestError(
                f"{self.model} is a {self.pipeline}, whose prompts have no chunks",
                "leave ",
                Argument("prompt_chunks"),
                " out",
                field="prompt_chunks",
            )
        return replace(self, prompt_chunks=prompt_chunks)

    @property
    def by_token(self) -> bool:
        """Whether prompts can be of several chunks, and of weighted tokens."""
        return any(entry.chunks for entry in self.conditioning().conditions)

    def conditioning(self) -> Conditioning:
        """Return what the denoiser is told, with this model's guidance and chunks."""
        found = self.family.conditioning(self).guided_by(self.guidance)
        return found.in_chunks(self.prompt_chunks)

    @property
    def weights(self) -> Mapping[str, str]:
        """Components with weights -> "library.Class"."""
        if self.vae is None:
            return self.family.weights
        return {**self.family.weights, "vae": self.vae.class_name}

    def root(self, component: str) -> Path:
        """Return the model folder that a component belongs to."""
        if component == "vae" and self.vae and self.vae.part is None:
            return self.vae.path
        return self.parts.get(component) or self.shared.get(component, self.directory)

    @property
    def samplers(self) -> tuple[str, ...] | None:
        """The samplers that serve it; all that can be compiled when None."""
        return samplers(self)

    def folder(self, component: str) -> Path:
        """Return a component's folder."""
        if component == "vae" and self.vae and self.vae.part is None:
            return self.vae.path
        if self.single and (packaged := self.single.tokenizer(component)):
            return packaged
        part = self.parts.get(component)
        return self.root(component) / component if part is None else part

    def config(self, component: str) -> dict[str, Any]:
        """Return a component's configuration, as diffusers' pipeline would have it.

        Raises:
            ModelError: when it is missing or no JSON.
        """
        if component == "vae" and self.vae and self.vae.config is not None:
            return dict(self.vae.config)
        path = self.folder(component) / _CONFIG_FILES.get(component, "config.json")
        class_name = self.family.weights.get(component)
        config = inner_config(read_json(path), class_name)
        if self.single:
            config = self.single.changed(component, config)
        return effective_config(self.pipeline, component, class_name, config)

    def index(self) -> dict[str, Any]:
        """Return `model_index.json`."""
        index = read_json(self.directory / "model_index.json")
        return self.single.changed("model_index", index) if self.single else index

    def weight_files(self, component: str) -> WeightFiles:
        """Return which files a component's weights are loaded from.

        Raises:
            ModelError: there are none that can be.
        """
        folder = self.folder(component)
        names = [path.name for path in folder.glob("*")]
        return choose_weights(folder, names, self.weights[component])

    def text_files(self, component: str) -> tuple[Path, ...]:
        """Return a component's configurations and vocabularies."""
        if component == "vae" and self.vae and self.vae.part and self.vae.config is not None:
            return ()  # its file's shapes say everything
        if self.single and (packaged := self.single.tokenizer(component)):
            return clip_files(packaged)
        paths = sorted(self.folder(component).glob("*"))
        return tuple(path for path in paths if path.suffix in _TEXTS)

    def component_paths(self, component: str) -> tuple[Path, ...]:
        """Return every file of a component that is read, sorted."""
        files = list(self.text_files(component))
        if component in self.family.weights and self.kind != "random":
            files += self.weight_paths(component)
        return tuple(sorted(files))

    def part(self, component: str) -> Part | None:
        """Return where a component's weights are in a file that holds more; None for a folder's."""
        if component == "vae" and self.vae:
            return self.vae.part
        return self.single.parts.get(component) if self.single else None

    def weight_paths(self, component: str) -> tuple[Path, ...]:
        """Return the files that a component's weights are loaded from; see `weight_files`."""
        if (part := self.part(component)) is not None:
            return (part.file,)
        folder = self.folder(component)
        return tuple(folder / name for name in self.weight_files(component).files)

    def paths(self) -> tuple[Path, ...]:
        """Return every file that is read."""
        found = [self.directory / "model_index.json"]
        for component in self.family.components(self):
            found += self.component_paths(component)
        found += [lora.path for lora in self.loras]
        found += [embedding.path for embedding in self.embeddings]
        return tuple(dict.fromkeys(found))

    def files(self) -> tuple[str, ...]:
        """Return the names of `paths`, relative to the directory, as fingerprints have them."""
        return tuple(map(self.file_name, self.paths()))

    def file_name(self, path: Path) -> str:
        """Return the name of one of `paths`: the same wherever the model lies."""
        for index, lora in enumerate(self.loras):
            if path == lora.path:
                return f"lora/{index}.safetensors"
        for index, embedding in enumerate(self.embeddings):
            if path == embedding.path:
                return f"embedding/{index}.safetensors"
        name = self.vae.name_of(path) if self.vae else None
        if name is None and self.single:
            name = self.single.name_of(path)
        return name or Path(os.path.relpath(path, self.directory)).as_posix()

    def hashes(self, *, cached: bool = False) -> dict[Path, File]:
        """Hash every file that is read.

        Args:
            cached: but no large one that was hashed before, and not touched since; see
                `cached_hashes`.
        """
        names = [os.path.relpath(path, self.directory) for path in self.paths()]
        hashed = (cached_hashes if cached else hash_files)(self.directory, names)
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
            if (part := self.part(component)) is not None:
                check_safetensors(part.file, part.prefix)
                continue
            for path in self.weight_paths(component):
                check_file(self.root(component), path)
                check_safetensors(path)

    def plain_fingerprint(self, hashes: Mapping[Path, File]) -> str:
        """Hash configuration and weights, without LoRA files; see `record`."""
        digest = hashlib.sha256()
        loras = {lora.path for lora in self.loras}
        for name, path in zip(self.files(), self.paths(), strict=True):
            if path not in loras:
                digest.update(f"{name}\0{hashes[path].sha256}\n".encode())
        if self.single:
            digest.update(json.dumps(self.single.changes, sort_keys=True).encode())
        for embedding in self.embeddings:
            digest.update(json.dumps(embedding.token).encode())
        return digest.hexdigest()

    def record(self, hashes: Mapping[Path, File] | None = None) -> Source:
        """Return what the manifest says of the source.

        Args:
            hashes: those of its files, where they are known; they are hashed otherwise.
        """
        hashes = self.hashes() if hashes is None else hashes
        return Source(
            kind=self.kind,
            model=self.model,
            revision=self.revision,
            fingerprint=hash_with_loras(self.plain_fingerprint(hashes), self.loras, hashes),
            config=self.single.config if self.single else None,
            vae=str(self.vae.path) if self.vae else None,
            loras=applied(self.loras, hashes),
            embeddings=added(self.embeddings, hashes),
        )


def resolve_source(
    model: str,
    weights: Weights = "pretrained",
    *,
    revision: str | None = None,
    download: bool = True,
    config: str | None = None,
    vae: str | None = None,
    loras: Sequence[GivenLora] = (),
    embeddings: Sequence[GivenEmbedding] = (),
) -> ModelSource:
    """Find a model by name, folder, file or Hugging Face id, and check that it can be built.

    Only an id (or a name whose weights live on the hub) is ever downloaded: first its
    configuration, and when that can be built, the weights that are read.

    Args:
        model: the name, folder, checkpoint's file or id; an id may end with `@` and a revision.
        weights: "pretrained", or "random" for the configuration alone.
        revision: of an id, as a bundle's manifest records it.
        download: whether anything may be downloaded that is not in the cache.
        config: of a file, a folder or a name whose configurations overrule what is found out.
        vae: a file or a folder with the VAE to build in place of the model's own.
        loras: LoRA files that change the weights, each with its scale.
        embeddings: textual inversion files, each with its token, or None for the file's own.

    Raises:
        InvalidRequestError: an unknown name, `config` of what is no file, or files that `with_vae`,
            `with_loras` or `with_embeddings` refuse.
        ModelError: no diffusers pipeline, one that has nothing to gate, pickled, missing or
            truncated weights, or a download that failed.
    """
    located = locate(model, weights, revision, download=download, config=config)
    pipeline = pipeline_class(located.directory, located.model, located.names(download=download))
    index = read_json(located.directory / "model_index.json")
    aesthetic = index.get("requires_aesthetics_score") is True
    family = family_of(pipeline, located.model, aesthetic=aesthetic)
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
        single=located.single,
    )
    if vae is not None:
        source = with_vae(source, open_vae(vae))
    own = {name: cls for name, cls in family.weights.items() if name != "vae" or not source.vae}
    if source.single:
        check_complete(source.single, own)
    source.check_texts((*family.weights, "scheduler", *family.extras))
    check_components(source, partial(located.listing, download=download))
    if source.kind != "random":
        source.check_texts(spec.component for spec in family.tokenizers(source))
        for spec in family.tokenizers(source):
            names = [path.name for path in source.text_files(spec.component)]
            check_tokenizer_files(source.folder(spec.component), spec.class_name, names)
    family.check(source)
    if source.config(family.denoiser).get("time_cond_proj_dim") is not None:
        source = replace(source, guidance="embedded")
    if located.defaults is None:
        source = replace(source, defaults=own_defaults(source))
    samplers(source)  # refuses a model that none serves
    source = with_embeddings(with_loras(source, loras), embeddings)
    if located.hub:
        hub.fetch_weights(located.hub, own, download=download)
    if source.kind != "random":
        source.check_weights()
    return source
