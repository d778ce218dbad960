"""Manifests, tables, tokenizers and requests that were made to break a program.

What is refused in Python too is compared with it by test_cpp_bundle.py; here is what only C++ can
get wrong: what overflows, what is copied past an end, and what it takes to find that out.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.embed.test_cpp_run import texts
from tests.embed.test_cpp_tokenizer import SHAPES, edited
from tests.support.cpp_driver import CppBuild, Driver
from tests.support.hostile import relist

INT = 2**31 - 1


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((tiny_bundle / "manifest.json").read_text())
    return loaded


def refuse(driver: Driver, manifest: dict[str, Any]) -> str:
    return driver.error("manifest", text=json.dumps(manifest), where="x")


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_json_that_is_nested_deep(driver: Driver, manifest: dict[str, Any]) -> None:
    """Code that follows it goes as deep, and ends where the stack does."""
    for depth in (64, 1000, 1_000_000):
        text = f'{{"schema_version": {nested(depth)}}}'
        found = driver.error("manifest", text=text, where="x")
        assert "nested more than 64 deep" in found
    text = f'{json.dumps(manifest)[:-1]}, "x": {nested(63)}}}'
    assert driver.refusal("manifest", text=text, where="x").field == "x"


def test_json_that_is_nested_deep_elsewhere(driver: Driver, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(nested(100_000))
    assert "nested more than 64 deep" in driver.error("table", file=str(file))
    assert "nested more than 64 deep" in driver.error("encode", file=str(file), texts=[])


def test_json_has_one_reading(driver: Driver, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest)
    twice = f'{text[:-1]}, "files": {{}}}}'
    assert "the key 'files' is there twice" in driver.error("manifest", text=twice, where="x")
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        wrong = text.replace("7.5", number, 1)
        assert "is not valid JSON" in driver.error("manifest", text=wrong, where="x"), number


def test_objects_of_many_keys_take_no_long_time(driver: Driver) -> None:
    keys = ",".join(f'"{index}":0' for index in range(400_000))
    begin = time.monotonic()
    found = driver.error("manifest", text=f'{{"schema_version":2,"x":{{{keys}}}}}', where="x")
    assert "more than 4096 keys" in found
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("name", ["manifest.json", "plans/set/plans.json"])
def test_records_that_are_no_files(driver: Driver, tiny_bundle_copy: Path, name: str) -> None:
    """Opening a pipe waits for somebody who writes to it."""
    file = tiny_bundle_copy / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    found = driver.error("open", bundle=str(tiny_bundle_copy))
    assert f"cannot read {file}" in found
    assert "it is no regular file" in found
    file.unlink()
    file.symlink_to("/dev/zero")
    found = driver.error("open", bundle=str(tiny_bundle_copy))
    assert "it is no regular file" in found or "it is a link" in found


@pytest.mark.parametrize(
    "name", ["manifest.json", "samplers/ddim.json", "tokenizer/tokenizer.json"]
)
def test_files_of_any_size(driver: Driver, tiny_bundle_copy: Path, name: str) -> None:
    os.truncate(tiny_bundle_copy / name, 8 * 2**30)  # takes no space
    call = {"bundle": str(tiny_bundle_copy), "check_hashes": False}
    if name == "manifest.json":
        found = driver.error("open", **call)
    else:
        path = tiny_bundle_copy / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["files"][name]["bytes"] = 8 * 2**30
        path.write_text(json.dumps(manifest))
        request = {"prompt": texts("x"), "num_inference_steps": 1, "scheduler": "ddim"}
        found = driver.error("run", **call, request=request)
    assert "it has more than" in found


@pytest.mark.parametrize("place", ["graphs", ".", "nowhere"])
def test_special_files(driver: Driver, tiny_bundle_copy: Path, place: str) -> None:
    (folder := tiny_bundle_copy / place).mkdir(exist_ok=True)
    os.mkfifo(folder / "x")
    wanted = f"{(folder / 'x')} does not belong to the bundle: move it elsewhere"
    assert driver.error("open", bundle=str(tiny_bundle_copy)) == wanted


@pytest.mark.parametrize("name", ["plans", "plans/set", "plans/.set.building-x"])
@pytest.mark.parametrize("kind", ["link", "file", "fifo"])
def test_what_is_no_folder_of_plans(
    driver: Driver, tiny_bundle_copy: Path, tmp_path: Path, name: str, kind: str
) -> None:
    (path := tiny_bundle_copy / name).parent.mkdir(exist_ok=True)
    if kind == "link":
        path.symlink_to(tmp_path)
    elif kind == "file":
        path.write_text("#!")
    else:
        os.mkfifo(path)
    wanted = f"{path} does not belong to the bundle: move it elsewhere"
    assert driver.error("open", bundle=str(tiny_bundle_copy)) == wanted


def test_names_do_not_reach_the_terminal_as_they_are(
    driver: Driver, tiny_bundle_copy: Path, manifest: dict[str, Any]
) -> None:
    escape = "\x1b[2J\x07\u202eALL CHECKS PASSED\x1b[8m"
    (tiny_bundle_copy / escape).write_text("")
    found = [driver.error("open", bundle=str(tiny_bundle_copy))]
    for keys in (("graphs",), ("samplers",), ("tokenizers",), ("parameters",), ("files",)):
        changed = copy.deepcopy(manifest)
        changed[keys[0]][escape] = {}
        found.append(refuse(driver, changed))
    for message in found:
        assert message.isprintable()
        assert "\\x1b[2J\\x07\\u202e" in message


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", ".x", "", "x" * 65, "a b", "[red]"])
@pytest.mark.parametrize(
    "field", ["graphs", "samplers", "tokenizers", "parameters", "methods", "caches", "dimensions"]
)
def test_names_are_plain(driver: Driver, manifest: dict[str, Any], field: str, name: str) -> None:
    changed = copy.deepcopy(manifest)
    changed[field][name] = {}
    assert "is not a plain name" in refuse(driver, changed)


def plan(driver: Driver, manifest: dict[str, Any], **request: Any) -> dict[str, Any]:
    """Return what a call would run; no engine is loaded."""
    request = {"prompt": texts("a"), "num_inference_steps": 2} | request
    return driver("plan", text=json.dumps(manifest), request=request)


def plan_error(driver: Driver, manifest: dict[str, Any], **request: Any) -> str:
    return str(plan(driver, manifest, **request)["error"])


def test_settings_that_do_not_fit_an_int(driver: Driver, manifest: dict[str, Any]) -> None:
    changed = copy.deepcopy(manifest)
    for gate, place in ((INT, 100 * INT), (2**63 - 1, 2**53)):
        changed["parameters"]["gate_step"]["default"] = gate
        changed["parameters"]["num_inference_steps"]["default"] = 1
        found = plan(driver, changed, num_inference_steps=100)
        assert found["parameters"]["gate_step"] == place
    assert "65536 images" in plan_error(driver, manifest, num_images_per_prompt=INT)
    many = {"texts": ["a"] * 65}
    assert "65536 images" in plan_error(driver, manifest, prompt=many, num_images_per_prompt=1009)


def test_shapes_whose_product_overflows(driver: Driver, manifest: dict[str, Any]) -> None:
    """2^62 * 16 * 96 elements are none in 64 bits, as many as there are."""
    outputs = manifest["graphs"]["text_encoder"]["outputs"]
    embeds = {}
    for tensor in outputs:
        shape = [1 << 62, *tensor["shape"][1:]]
        embeds[tensor["name"]] = {"shape": shape, "data": []}
    assert "has shape [4611686018427387904" in plan_error(
        driver, manifest, prompt={"embeds": embeds}
    )
    changed = copy.deepcopy(manifest)
    changed["latents"] |= {"channels": INT, "downscale": 1}
    side = dict.fromkeys(("min", "opt", "max"), INT - 7)
    changed["size"] = {"height": side, "width": side, "multiple": 8}
    latents = {"shape": [1, INT, INT - 7, INT - 7], "data": [0.0]}
    assert "latents have shape" in plan_error(driver, changed, latents=latents)
    assert "but buffer 'denoiser_input' is float32 [1, 2147483647, " in plan_error(driver, changed)


def test_tensors_of_many_dimensions(driver: Driver, manifest: dict[str, Any]) -> None:
    """TensorRT's have room for eight."""
    changed = copy.deepcopy(manifest)
    tensor = changed["graphs"]["text_encoder"]["outputs"][0]
    tensor["shape"] = ["batch", *[0x41414141] * 11]
    assert "it must have at most 8 entries, not 12" in refuse(driver, changed)


def rename(manifest: dict[str, Any], output: str, name: str) -> None:
    """Rename an output of the text encoder, for its readers, too."""
    for graph in manifest["graphs"].values():
        for tensor in graph["inputs"]:
            if tensor["from"].get("output") == output:
                tensor["from"]["output"] = name
    for tensor in manifest["graphs"]["text_encoder"]["outputs"]:
        if tensor["name"] == output:
            tensor["name"] = name


@pytest.mark.parametrize("name", ["images", "sample.0", "noise_pred", "timestep"])
def test_a_tensor_that_takes_one_of_ours(
    driver: Driver, manifest: dict[str, Any], name: str
) -> None:
    """As an int64 it is twice as long as the floats that are read from it."""
    changed = copy.deepcopy(manifest)
    tensor = changed["graphs"]["text_encoder"]["outputs"][0]
    rename(changed, tensor["name"], name)
    tensor["dtype"] = "int64"
    found = plan_error(driver, changed)
    assert f"tensor '{name}' is int64" in found
    assert f"but buffer '{name}' is float32" in found


def test_numbers_that_no_id_is(driver: Driver, manifest: dict[str, Any]) -> None:
    changed = copy.deepcopy(manifest)
    tensor = changed["graphs"]["text_encoder"]["outputs"][0]
    tensor["dtype"] = "int64"
    shape = [1, *tensor["shape"][1:]]
    data = np.full(int(np.prod(shape)), 1e30).tolist()
    embeds = {tensor["name"]: {"shape": shape, "data": data}}
    found = plan_error(driver, changed, prompt={"embeds": embeds})
    assert "not finite in int64" in found


@pytest.mark.parametrize("length", [1 << 16, 78, 1])
def test_prompts_of_another_length_than_the_buffer(
    driver: Driver, manifest: dict[str, Any], length: int
) -> None:
    changed = copy.deepcopy(manifest)
    for tokenizer in changed["tokenizers"].values():
        tokenizer["max_length"] = length
    assert f"of {length} tokens" in refuse(driver, changed)


def test_a_rule_never_divides_by_zero(driver: Driver, manifest: dict[str, Any]) -> None:
    """Not even by a parameter that follows another one."""
    changed = copy.deepcopy(manifest)
    method = changed["methods"]["tgate"]
    method["at_least"] = {"gate_step": "sp_interval"}
    changed["parameters"]["gate_step"]["min"] = -(2**63)
    changed["parameters"]["sp_interval"]["default"] = 3
    for gate in (0, -1, -(2**31)):
        found = driver.refusal(
            "plan", text=json.dumps(changed), request={"prompt": texts("a"), "gate_step": gate}
        )
        assert (found.kind, found.field) == ("request", "sp_interval")
    del changed["parameters"]["sp_interval"]["min"]
    assert "which may be 0" in refuse(driver, changed)


@pytest.mark.parametrize("type_", ["number", "choice", "pair", "image"])
@pytest.mark.parametrize("name", ["num_inference_steps", "gate_step", "scheduler"])
def test_parameters_of_another_type(
    driver: Driver, manifest: dict[str, Any], name: str, type_: str
) -> None:
    """What every run reads is of the type that it is read as."""
    if (name, type_) == ("scheduler", "choice"):
        return
    changed = copy.deepcopy(manifest)
    changed["parameters"][name]["type"] = type_
    refuse(driver, changed)


@pytest.mark.parametrize("shape", [[], ["batch"], [7, 77, 32], ["batch", 77, "tokens_0"], [1]])
def test_embeddings_of_another_shape_than_their_buffer(
    driver: Driver, tiny_bundle_copy: Path, shape: list[int | str]
) -> None:
    """Nothing is read past the end of what a caller brings."""

    def reshape(manifest: dict[str, Any]) -> None:
        for graph in manifest["graphs"].values():
            for tensor in (*graph["inputs"], *graph["outputs"]):
                if tensor["name"].endswith("prompt_embeds"):
                    tensor["shape"] = shape

    relist(tiny_bundle_copy, reshape)
    embeds = {"prompt_embeds": {"shape": [1, 77, 32], "data": [0.5] * (77 * 32)}}
    request = {"prompt": {"embeds": embeds}, "num_inference_steps": 1}
    driver.refusal("run", bundle=str(tiny_bundle_copy), request=request)


def test_buffers_that_no_machine_has(driver: Driver, tiny_bundle_copy: Path) -> None:
    """Allocating them ends a program, not its call."""

    def enlarge(manifest: dict[str, Any]) -> None:
        side = dict.fromkeys(("min", "opt", "max"), 1 << 19)
        manifest["size"] = {"height": side, "width": side, "multiple": 8}

    relist(tiny_bundle_copy, enlarge)
    request = {"prompt": texts("x"), "num_inference_steps": 1}
    found = driver.error("run", bundle=str(tiny_bundle_copy), request=request)
    assert "the buffers of a run take" in found or "is float32 [" in found


@pytest.mark.parametrize("size", [(65536, 65536), (1 << 30, 4), (0, 5), (-1, -1), (INT, INT)])
def test_pictures_whose_size_overflows(
    driver: Driver, tmp_path: Path, size: tuple[int, int]
) -> None:
    """65536 x 65536 x 3 bytes are none in 32 bits, as many as there are."""
    file = tmp_path / "x.png"
    width, height = size
    found = driver.error("png", width=width, height=height, bytes=0, file=str(file))
    assert "has 0 bytes" in found
    assert not file.exists()


VOCABULARY: dict[str, int] = json.loads(SHAPES.read_text())["model"]["vocab"]
ADDED: list[dict[str, Any]] = json.loads(SHAPES.read_text())["added_tokens"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model__vocab__a</w>": 1e300}, "is not a number from 0 to"),
        ({"model__vocab__a</w>": 2**31}, "is not a number from 0 to"),
        ({"model__vocab__a</w>": 2**64}, "is not a number from 0 to"),
        ({"model__vocab__a</w>": -1}, "is not a number from 0 to"),
        ({"model__vocab": {k: 2**63 - 1 - i for k, i in VOCABULARY.items()}}, "from 0 to"),
        ({"model__vocab__x</w>": VOCABULARY["a</w>"]}, "two tokens have the id"),
        ({"model__vocab": [1, 2]}, "vocabulary"),
        ({"post_processor__cls": ["x", 1e300]}, "is not a number from 0 to"),
        ({"post_processor__sep": ["x"]}, "is not a tokenizer file"),
        ({"added_tokens": [ADDED[0] | {"id": 2**40}]}, "is not a number from 0 to"),
        ({"added_tokens": ADDED[:1] * 5000}, "more than 4096 added tokens"),
        ({"added_tokens": [ADDED[0] | {"content": "x" * 1025}]}, "more than 1024 bytes"),
        ({"model__merges": [["a", "b"]] * (2**20 + 1)}, "more than 1048576 merges"),
    ],
)
def test_tokenizers(driver: Driver, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = edited(tmp_path, **changes)
    found = driver.error("encode", file=str(path), texts=["a red circle"])
    assert found.startswith(f"{path} is not a tokenizer file: ")
    assert reason in found


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_nothing_is_sent_and_the_home_folder_stays_empty(
    cpp_build: CppBuild, tiny_bundle: Path, tmp_path: Path, backend: str
) -> None:
    """ONNX Runtime reports how it is used from when it is loaded on, unless it is told not to."""
    (home := tmp_path / "home").mkdir()
    trace = tmp_path / "trace"
    environment = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI")}
    command: list[object] = [
        cpp_build.generate, tiny_bundle, "--prompt", "x", "--steps", "2", "--backend", backend,
        "--out", tmp_path / "x.png",
    ]  # fmt: skip
    strace = ["strace", "-f", "-qq", "-e", "trace=connect", "-o", trace]
    traced = subprocess.run(["strace", "-V"], capture_output=True, check=False).returncode == 0
    subprocess.run(
        [*map(str, strace if traced else []), *map(str, command)],
        env=environment | {"HOME": str(home)}, check=True, capture_output=True,
    )  # fmt: skip
    assert list(home.rglob("*")) == []
    if traced:
        assert "AF_INET" not in trace.read_text()
