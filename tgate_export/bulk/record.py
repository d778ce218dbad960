"""What the folder of a bulk run was made with: what a later run has to have, too."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tgate_export import __version__
from tgate_export.bulk.output_folder import PARTIAL, RECORD, RUNNING, write_file
from tgate_export.bulk.settings import BulkSettings
from tgate_export.bundle.hashing import hash_file
from tgate_export.bundle.manifest import MANIFEST_NAME, Manifest
from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.common.json_file import RECORD_BYTES, read_json
from tgate_export.common.versions import versions_of

# What rounds: the packages that compute, and the one that makes files.
_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "pillow", "tensorrt")
# Hashes and settings that have to agree -> what they are called.
_HASHES = {"bundle_sha256": "bundle", "prompts_sha256": "file of prompts"}
_SETTINGS = {
    "seed": "seed", "kind": "format", "backend": "backend", "precision": "precision",
    "max_batch": "max_batch",
}  # fmt: skip


class RunRecord(BaseModel):
    """The content of `run.json`.

    Attributes:
        schema_version: of this file.
        bundle: its name.
        bundle_sha256: of its `manifest.json`, which has the hashes of all its files.
        prompts: name of the file of prompts.
        prompts_sha256: of that file.
        lines: with a prompt.
        seed: see `BulkSettings`, as the next ones.
        kind: of the pictures.
        backend: what ran.
        precision: asked for.
        max_batch: images in one engine call.
        defaults: of lines that do not say otherwise; of a picture its sha256.
        versions: of what computed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    bundle: str
    bundle_sha256: str
    prompts: str
    prompts_sha256: str
    lines: int
    seed: int
    kind: str
    backend: str
    precision: str | None
    max_batch: int
    defaults: dict[str, Any]
    versions: dict[str, str]

    @classmethod
    def of(
        cls, settings: BulkSettings, manifest: Manifest, prompts_sha256: str, lines: int
    ) -> RunRecord:
        """Describe a run.

        Raises:
            InvalidRequestError: a picture of the defaults that cannot be read.
        """
        return cls(
            bundle=manifest.name,
            bundle_sha256=hash_of_bundle(settings.bundle),
            prompts=settings.prompts.name,
            prompts_sha256=prompts_sha256,
            lines=lines,
            seed=settings.seed,
            kind=settings.kind,
            backend=settings.backend,
            precision=settings.backend_options.precision,
            max_batch=settings.batch(manifest),
            defaults={name: _as_json(value) for name, value in settings.defaults.items()},
            versions={"tgate-export": __version__, **versions_of(_PACKAGES)},
        )

    def differences(self, other: RunRecord) -> list[str]:
        """Return how a later run differs, each as in "seed 1, now 2"."""
        found = [
            f"another {called}"
            for name, called in _HASHES.items()
            if getattr(self, name) != getattr(other, name)
        ]
        mine, theirs = self._compared(), other._compared()
        for name in dict.fromkeys([*mine, *theirs]):
            values = mine.get(name), theirs.get(name)
            if values[0] != values[1]:
                said = ["the default" if value is None else value for value in values]
                found.append(f"{name} {said[0]}, now {said[1]}")
        return found

    def _compared(self) -> dict[str, Any]:
        return {called: getattr(self, name) for name, called in _SETTINGS.items()} | self.defaults


def hash_of_bundle(bundle: Path) -> str:
    """Return the sha256 of a bundle's manifest."""
    return hash_file(bundle / MANIFEST_NAME).sha256


def recorded(out: Path) -> RunRecord | None:
    """Return what a folder was made with; None for one that is empty.

    Raises:
        InvalidRequestError: there is something in it, and no run made it.
        TGateError: its record cannot be read.
    """
    if not (out / RECORD).exists():
        others = [path.name for path in out.iterdir() if path.name not in (RUNNING, PARTIAL)]
        if others:
            raise InvalidRequestError(
                f"{out} has files and no {RECORD}, so that it is no folder of such a run: name "
                "another one"
            )
        return None
    try:
        return RunRecord.model_validate(read_json(out / RECORD, RECORD_BYTES))
    except (OSError, ValueError, ValidationError) as error:
        raise TGateError(
            f"{out / RECORD} cannot be read ({type(error).__name__}): name another folder"
        ) from None


def write_record(out: Path, record: RunRecord) -> None:
    """Write it.

    Raises:
        WriteError: it cannot be written.
    """
    text = json.dumps(record.model_dump(), indent=1) + "\n"
    write_file(out, RECORD, text.encode())


def _as_json(value: Any) -> Any:
    """Return a value as a later reading of the record gives it."""
    if isinstance(value, Path):
        try:
            return hashlib.sha256(value.read_bytes()).hexdigest()
        except OSError as error:
            raise InvalidRequestError(f"cannot read {value}: {error.strerror}") from None
    return list(value) if isinstance(value, tuple) else value
