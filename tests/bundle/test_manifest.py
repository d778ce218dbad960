"""`manifest.json`: what it may say."""

from __future__ import annotations

import copy
import json

import pytest

from tests.support.manifest import ESCAPES, FILE, VALID, WHERE, changed, refused
from tgate_export.bundle.manifest import Range
from tgate_export.bundle.manifest_reader import parse_manifest


def test_valid_manifest_survives_a_round_trip() -> None:
    manifest = parse_manifest(json.dumps(VALID), WHERE)
    assert parse_manifest(manifest.to_json(), WHERE) == manifest
    assert json.loads(manifest.to_json()) == VALID


@pytest.mark.parametrize("path", ESCAPES)
@pytest.mark.parametrize("field", ["graphs|full|file", "graphs|full|weights", "samplers|ddim|file",
                                   "tokenizers|input_ids|file"])  # fmt: skip
def test_path_that_leaves_the_bundle_is_refused(field: str, path: str) -> None:
    raw = changed(field, path)
    raw["files"][path] = FILE  # listed, so that only the path itself is wrong
    message = refused(raw)
    assert "leaves the bundle" in message or "plain form" in message


@pytest.mark.parametrize("path", ESCAPES)
def test_listed_file_that_leaves_the_bundle_is_refused(path: str) -> None:
    raw = copy.deepcopy(VALID)
    raw["files"][path] = FILE
    assert "files" in refused(raw)


@pytest.mark.parametrize("path", ["\x1b[2J\x1b[1;1HPASSED", "a\nb", "a\u202eb", "a\x9bb"])
def test_paths_can_be_printed(path: str) -> None:
    raw = copy.deepcopy(VALID)
    raw["files"][path] = FILE
    message = refused(raw)
    assert "cannot be printed" in message
    assert message.isprintable()


def test_an_origin_has_one_name() -> None:
    raw = copy.deepcopy(VALID)
    entry = raw["graphs"]["full"]["inputs"][0]
    entry["origin"] = entry.pop("from")
    assert "graphs.full.inputs.0.from" in refused(raw)


def test_a_method_needs_no_gate() -> None:
    raw = copy.deepcopy(VALID)
    for name in ("gate_step", "sp_interval", "fi_interval", "warm_up"):
        del raw["parameters"][name]
    raw["methods"] = {"none": {"parameters": [], "rule": [{"phase": "full", "all": []}]}}
    assert parse_manifest(json.dumps(raw), WHERE).defaults.gate_step == 25


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "/x", ".x", "", "x" * 65, "a b", "a\x1b[2J", "[red]"]
)
@pytest.mark.parametrize(
    "field", ["graphs", "samplers", "tokenizers", "parameters", "caches", "methods"]
)
def test_names_are_plain(field: str, name: str) -> None:
    raw = copy.deepcopy(VALID)
    raw[field][name] = next(iter(raw[field].values()))
    message = refused(raw)
    assert "is not a plain name" in message
    assert message.isprintable()


@pytest.mark.parametrize(
    "field", sorted(VALID.keys() - {"schema_version", "schema_minor", "requires", "dimensions"})
)
def test_missing_field_is_named(field: str) -> None:
    raw = copy.deepcopy(VALID)
    del raw[field]
    assert f"{field}: Field required" in refused(raw)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("surprise", 1),
        ("graphs|full|surprise", 1),
        ("precision", "fp64"),
        ("parameters|gate_step|default", 0),
        ("parameters|sp_interval|default", 0),
        ("parameters|warm_up|default", -1),
        ("parameters|warm_up|default", "0"),
        ("parameters|warm_up|default", None),  # the rule reads it
        ("parameters|warm_up|type", "number"),
        ("parameters|scheduler|default", "euler"),
        ("parameters|scheduler|choices", ["ddim", "euler"]),
        ("parameters|guidance_scale|type", "colour"),
        ("parameters|guidance_scale|per", "day"),
        ("parameters|num_inference_steps|default", "25"),
        ("caches|cross_cache_0|shape", ["batch", 1, 65, 32]),
        ("caches|cross_cache_0|dtype", "float16"),
        ("methods", {}),
        ("methods|tgate|rule", []),
        ("methods|tgate|rule|1|all", [{"op": ">", "constant": 3}]),  # a step without a phase
        ("methods|tgate|rule|0|all|0|op", "=>"),
        ("methods|tgate|rule|0|all|0|parameter", "guidance_scale"),
        ("methods|tgate|rule|0|all|0|modulo", "warm_up"),  # may be 0
        ("methods|tgate|parameters", ["gate_step"]),
        ("methods|tgate|at_least", {"gate_step": "nope"}),
        ("parameters|seed", {"type": "integer"}),  # every run has one
        ("parameters|steps", {"type": "integer"}),
        ("dimensions", {"tokens_0": {"downsample": 0}}),
        ("batch|min", 2),  # above max
        ("size|multiple", 0),
        ("latents|channels", 4.5),
        ("absent_negative_prompt", "none"),
        ("graphs|full|inputs|0|from", {"loop": "nope"}),
        ("graphs|full|inputs|0|from", {}),
        ("graphs|full|inputs|0|from", "zeros"),
        ("graphs|full|inputs|0|from", {"formula": "the moon"}),
        ("graphs|full|inputs|0|from", {"formula": "time_ids"}),  # of another shape
        ("graphs|full|inputs|0|from", {"parameter": "nope"}),
        ("graphs|full|inputs|0|from", {"parameter": "guidance_scale"}),  # of another shape
        ("graphs|full|inputs|0|from", {"cache": "cross_cache_0"}),
        ("graphs|full|inputs|0|from", {"cache": "nope"}),
        ("graphs|full|inputs|0|from", {"image": "nope", "range": [0, 1], "layout": "BHWC"}),
        ("graphs|full|inputs|1|from", {"graph": "nope", "output": "prompt_embeds"}),
        ("graphs|full|inputs|1|from", {"graph": "text_encoder", "output": "nope"}),
        ("graphs|full|inputs|1|shape", ["batch", 77, 33]),
        ("graphs|full|inputs|3|from", {"parameter": "scheduler"}),
        ("graphs|full|precision", "int4"),
        ("graphs|full|inputs|0|dtype", "complex64"),
        ("graphs|full|inputs|0|shape", ["batch", 0]),
        ("samplers|ddim|extra_evaluations", -1),
        ("files|graphs/full.onnx", {"sha256": "0" * 63, "bytes": 3}),
        ("files|graphs/full.onnx", {"sha256": "G" * 64, "bytes": 3}),
        ("files|graphs/full.onnx", {"sha256": "0" * 64, "bytes": -1}),
        ("source|kind", "elsewhere"),
        ("parameters|guidance_scale|default", 10**400),
        ("methods|tgate|rule|0|all|0|constant", 2**31),
        ("batch|max", 2**31),
        ("latents|channels", 2**70),
        ("tokenizers|input_ids|max_length", 2**40),
        ("tokenizers|input_ids|max_length", 16),  # the text encoder takes 77
        ("tokenizers|input_ids|pad_token_id", 2**70),
        ("tokenizers|input_ids|eos_token_id", -1),
        ("tokenizers", {}),  # nothing says what the text encoder reads
        ("caches", {"nope": VALID["caches"]["cross_cache_0"]}),
        ("graphs|full|inputs|0|shape", [1] * 9),
        ("graphs|full|weights", "tokenizer/tokenizer.json"),
        ("files|graphs/full.onnx", {"sha256": "0" * 64, "bytes": 2**70}),
    ],
)
def test_field_out_of_its_domain_is_named(field: str, value: object) -> None:
    message = refused(changed(field, value))
    assert any(part.rstrip("s") in message for part in field.split("|")[:2])


@pytest.mark.parametrize("file", sorted(VALID["files"]))
def test_file_that_is_used_must_be_listed(file: str) -> None:
    raw = copy.deepcopy(VALID)
    del raw["files"][file]
    assert f"{file!r} is used but not listed" in refused(raw)


def test_range_contains_its_ends_only() -> None:
    values = Range(min=2, opt=3, max=4)
    assert [value for value in range(6) if value in values] == [2, 3, 4]
    assert not values.fixed
    assert str(values) == "2:3:4"
    assert str(Range(min=8, opt=8, max=8)) == "8"
