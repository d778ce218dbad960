"""Long and weighted prompts in C++: pictures, embeddings, errors and warnings as in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.test_long_prompts import (  # noqa: F401
    EXACT,
    SHORT,
    THREE,
    sdxl_chunks_bundle,
    sdxl_folder,
)
from tests.embed.test_cpp_prompt_syntax import LONG
from tests.embed.test_cpp_requests import opened, python_arguments, tensor
from tests.embed.test_cpp_run import array, assert_same, python_run, texts
from tests.oracle.a1111_prompts import embeddings
from tests.support.cpp_driver import Driver, assert_alike
from tgate_export import TGatePipeline
from tgate_export.bundle.manifest_reader import parse_manifest
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import BundleError, InvalidRequestError

pytestmark = pytest.mark.usefixtures("plain_sessions")

RUN: dict[str, Any] = {"num_inference_steps": 4, "gate_step": 2, "scheduler": "ddim", "seed": 3}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def bundle(
    request: pytest.FixtureRequest,
    chunks_bundle: Path,
    sdxl_chunks_bundle: Path,  # noqa: F811
) -> Path:
    return {"sd15": chunks_bundle, "sdxl": sdxl_chunks_bundle}[request.param]


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> TGatePipeline:
    return opened(bundle)


def folder_of(pipeline: TGatePipeline) -> Path:
    return Path(pipeline.manifest.source.model)


def cpp_run(driver: Driver, bundle: Path, *prompts: str, **options: Any) -> dict[str, Any]:
    request: dict[str, Any] = {"prompt": texts(*prompts), **options}
    if "negative_prompt" in options:
        request["negative_prompt"] = texts(options["negative_prompt"])
    return driver("run", bundle=str(bundle), request=request)


@pytest.mark.parametrize(
    "options",
    [
        {"negative_prompt": "[blue], (square:0.7)"},
        {"negative_prompt": THREE, "guidance_scale": [1.0, 6.0], "clip_skip": 1},
        {"guidance_scale": [0.5], "num_images_per_prompt": 2},
        {"prompt_syntax": "plain", "negative_prompt": "a (cross"},
    ],
)
@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_pictures_are_those_of_python(
    driver: Driver, bundle: Path, pipeline: TGatePipeline, options: dict[str, Any]
) -> None:
    options = RUN | {"prompt_syntax": "a1111"} | options
    for prompts in ([LONG, SHORT], [THREE, "a circle"]):
        expected = python_run(pipeline, prompts, **options)
        assert_same(cpp_run(driver, bundle, *prompts, **options), expected)
    # One weight changes the picture by much more.
    if options["prompt_syntax"] == "a1111":
        other = python_run(pipeline, [THREE.replace(":1.2", ":0.2"), "a circle"], **options)
        assert np.abs(other["latents"] - expected["latents"]).max() > 1e-3


def test_pictures_are_those_of_the_oracles_embeddings(
    driver: Driver, bundle: Path, pipeline: TGatePipeline
) -> None:
    """Encoded by transformers, and weighted by code that shares nothing with ours."""
    batch = pipeline.manifest.batch.min
    options = RUN | {"num_images_per_prompt": batch}
    found = cpp_run(
        driver, bundle, LONG, negative_prompt=SHORT, prompt_syntax="a1111", **options
    )  # fmt: skip
    request: dict[str, Any] = dict(options)
    for name, text in (("prompt", LONG), ("negative_prompt", SHORT)):
        encoded = embeddings(folder_of(pipeline), text, 3)
        request[name] = {"embeds": {key: tensor(value) for key, value in encoded.items()}}
    by_oracle = driver("run", bundle=str(bundle), request=request)
    latents = [array(reply["latents"][0]) for reply in (found, by_oracle)]
    assert np.abs(latents[0] - latents[1]).max() < EXACT


@pytest.mark.parametrize(("chunks", "negative"), [(1, 2), (2, 3), (3, 1)])
def test_embeddings_of_fewer_chunks(
    driver: Driver, bundle: Path, pipeline: TGatePipeline, chunks: int, negative: int
) -> None:
    batch = max(2, pipeline.manifest.batch.min)
    arguments: dict[str, Any] = {}
    for name, number in (("prompt_embeds", chunks), ("negative_prompt_embeds", negative)):
        random = np.random.default_rng(number)
        arguments[name] = {
            output.name: random.standard_normal(
                (batch, number * 77, *output.shape[2:])
                if len(output.shape) == 3
                else (batch, *output.shape[1:]),
                dtype=np.float32,
            )
            for output in pipeline.manifest.graph("text_encoder").outputs
        }
    expected = python_run(pipeline, None, **arguments, **RUN)
    request: dict[str, Any] = dict(RUN)
    for name, value in arguments.items():
        named = {key: tensor(each) for key, each in value.items()}
        request[name.removesuffix("_embeds")] = {"embeds": named}
    assert_same(driver("run", bundle=str(bundle), request=request), expected)


def test_a_bundle_of_one_chunk_has_weights(driver: Driver, tiny_bundle: Path) -> None:
    pipeline = opened(tiny_bundle)
    options = RUN | {"prompt_syntax": "a1111", "negative_prompt": "a (square:0.5)"}
    expected = python_run(pipeline, [SHORT, "a circle"], **options)
    assert_same(cpp_run(driver, tiny_bundle, SHORT, "a circle", **options), expected)
    plain = python_run(pipeline, [SHORT, "a circle"], **options | {"prompt_syntax": "plain"})
    assert np.abs(plain["latents"] - expected["latents"]).max() > 1e-3


def test_what_is_left_out_is_told(driver: Driver, bundle: Path, pipeline: TGatePipeline) -> None:
    """Once for a prompt, whatever the tokenizers; and cut in the same place."""
    number = pipeline.manifest.batch.min
    options = RUN | {"num_images_per_prompt": number}
    for text, syntax in ((LONG * 2 + " (é\U0001f600:1.2)", "a1111"), ("x" * 75 + " end", "plain")):
        with pytest.warns(UserWarning, match="longer than") as caught:
            expected = python_run(pipeline, text, prompt_syntax=syntax, **options)
        found = cpp_run(driver, bundle, text, prompt_syntax=syntax, **options)
        assert found["warnings"] == [str(warning.message) for warning in caught]
        assert len(caught) == number
        assert_same(found, expected)


def embeds_of(*shape: int) -> dict[str, Any]:
    return {"embeds": {"prompt_embeds": tensor(np.zeros(shape))}}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"prompt": texts("a", "b) c")}, "prompt"),
        ({"negative_prompt": texts("[x:0.5]")}, "negative_prompt"),
        ({"prompt_syntax": "comfy"}, "prompt_syntax"),
        ({"prompt": embeds_of(1, 77, 32)}, "prompt_syntax"),
        ({"prompt": embeds_of(1, 308, 32), "prompt_syntax": "plain"}, "prompt_embeds"),
        ({"prompt": embeds_of(1, 78, 32), "prompt_syntax": "plain"}, "prompt_embeds"),
        ({"prompt": embeds_of(1, 0, 32), "prompt_syntax": "plain"}, "prompt_embeds"),
    ],
)
def test_the_same_is_refused(
    driver: Driver, chunks_bundle: Path, request_: dict[str, Any], field: str
) -> None:
    request = {"prompt": texts("x"), "prompt_syntax": "a1111", **request_}
    with pytest.raises(InvalidRequestError) as caught:
        opened(chunks_bundle)(**python_arguments(request))
    found = driver.refusal("run", bundle=str(chunks_bundle), request=request)
    assert_alike(found, caught.value)
    assert found.field == field
    if field != "prompt_syntax":
        assert found.text == str(caught.value)


def test_token_ids_have_no_syntax(driver: Driver, chunks_bundle: Path) -> None:
    file = str(chunks_bundle / "tokenizer" / "tokenizer.json")
    ids = {"token_ids": {"input_ids": driver("encode", file=file, texts=["a circle"])["ids"]}}
    call: dict[str, Any] = {"bundle": str(chunks_bundle), "request": {"prompt": ids, **RUN}}
    expected = python_run(opened(chunks_bundle), "a circle", **RUN)
    assert_same(driver("run", **call), expected)
    call["request"]["prompt_syntax"] = "a1111"
    assert driver.refusal("run", **call).field == "prompt_syntax"


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("tokenizers", "input_ids_2", "columns"), [32, 79]),
        (("tokenizers", "input_ids_2", "columns"), [31, 80]),
        (("tokenizers", "input_ids", "columns"), None),
        (("tokenizers", "input_ids", "columns"), [0, 0]),
        (("parameters", "prompt_syntax", "choices"), ["plain", "a1111", "comfy"]),
        (("parameters", "prompt_syntax", "type"), "integer"),
        (("requires",), ["prompt-chunks", "prompt-hopes"]),
        (("graphs", "text_encoder", "outputs", 0, "shape"), ["batch", "tokens", 80]),
        (("graphs", "text_encoder", "outputs", 0, "shape"), ["batch", 2**60, 80]),
        (("graphs", "text_encoder", "outputs", 1, "name"), "prompt_embeds"),
    ],
)
def test_manifests_that_contradict_themselves(
    driver: Driver,
    sdxl_chunks_bundle: Path,  # noqa: F811
    keys: tuple[str | int, ...],
    value: Any,
) -> None:
    raw = json.loads((sdxl_chunks_bundle / "manifest.json").read_text())
    assert driver("manifest", text=json.dumps(raw), where="x") == {"ok": True}
    inner = raw
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with pytest.raises(BundleError) as caught:
        parse_manifest(json.dumps(raw), Path("x"))
    assert_alike(driver.refusal("manifest", text=json.dumps(raw), where="x"), caught.value)


@pytest.mark.parametrize("change", [{"graph": "vae_decoder", "output": "images"}, {"chunks": 2}])
def test_chunks_of_what_has_none(
    driver: Driver, chunks_bundle: Path, change: dict[str, Any]
) -> None:
    raw = json.loads((chunks_bundle / "manifest.json").read_text())
    origins = [entry["from"] for entry in raw["graphs"]["full"]["inputs"]]
    next(origin for origin in origins if origin.get("of") == "prompt").update(change)
    with pytest.raises(BundleError) as caught:
        parse_manifest(json.dumps(raw), Path("x"))
    assert_alike(driver.refusal("manifest", text=json.dumps(raw), where="x"), caught.value)


def test_the_bundle_is_built_again_with_its_chunks(driver: Driver, bundle: Path) -> None:
    options = {"sp_interval": 3, "gate_step": 8}
    number = opened(bundle).manifest.batch.min
    with pytest.raises(InvalidRequestError) as caught:
        opened(bundle)("x", num_images_per_prompt=number, **options)
    request = {"prompt": texts("x"), "num_images_per_prompt": number, **options}
    message = driver.error("run", bundle=str(bundle), request=request)
    assert "--prompt-chunks 3" in message
    commands = [
        text.partition("tgate-export build ")[2]
        for text in (message, caught.value.worded(on_command_line))
    ]
    assert commands[0] == commands[1]
