"""The tiny pipelines of all families, and how tests build bundles of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tgate_export.build.build import BuildResult, build_bundle
from tgate_export.bundle.manifest import Range
from tgate_export.families.tiny import tiny_pipelines
from tgate_export.samplers import specs

FAMILIES = tiny_pipelines()
PIPELINES = {kind.name: kind for kinds in FAMILIES.values() for kind in kinds}
# Those that make images of texts, and of them those with classifier-free guidance.
OF_TEXT = [name for name, kind in PIPELINES.items() if not (kind.video or kind.refiner)]
GUIDED = [name for name in OF_TEXT if PIPELINES[name].guidance == "classifier-free"]

# A dynamic batch takes the exporter twice as long: once for each family.
_DYNAMIC = {kinds[0].name for kinds in FAMILIES.values()}
SIZE = (Range(min=16, opt=16, max=16),) * 2
FIXED = Range(min=2, opt=2, max=2)


def save(name: str, folder: Path) -> None:
    """Save a tiny pipeline as a diffusers folder."""
    PIPELINES[name].save(folder)


def build(name: str, folder: Path, out: Path, **options: Any) -> BuildResult:
    """Build a saved one for images of 16 x 16 pixels; `options` are `build_bundle`'s."""
    guidance = PIPELINES[name].guidance
    usual: dict[str, Any] = {
        "size": SIZE,
        "batch": None if name in _DYNAMIC else FIXED,
        "guidance": None if guidance == "embedded" else guidance,
    }
    return build_bundle(str(folder), out=out, **usual | options)


@contextmanager
def only_samplers(*names: str) -> Iterator[None]:
    """Let builds compile these alone: all of them take half a minute, and minutes with starts."""
    chosen = {name: specs.SAMPLERS[name] for name in names}
    with mock.patch.object(specs, "SAMPLERS", chosen):
        yield
