"""`manifest.json`: what it may say, and how a wrong one is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import tgate_export.bundle.manifest as manifest_module
from tgate_export.bundle.integrity import read_manifest
from tgate_export.bundle.manifest import Manifest, Range
from tgate_export.bundle.manifest_reader import parse_manifest
from tgate_export.common.errors import BundleError

WHERE = Path("bundle/manifest.json")
SCHEMA = Path(manifest_module.__file__).with_name("manifest.schema.json")
ONE = {"min": 1, "opt": 1, "max": 1}
SIDE = {"min": 16, "opt": 16, "max": 16}
GRAPH = {
    "file": "graphs/full.onnx",
    "weights": "graphs/denoiser.weights",
    "precision": "fp32",
    "float32_attention": False,
    "float32_layers": 0,
    "parameters": 12,
    "inputs": [
        {
            "name": "sample",
            "dtype": "float32",
            "shape": ["batch", 4, 8, 8],
            "from": {"loop": "sample"},
        },
        {
            "name": "prompt_embeds",
            "dtype": "float32",
            "shape": ["batch", 77, 32],
            "from": {"graph": "text_encoder", "output": "prompt_embeds", "of": "prompt"},
        },
        {
            "name": "negative_prompt_embeds",
            "dtype": "float32",
            "shape": ["batch", 77, 32],
            "from": {"graph": "text_encoder", "output": "prompt_embeds", "of": "negative_prompt"},
        },
        {
            "name": "guidance_scale",
            "dtype": "float32",
            "shape": ["batch"],
            "from": {"parameter": "guidance_scale"},
        },
    ],
    "outputs": [
        {"name": "noise_pred", "dtype": "float32", "shape": ["batch", 4, 8, 8]},
        {"name": "cross_cache_0", "dtype": "float32", "shape": ["batch", 1, 64, 32]},
    ],
}
ENCODER = GRAPH | {
    "file": "graphs/text_encoder.onnx",
    "weights": None,
    "inputs": [
        {
            "name": "input_ids",
            "dtype": "int64",
            "shape": ["batch", 77],
            "from": {"tokens": "input_ids"},
        }
    ],
    "outputs": [{"name": "prompt_embeds", "dtype": "float32", "shape": ["batch", 77, 32]}],
}
FILE = {"sha256": "0" * 64, "bytes": 3}
VALID: dict[str, Any] = {
    "schema_version": 2,
    "schema_minor": 0,
    "requires": [],
    "name": "tiny",
    "family": "stable-diffusion",
    "source": {"kind": "local", "model": "tiny", "revision": None, "fingerprint": "f"},
    "precision": "fp32",
    "build_key": "k",
    "prediction_type": "epsilon",
    "batch": ONE,
    "size": {"height": SIDE, "width": SIDE, "multiple": 2},
    "latents": {"channels": 4, "downscale": 2, "frames": None},
    "parameters": {
        "num_inference_steps": {"type": "integer", "default": 25, "min": 1},
        "gate_step": {"type": "integer", "default": 10, "min": 1, "scaled": True},
        "sp_interval": {"type": "integer", "default": 1, "min": 1},
        "fi_interval": {"type": "integer", "default": 1, "min": 1},
        "warm_up": {"type": "integer", "default": 0, "min": 0},
        "scheduler": {"type": "choice", "default": "ddim", "choices": ["ddim"]},
        "guidance_scale": {"type": "number", "default": 7.5, "per": "prompt"},
    },
    "tokenizers": {
        "input_ids": {
            "file": "tokenizer/tokenizer.json", "max_length": 77, "pad_token_id": 1,
            "eos_token_id": 1,
        },
    },
    "guidance": "classifier-free",
    "absent_negative_prompt": "empty",
    "graphs": {"full": GRAPH, "text_encoder": ENCODER},
    "methods": {
        "tgate": {
            "parameters": ["gate_step", "sp_interval", "fi_interval", "warm_up"],
            "at_least": {"gate_step": "warm_up"},
            "rule": [
                {
                    "phase": "gated",
                    "all": [{"op": ">=", "parameter": "gate_step"}],
                },
                {"phase": "full", "all": []},
            ],
        }
    },
    "caches": {
        "cross_cache_0": {
            "dtype": "float32", "shape": ["batch", 1, 64, 32], "kind": "cross_cache",
            "layers": ["mid"],
        }
    },
    "dimensions": {},
    "samplers": {
        "ddim": {
            "file": "samplers/ddim.json", "scheduler_class": "DDIMScheduler",
            "extra_evaluations": 0, "max_steps": 100,
        }
    },
    "versions": {"torch": "2"},
    "files": {
        "graphs/full.onnx": FILE,
        "graphs/denoiser.weights": FILE,
        "graphs/text_encoder.onnx": FILE,
        "samplers/ddim.json": FILE,
        "tokenizer/tokenizer.json": FILE,
    },
}  # fmt: skip


def changed(keys: str, value: Any) -> dict[str, Any]:
    """The valid manifest with one field replaced; keys are separated by `|`."""
    raw = copy.deepcopy(VALID)
    *parents, last = keys.split("|")
    inner: Any = raw
    for key in parents:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[last] = value
    return raw


def refused(raw: Any) -> str:
    with pytest.raises(BundleError) as caught:
        parse_manifest(raw if isinstance(raw, str) else json.dumps(raw), WHERE)
    message = str(caught.value)
    assert "\n" not in message
    assert str(WHERE) in message
    return message


def test_valid_manifest_survives_a_round_trip() -> None:
    manifest = parse_manifest(json.dumps(VALID), WHERE)
    assert parse_manifest(manifest.to_json(), WHERE) == manifest
    assert json.loads(manifest.to_json()) == VALID


ESCAPES = [
    "../x",
    "/etc/passwd",
    "a/../../b",
    "a\\b",
    "..\\x",
    "",
    ".",
    "..",
    "a/./b",
    "a//b",
    "a\0b",
]


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
    raw = copy.deepcopy(VALID) | {"schema_minor": 1, "surprise": {"a": 1}}
    raw["graphs"]["full"]["surprise"] = 1
    raw["graphs"]["full"]["inputs"][0]["from"]["surprise"] = 1
    raw["parameters"]["gate_step"]["surprise"] = 1
    raw["methods"]["tgate"]["rule"][0]["all"][0]["surprise"] = 1
    found = parse_manifest(json.dumps(raw), WHERE)
    assert found == Manifest.model_validate_json(json.dumps(VALID | {"schema_minor": 1}))
    assert "Extra" in refused(raw | {"schema_minor": 0})


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


@pytest.mark.parametrize("text", ["", "{", "not json", "\ufeff{}", "[" * 100_000])
def test_text_that_is_not_json_is_refused(text: str) -> None:
    assert "not valid JSON" in refused(text)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "{}", '{"name": "web app"}'])
def test_other_json_is_not_a_manifest(text: str) -> None:
    assert "not a bundle manifest" in refused(text)


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
