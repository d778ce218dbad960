"""The model names that `build_bundle` knows, and where their defaults come from."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tgate_export.bundle.manifest import Defaults, Guidance
from tgate_export.common.errors import InvalidRequestError
from tgate_export.families.registry import FAMILIES, family_folder
from tgate_export.families.spec import Family

# diffusers' upsampler changes its path at 64 samples, and guidance doubles the batch.
MAX_BATCH = 31

_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class NamedModel:
    """A model that can be built by name.

    Attributes:
        name: what `build_bundle` takes as a model.
        family: the family module that loads it.
        summary: one line for people.
        directory: packaged pipeline; only its configuration when `hub_id` is set.
        hub_id: Hugging Face id of the pretrained weights; None when they are packaged.
        parameters: how many weights each component has.
        build_gib: peak of memory of a build in fp16 at its size, GiB, as it was measured.
        size: default width and height in pixels.
        defaults: how it is sampled unless told otherwise.
        origin: where the defaults come from.
        shared: components whose configuration is another packaged pipeline's -> its folder.
        guidance: "none" for a model that was distilled to need none.
    """

    name: str
    family: str
    summary: str
    directory: Path
    hub_id: str | None
    parameters: Mapping[str, int]
    build_gib: float
    size: tuple[int, int]
    defaults: Defaults
    origin: str
    shared: Mapping[str, Path] = field(default_factory=dict)
    guidance: Guidance = "classifier-free"

    @property
    def denoiser_parameters(self) -> int:
        """How many weights its denoiser has."""
        return self.parameters[FAMILIES[self.family].denoiser]


def _named_models() -> dict[str, NamedModel]:
    """Read every family's `names.toml`, the smallest models first."""
    tables = {
        name: (family, table)
        for family in FAMILIES.values()
        for name, table in _read(family).items()
    }
    folders = {name: _folder(name, *entry) for name, entry in tables.items()}
    models = [
        NamedModel(
            name=name,
            family=family.name,
            summary=table["summary"],
            directory=folders[name],
            hub_id=table.get("hub_id"),
            parameters=table["parameters"],
            build_gib=table["build_gib"],
            size=tuple(table["size"]),
            defaults=family.defaults.model_copy(update=table.get("defaults", {})),
            origin=table["origin"],
            shared={part: folders[other] for part, other in table.get("shared", {}).items()},
            guidance=table.get("guidance", "classifier-free"),
        )
        for name, (family, table) in tables.items()
    ]
    return {model.name: model for model in sorted(models, key=lambda m: m.denoiser_parameters)}


def _read(family: Family) -> dict[str, dict[str, Any]]:
    text = (family_folder(family) / "names.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _folder(name: str, family: Family, table: Mapping[str, Any]) -> Path:
    if "folder" in table:
        return _PACKAGE / str(table["folder"])
    return family_folder(family) / "configs" / name


NAMED_MODELS = _named_models()


def named_by_hub_id(hub_id: str) -> dict[str, Any]:
    """Return `defaults` and `guidance` of the named model with these weights, if there is one."""
    for model in NAMED_MODELS.values():
        if model.hub_id is not None and model.hub_id.lower() == hub_id.lower():
            return {"defaults": model.defaults, "guidance": model.guidance}
    return {}


def unknown_model(model: str) -> InvalidRequestError:
    """Return the error for a model that is neither a name, what is there, nor an id."""
    if Path(model).is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        return InvalidRequestError(f"{model}: no such folder; give a diffusers folder")
    near = difflib.get_close_matches(model.lower(), NAMED_MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(NAMED_MODELS)}."
    return InvalidRequestError(
        f"unknown model {model!r}: {hint} It can also be a diffusers folder, a checkpoint's "
        "file or a Hugging Face id (owner/name)"
    )
