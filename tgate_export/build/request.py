"""What a build is to make: everything that is settled before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tgate_export.build.options import BuildOptions
from tgate_export.bundle.manifest import File, Source
from tgate_export.families.source import ModelSource


@dataclass(frozen=True)
class BuildRequest:
    """What is built, of what.

    Attributes:
        source: the pipeline.
        hashes: of its files.
        record: what the manifest says of it.
        options: the build's settings.
        key: hash of everything that the bundle depends on.
    """

    source: ModelSource
    hashes: Mapping[Path, File]
    record: Source
    options: BuildOptions
    key: str
