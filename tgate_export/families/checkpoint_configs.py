"""The configurations that a checkpoint is built with: packaged ones, or a folder's."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tgate_export.bundle.manifest import Defaults, Guidance
from tgate_export.common.errors import InvalidRequestError, ModelError
from tgate_export.common.hints import Argument
from tgate_export.families.components import inner_config
from tgate_export.families.model_files import check_file, read_json
from tgate_export.families.names import NAMED_MODELS, NamedModel

Changes = Mapping[str, Mapping[str, Any]]
_CLASSES = {"UNet2DConditionModel", None}
# What checkpoints of named models' architectures are, whoever trained them.
_TITLES = {
    "sd15": "Stable Diffusion 1.x",
    "sd21": "Stable Diffusion 2.x of 768 pixels",
    "sdxl": "SDXL",
    "sdxl-refiner": "an SDXL refiner",
    "lcm-sd15": "an LCM of Stable Diffusion 1.x",
    "lcm-sdxl": "an LCM of SDXL",
}


@dataclass(frozen=True)
class Configuration:
    """Where configurations are.

    Attributes:
        name: a packaged one's; None for a folder.
        directory: with `model_index.json`.
        shared: components whose configuration is in another folder -> that one.
        changes: entries that are other than in the files, by component.
        defaults: how a model of a name is sampled.
        guidance: how a model of a name is guided.
    """

    name: str | None
    directory: Path
    shared: Mapping[str, Path] = field(default_factory=dict)
    changes: Changes = field(default_factory=dict)
    defaults: Defaults | None = None
    guidance: Guidance = "classifier-free"

    def config(self, component: str, class_name: str | None = None) -> dict[str, Any]:
        """Return a component's configuration.

        Args:
            component: its folder.
            class_name: "library.Class" of it, where it may be part of a whole CLIP's.

        Raises:
            ModelError: it is missing or no JSON.
        """
        path = self.shared.get(component, self.directory) / component / "config.json"
        check_file(self.directory, path)
        return {**inner_config(read_json(path), class_name), **self.changes.get(component, {})}


def _others() -> dict[str, dict[str, Any]]:
    path = Path(__file__).with_name("checkpoints.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


_OTHERS = _others()


def packaged(name: str) -> Configuration:
    """Return the configurations of a named model, or of a checkpoint of `checkpoints.toml`."""
    if name not in _OTHERS:
        return _of_named(name, NAMED_MODELS[name])
    table = _OTHERS[name]
    like = _of_named(name, NAMED_MODELS[table["like"]])
    changes = {key: value for key, value in table.items() if isinstance(value, dict)}
    return Configuration(name, like.directory, like.shared, changes)


def title_of(name: str) -> str:
    """Return what people call a model that was found to have a packaged configuration."""
    return _TITLES.get(name) or str(_OTHERS[name]["title"])


def given(config: str) -> Configuration:
    """Return the configurations that a user named.

    Args:
        config: a folder in diffusers' layout, or a name.

    Raises:
        InvalidRequestError: it is none of these.
        ModelError: the folder has no UNet of Stable Diffusion.
    """
    if config in NAMED_MODELS or config in _OTHERS:
        found = packaged(config)
    elif Path(config).is_dir():
        found = Configuration(None, Path(config).resolve())
    else:
        known = (name for name, model in NAMED_MODELS.items() if _is_unet(_of_named(name, model)))
        raise InvalidRequestError(
            f"{config!r} is neither a diffusers folder nor one of {', '.join((*known, *_OTHERS))}",
            "choose another ",
            Argument("config"),
            field="config",
        )
    if not _is_unet(found) or not (found.directory / "model_index.json").is_file():
        raise ModelError(
            f"{config} has no model_index.json with a unet/config.json of Stable Diffusion or SDXL",
            "choose another ",
            Argument("config"),
        )
    return found


def _of_named(name: str, model: NamedModel) -> Configuration:
    return Configuration(name, model.directory, model.shared, {}, model.defaults, model.guidance)


def _is_unet(found: Configuration) -> bool:
    path = found.shared.get("unet", found.directory) / "unet" / "config.json"
    return path.is_file() and read_json(path).get("_class_name") in _CLASSES
