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
from tgate_export.bundle.manifest import Manifest, Range, parse_manifest
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
    "inputs": [{"name": "sample", "dtype": "float32", "shape": ["batch", 4, 8, 8]}],
    "outputs": [
        {"name": "noise_pred", "dtype": "float32", "shape": ["batch", 4, 8, 8]},
        {"name": "cross_cache_0", "dtype": "float32", "shape": ["batch", 1, 64, 32]},
    ],
}
ENCODER = GRAPH | {
    "file": "graphs/text_encoder.onnx",
    "weights": None,
    "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch", 77]}],
    "outputs": [{"name": "prompt_embeds", "dtype": "float32", "shape": ["batch", 77, 32]}],
}
FILE = {"sha256": "0" * 64, "bytes": 3}
VALID: dict[str, Any] = {
    "schema_version": 1,
    "name": "tiny",
    "family": "stable-diffusion",
    "source": {"kind": "local", "model": "tiny", "revision": None, "fingerprint": "f"},
    "precision": "fp32",
    "build_key": "k",
    "prediction_type": "epsilon",
    "defaults": {
        "num_inference_steps": 25, "gate_step": 10, "guidance_scale": 7.5, "scheduler": "ddim",
        "sp_interval": 1, "fi_interval": 1, "warm_up": 0,
    },
    "batch": ONE,
    "size": {"height": SIDE, "width": SIDE, "multiple": 2},
    "latents": {"channels": 4, "downscale": 2, "frames": None},
    "tokenizers": {
        "input_ids": {
            "file": "tokenizer/tokenizer.json", "max_length": 77, "pad_token_id": 1,
            "eos_token_id": 1, "mask": None,
        },
    },
    "guidance": "classifier-free",
    "absent_negative_prompt": "empty",
    "conditioning": {},
    "graphs": {"full": GRAPH, "text_encoder": ENCODER},
    "cache": [
        {
            "tensor": "cross_cache_0", "kind": "cross_cache", "passes": None, "downsample": 1,
            "width": 32, "layers": ["mid"],
        }
    ],
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
    assert json.loads(manifest.to_json()) == VALID | {"clip_skips": 0}  # its default


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
    message = refused({"schema_version": 2, "anything": []})
    assert "version 2" in message
    assert "update tgate-export" in message


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
@pytest.mark.parametrize("field", ["graphs", "samplers", "tokenizers", "conditioning"])
def test_names_are_plain(field: str, name: str) -> None:
    raw = copy.deepcopy(VALID)
    raw[field][name] = "time_ids" if field == "conditioning" else next(iter(raw[field].values()))
    message = refused(raw)
    assert "is not a plain name" in message
    assert message.isprintable()


@pytest.mark.parametrize("text", ["", "{", "not json", "\ufeff{}", "[" * 100_000])
def test_text_that_is_not_json_is_refused(text: str) -> None:
    assert "not valid JSON" in refused(text)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "{}", '{"name": "web app"}'])
def test_other_json_is_not_a_manifest(text: str) -> None:
    assert "not a bundle manifest" in refused(text)


@pytest.mark.parametrize("field", sorted(VALID.keys() - {"schema_version"}))
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
        ("defaults|gate_step", 0),
        ("defaults|sp_interval", 0),
        ("defaults|warm_up", -1),
        ("cache|0|kind", "cache"),
        ("cache|0|passes", 0),
        ("defaults|num_inference_steps", "25"),
        ("batch|min", 2),  # above max
        ("size|multiple", 0),
        ("latents|channels", 4.5),
        ("tokenizers|input_ids|mask", 1),
        ("absent_negative_prompt", "none"),
        ("conditioning", {"time_ids": "the moon"}),
        ("graphs|full|precision", "int4"),
        ("graphs|full|inputs|0|dtype", "complex64"),
        ("graphs|full|inputs|0|shape", ["batch", 0]),
        ("samplers|ddim|extra_evaluations", -1),
        ("files|graphs/full.onnx", {"sha256": "0" * 63, "bytes": 3}),
        ("files|graphs/full.onnx", {"sha256": "G" * 64, "bytes": 3}),
        ("files|graphs/full.onnx", {"sha256": "0" * 64, "bytes": -1}),
        ("source|kind", "elsewhere"),
        ("defaults|guidance_scale", 10**400),
        ("defaults|gate_step", 2**31),
        ("batch|max", 2**31),
        ("latents|channels", 2**70),
        ("clip_skips", 10**9),
        ("tokenizers|input_ids|max_length", 2**40),
        ("tokenizers|input_ids|max_length", 16),  # the text encoder takes 77
        ("tokenizers|input_ids|pad_token_id", 2**70),
        ("tokenizers|input_ids|eos_token_id", -1),
        ("tokenizers", {}),  # nothing says what the text encoder reads
        ("conditioning", {"sample": "time_ids"}),
        ("conditioning", {"time_ids": "time_ids"}),
        ("cache|0|tensor", "nope"),
        ("graphs|full|inputs|0|shape", [1] * 9),
        ("graphs|full|weights", "tokenizer/tokenizer.json"),
        ("files|graphs/full.onnx", {"sha256": "0" * 64, "bytes": 2**70}),
    ],
)
def test_field_out_of_its_domain_is_named(field: str, value: object) -> None:
    assert field.split("|")[0] in refused(changed(field, value))


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


def test_schema_file_is_current() -> None:
    current = json.dumps(Manifest.model_json_schema(), indent=1) + "\n"
    assert SCHEMA.read_text(encoding="utf-8") == current, (
        f"write Manifest.model_json_schema() to {SCHEMA.name} again"
    )


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
