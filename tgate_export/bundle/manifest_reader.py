"""Reading `manifest.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tgate_export.bundle import tiles
from tgate_export.bundle.manifest import SCHEMA_MINOR, SCHEMA_VERSION, Manifest
from tgate_export.bundle.manifest_checks import ReferenceFaultError
from tgate_export.common.errors import BundleError
from tgate_export.common.json_file import parse_json

# Abilities beyond those of 2.0 that this reader has.
ABILITIES = frozenset({"prompt-chunks", "prompt-syntax", tiles.ABILITY})


def parse_manifest(text: str, where: Path) -> Manifest:
    """Read a manifest's text.

    Raises:
        BundleError: when it is no manifest, or one that this reader is too old or too new for.
    """
    try:
        raw = parse_json(text)
    except ValueError as error:
        raise BundleError(f"{where} is not valid JSON ({error}): build the bundle again") from None
    if not isinstance(raw, dict) or "schema_version" not in raw:
        raise BundleError(f"{where} is not a bundle manifest: it has no schema_version")
    version, minor = raw["schema_version"], raw.get("schema_minor", 0)
    if type(version) is not int or type(minor) is not int:  # `true` would pass for 1
        raise BundleError(f"{where} is not a bundle manifest: schema_version is {version!r}")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{where} has schema version {version}, this tgate-export reads {SCHEMA_VERSION}: "
            "update tgate-export, or build the bundle again"
        )
    if 0 < version < SCHEMA_VERSION:
        raise BundleError(
            f"{where} has schema version {version}, this tgate-export reads {SCHEMA_VERSION}: "
            "build the bundle again"
        )
    requires = raw.get("requires", [])
    lacking = [name for name in requires if name not in ABILITIES] if _are_texts(requires) else []
    if lacking:
        raise BundleError(
            f"{where} needs {lacking[0]!r}, which this tgate-export cannot do: update tgate-export"
        )
    try:
        return Manifest.model_validate_json(
            text,
            extra="ignore" if minor > SCHEMA_MINOR else "forbid",
            by_alias=True,
            by_name=False,
        )
    except ValidationError as error:
        field, fault = first_fault(error, raw)
        raise BundleError(
            f"{where}: {field or 'manifest'}: {fault}: build the bundle again", field=field
        ) from None


def first_fault(error: ValidationError, raw: Any) -> tuple[str, str]:
    """Return the path of the first field that is wrong, as in the record, and what is wrong."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ReferenceFaultError):
        return cause.field, str(cause)
    path: list[str] = []
    inner: Any = raw
    for part in first["loc"]:
        in_list = isinstance(inner, list) and isinstance(part, int) and part < len(inner)
        if in_list or (isinstance(inner, dict) and part in inner):
            inner = inner[part]
        elif part == "[key]" or (first["type"] == "missing" and part == first["loc"][-1]):
            inner = None
        else:  # of the alternatives that a field has
            continue
        path.append(str(part))
    return ".".join(path), first["msg"]


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
