"""The published JSON schema of `manifest.json`."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

import tgate_export.bundle.manifest as manifest_module
from tests.support.manifest import VALID, changed
from tgate_export.bundle.integrity import read_manifest

SCHEMA = Path(manifest_module.__file__).with_name("manifest.schema.json")


def test_built_manifest_fits_the_schema(tiny_bundle: Path) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    validator.validate(json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8")))
    assert read_manifest(tiny_bundle).graphs.keys() == {
        "text_encoder", "full", "gated", "sampler", "vae_decoder",
    }  # fmt: skip


@pytest.mark.parametrize("field", ["precision", "files|graphs/full.onnx"])
def test_schema_refuses_what_the_reader_refuses(field: str) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.validate(VALID, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(field, "wrong"), schema)
