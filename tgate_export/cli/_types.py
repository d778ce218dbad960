"""Types of arguments: what a word means, and how the shell completes it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

# Where `build` puts bundles unless told otherwise.
_FOLDER = "engines"
_MANIFEST = "manifest.json"


class BundlePath(click.Path):
    """A bundle's folder; `NAME` is `engines/NAME` where there is no folder of that name."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:  # fmt: skip
        """Return the folder."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        built = Path(_FOLDER) / path
        named = len(path.parts) == 1 and not path.exists()
        return built if named and is_bundle(built) else path

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer what was built here, and else the shell's own folders."""
        built = _begin_with(incomplete, _built())
        return built or [CompletionItem(incomplete, type="dir")]


class Model(click.ParamType):
    """A model's name, folder, file or id."""

    name = "model"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the names, and else the shell's own folders and files."""
        return _begin_with(incomplete, self._names()) or [CompletionItem(incomplete, type="file")]

    def _names(self) -> set[str]:
        from tgate_export.families.names import NAMED_MODELS

        return set(NAMED_MODELS)


class ModelOrBundle(Model):
    """A model's name, folder, file or id, or the folder of a bundle or its name in `engines`."""

    def _names(self) -> set[str]:
        return super()._names() | _built()


class LoraFile(click.ParamType):
    """A LoRA file, and after a colon what its change of the weights is multiplied by: 1 without."""

    name = "lora"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """Return the file and its scale."""
        file, colon, scale = str(value).rpartition(":")
        if not colon or Path(value).is_file():
            return str(value), 1.0
        try:
            return file, float(scale)
        except ValueError:
            if Path(file).is_file():
                self.fail(f"{file}: its scale must be a number, got {scale!r}", param, ctx)
            return str(value), 1.0  # no such file, as the build says

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the shell's own files."""
        return [CompletionItem(incomplete, type="file")]


class EmbeddingFile(click.ParamType):
    """A textual inversion file, and after a colon the token that stands for it."""

    name = "embedding"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str | None]:
        """Return the file, and its token where one is given."""
        file, colon, token = str(value).rpartition(":")
        whole = not colon or Path(value).is_file() or not Path(file).is_file()
        return (str(value), None) if whole else (file, token)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the shell's own files."""
        return [CompletionItem(incomplete, type="file")]


class BackendName(click.ParamType):
    """A backend; `select` refuses what is none."""

    name = "backend"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer every backend."""
        from tgate_export.runtime.backends import names

        return _begin_with(incomplete, names())


class SchedulerName(click.ParamType):
    """A sampler; the bundle refuses what it has not."""

    name = "scheduler"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer those of the bundle that was named."""
        from tgate_export.bundle.integrity import read_manifest
        from tgate_export.common.errors import TGateError

        # An unfinished line has no parsed arguments yet: the first that is a bundle's folder.
        for word in ctx.args:
            try:
                manifest = read_manifest(BundlePath().convert(word, None, None))
            except TGateError:
                continue
            return _begin_with(incomplete, manifest.samplers)
        return []


def is_bundle(path: Path) -> bool:
    """Whether there is a bundle's folder."""
    return (path / _MANIFEST).is_file()


def _built() -> set[str]:
    return {path.parent.name for path in Path(_FOLDER).glob(f"*/{_MANIFEST}")}


def _begin_with(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]
