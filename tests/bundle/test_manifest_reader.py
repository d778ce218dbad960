"""The text of a `manifest.json`: which versions are read, and that it has one reading."""

from __future__ import annotations

import copy
import json

import pytest

from tests.support.manifest import VALID, WHERE, changed, refused
from tgate_export.bundle.manifest import SCHEMA_MINOR, Manifest
from tgate_export.bundle.manifest_reader import parse_manifest


def test_newer_schema_version_says_to_update() -> None:
    # A newer manifest may have any other fields: the version is looked at first.
    message = refused({"schema_version": 3, "anything": []})
    assert "version 3" in message
    assert "update tgate-export" in message


def test_older_schema_version_says_to_build_again() -> None:
    message = refused({"schema_version": 1, "anything": []})
    assert "version 1" in message
    assert message.endswith("build the bundle again")


def test_a_newer_minor_version_may_have_more_fields() -> None:
    raw = copy.deepcopy(VALID) | {"schema_minor": SCHEMA_MINOR + 1, "surprise": {"a": 1}}
    raw["graphs"]["full"]["surprise"] = 1
    raw["graphs"]["full"]["inputs"][0]["from"]["surprise"] = 1
    raw["parameters"]["gate_step"]["surprise"] = 1
    raw["methods"]["tgate"]["rule"][0]["all"][0]["surprise"] = 1
    found = parse_manifest(json.dumps(raw), WHERE)
    newer = VALID | {"schema_minor": SCHEMA_MINOR + 1}
    assert found == Manifest.model_validate_json(json.dumps(newer))
    assert "Extra" in refused(raw | {"schema_minor": SCHEMA_MINOR})


def test_an_ability_that_this_reader_lacks_is_named() -> None:
    raw = VALID | {"schema_minor": 1, "requires": ["telepathy"]}
    assert "needs 'telepathy'" in refused(raw)
    assert "update tgate-export" in refused(raw)


@pytest.mark.parametrize("version", [0, -1, "1", True, None, 1.5])
def test_other_schema_version_is_refused(version: object) -> None:
    assert "schema_version" in refused(changed("schema_version", version))


def test_json_has_one_reading() -> None:
    text = json.dumps(VALID)
    twice = text.replace('"bytes": 3', '"bytes": 3, "bytes": 4', 1)
    assert "the key 'bytes' is there twice" in refused(twice)
    assert "the key 'files' is there twice" in refused(f'{text[:-1]}, "files": {{}}}}')
    for number in ("NaN", "Infinity", "1e999"):
        assert f"{number} is not a finite number" in refused(text.replace("7.5", number))
    assert "more than 64 deep" in refused(f'{text[:-1]}, "x": {"[" * 64}{"]" * 64}}}')
    assert "x: Extra" in refused(f'{text[:-1]}, "x": {"[" * 63}{"]" * 63}}}')


@pytest.mark.parametrize("text", ["", "{", "not json", "\ufeff{}", "[" * 100_000])
def test_text_that_is_not_json_is_refused(text: str) -> None:
    assert "not valid JSON" in refused(text)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "{}", '{"name": "web app"}'])
def test_other_json_is_not_a_manifest(text: str) -> None:
    assert "not a bundle manifest" in refused(text)
