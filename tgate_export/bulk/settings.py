"""What a bulk run is made with; the same for the whole of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tgate_export.bundle.manifest import Manifest
from tgate_export.runtime.backends.base import BackendOptions

# Kind of picture, as Pillow calls it -> suffix.
PICTURES: Mapping[str, str] = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
VIDEOS: Mapping[str, str] = {"WEBP": ".webp", "GIF": ".gif", "PNG": ".png"}


@dataclass(frozen=True)
class BulkSettings:
    """All that decides what a bulk run makes. Paths are absolute, for whatever machine reads them.

    Attributes:
        bundle: the bundle's folder.
        prompts: file of a JSON object a line.
        image_folder: folder that pictures which lines name are in.
        out: folder that is filled.
        defaults: arguments of `make_request` for lines that do not have them.
        seed: a line without a seed has this one and its number.
        kind: a key of `PICTURES`, for videos of `VIDEOS`.
        backend: a name that `select` takes.
        backend_options: see there.
        max_batch: images in one engine call; the bundle's largest batch when None.
    """

    bundle: Path
    prompts: Path
    image_folder: Path
    out: Path
    defaults: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    kind: str = "PNG"
    backend: str = "auto"
    backend_options: BackendOptions = field(default_factory=BackendOptions)
    max_batch: int | None = None

    def batch(self, manifest: Manifest) -> int:
        """Return how many images one engine call is to have."""
        most = manifest.batch.max
        return max(min(self.max_batch or most, most), manifest.batch.min)


def image_file(number: int, kind: str) -> str:
    """Return where a line's image is, relative to the folder: a thousand to a folder."""
    suffix = (PICTURES | VIDEOS)[kind]  # type: ignore[operator]
    return f"images/{number // 1000:03d}/{number:06d}{suffix}"
