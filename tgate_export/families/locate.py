"""Where a model's files are, before anything of them is read."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tgate_export.bundle.manifest import Defaults, Guidance
from tgate_export.common.errors import InvalidRequestError
from tgate_export.common.hints import Argument
from tgate_export.families import hub
from tgate_export.families.names import NAMED_MODELS, named_by_hub_id
from tgate_export.families.reference import reference
from tgate_export.families.single_file import SingleFile, open_single_file

Weights = Literal["pretrained", "random"]
Kind = Literal["packaged", "local", "hub", "random"]


@dataclass(frozen=True)
class Located:
    """Where a model's files are; `defaults` are a name's own.

    Of a checkpoint in one file, `directory` has its configurations.
    """

    kind: Kind
    model: str
    name: str
    directory: Path
    hub: hub.HubModel | None = None
    defaults: Defaults | None = None
    shared: Mapping[str, Path] = field(default_factory=dict)
    guidance: Guidance = "classifier-free"
    single: SingleFile | None = None

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


def locate(
    model: str,
    weights: Weights,
    revision: str | None,
    *,
    download: bool,
    config: str | None = None,
) -> Located:
    """Find a model's files; see `resolve_source`."""
    named = NAMED_MODELS.get(model)
    if named is not None and weights == "random":
        return Located(
            "random", model, model, named.directory, None, named.defaults, named.shared,
            named.guidance,
        )  # fmt: skip
    known = reference(model)
    if known.kind == "local" and Path(known.model).is_file():
        return _of_file(Path(known.model), known.name, weights, config)
    if config is not None:
        raise InvalidRequestError(
            f"config {config} is for a checkpoint in one file, and {model} is none",
            "leave ",
            Argument("config"),
            " out",
            field="config",
        )
    if known.kind == "local":
        kind: Kind = "random" if weights == "random" else "local"
        return Located(kind, known.model, known.name, Path(known.model))
    if known.kind == "packaged":
        assert named is not None  # packaged models are named
        return Located("packaged", model, model, named.directory, None, named.defaults)
    if weights == "random":
        raise InvalidRequestError(
            f"weights random takes a model name or a folder, not the hub id {model!r}"
        )
    found = hub.find_model(known.model, revision or known.revision, download=download)
    return Located(
        "hub", known.model, known.name, found.pipeline.directory, found,
        **named_by_hub_id(known.model),
    )  # fmt: skip


def _of_file(path: Path, name: str, weights: Weights, config: str | None) -> Located:
    if weights == "random":
        raise InvalidRequestError(
            f"weights random takes a model name or a folder, and {path} is a file",
            "leave ",
            Argument("weights"),
            " out",
            field="weights",
        )
    single = open_single_file(path, config)
    found = single.configuration
    # A name that was found says what the file is made like; one that was given, how it is sampled.
    defaults = found.defaults if config is not None else None
    guidance = found.guidance if config is not None else "classifier-free"
    return Located(
        "local", str(path), name, found.directory, None, defaults, found.shared, guidance, single
    )
