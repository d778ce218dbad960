"""Exported units in the user's cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from tgate_export.build.request import BuildRequest
from tgate_export.bundle.manifest import File, Manifest
from tgate_export.export.content_cache import ContentCache
from tgate_export.export.unit import GRAPHS_FOLDER, ExportedUnit
from tgate_export.families.units import Unit


def load_unit(
    cache: ContentCache, key: str, folder: Path
) -> tuple[ExportedUnit, Mapping[str, File]] | None:
    """Copy a unit's files out of the cache, and return it with their hashes; None without one."""
    record = cache.load(key, folder)
    if record is None:
        return None
    try:
        unit = ExportedUnit.model_validate_json(json.dumps(record.content))
    except ValidationError:
        unit = None
    if unit is None or unit.files() != record.files.keys():
        for name in record.files:
            (folder / name).unlink()
        return None
    return unit, record.files


def store_unit(
    cache: ContentCache, key: str, label: str, unit: ExportedUnit, manifest: Manifest, folder: Path
) -> None:
    """Store a unit's files in the cache.

    Args:
        cache: the cache.
        key: the unit's.
        label: what it is, for people.
        unit: what was exported, and compared.
        manifest: the bundle's, which has the hashes.
        folder: the bundle's folder of graphs.
    """
    files = {name: manifest.files[f"{GRAPHS_FOLDER}/{name}"] for name in sorted(unit.files())}
    cache.store(key, label, folder, files, unit.model_dump(mode="json"))


def label(request: BuildRequest, unit: Unit) -> str:
    """Return what people call a unit."""
    options = request.options
    size = f"{options.size.width}x{options.size.height}"
    return f"{request.source.name} {unit.name} {options.precision} {size}"
