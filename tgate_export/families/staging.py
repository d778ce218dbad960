"""A component as the libraries get to see it: a folder of links to what was checked and hashed.

transformers and diffusers decide by what lies in a folder, and by what its configuration says,
which files they open and which code they run: adapters, pickles, kernels from the hub. Here they
find the chosen weights under the names that they look for, a configuration of plain settings, and
nothing else.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgate_export.families.model_files import check_file, read_json, weights_name

if TYPE_CHECKING:
    from tgate_export.families.source import ModelSource

# What transformers would take from a tokenizer's configuration as code or as files.
_NOT_FOLLOWED = ("auto_map", "fast_tokenizer_files", "init_inputs", "trust_remote_code")


def plain_config(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration that a class itself declares, and bare numbers.

    Numbers name neither files nor code; text, lists and objects may, and those that the class does
    not declare are left out: `transformers_weights`, `attn_implementation`, `auto_map`.

    Args:
        cls: a model class of diffusers or transformers.
        config: its `config.json`.
    """
    declared = _declared(cls)
    return {
        key: value
        for key, value in config.items()
        if key in declared or isinstance(value, (bool, int, float))
    }


def _declared(cls: Any) -> set[str]:
    if cls.__module__.startswith("diffusers"):
        return {*inspect.signature(cls.__init__).parameters, "_diffusers_version"} - {"self"}
    from transformers import PretrainedConfig

    # What it has of its own: `dense_act_fn` of T5 is no parameter, but published all the same.
    names = {*inspect.signature(cls.config_class.__init__).parameters, *vars(cls.config_class())}
    for part in cls.config_class.__mro__:
        if issubclass(part, PretrainedConfig) and part is not PretrainedConfig:
            names |= set(vars(part).get("__annotations__", ()))
    names -= {*PretrainedConfig.__annotations__, *vars(PretrainedConfig()), "self", "kwargs"}
    return {name for name in names if not name.startswith("_")}


@contextmanager
def staged_weights(source: ModelSource, component: str, cls: Any) -> Iterator[Path]:
    """Give a folder to load a component with weights from, and remove it.

    Args:
        source: the pipeline, whose files were checked.
        component: a component with weights.
        cls: its class.
    """
    folder, weights = source.folder(component), source.weight_files(component)
    whole = weights_name(source.weights[component])
    with tempfile.TemporaryDirectory(prefix="tgate-export-") as made:
        staged = Path(made)
        config = plain_config(cls, source.config(component))
        (staged / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if weights.shards is None:
            _link(staged / whole, folder / weights.files[0])
        else:
            for name in weights.files:
                _link(staged / name, folder / name)
            size = sum((folder / name).stat().st_size for name in weights.files)
            index = {"metadata": {"total_size": size}, "weight_map": dict(weights.shards)}
            (staged / f"{whole}.index.json").write_text(json.dumps(index), encoding="utf-8")
        yield staged


@contextmanager
def staged_tokenizer(source: ModelSource, component: str) -> Iterator[Path]:
    """Give a folder to load a tokenizer from, and remove it."""
    with tempfile.TemporaryDirectory(prefix="tgate-export-") as made:
        staged = Path(made)
        for path in source.text_files(component):
            check_file(source.root(component), path)
            if path.name == "tokenizer_config.json":
                config = {
                    key: value
                    for key, value in read_json(path).items()
                    if key not in _NOT_FOLLOWED and not key.endswith("_file")
                }
                (staged / path.name).write_text(json.dumps(config), encoding="utf-8")
            else:
                _link(staged / path.name, path)
        yield staged


def _link(staged: Path, path: Path) -> None:
    staged.symlink_to(path.resolve())
