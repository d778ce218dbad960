"""What a call may ask for, family by family: the same results; the same argument is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.embed.test_cpp_run import array, assert_same, python_run, texts
from tests.runtime.test_cpus import QUOTAS, write
from tests.support import tiny
from tests.support.cpp_driver import CppBuild, Driver, Refusal, assert_alike
from tgate_export import TGatePipeline
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.noise import standard_normal
from tgate_export.runtime.tokenizer import PromptTokenizer

pytestmark = pytest.mark.usefixtures("plain_sessions")

RANDOM = np.random.default_rng(5)


def tensor(value: np.ndarray) -> dict[str, Any]:
    return {"shape": list(value.shape), "data": value.astype(np.float32).ravel().tolist()}


def opened(bundle: Path) -> TGatePipeline:
    """Open a bundle with the backend of the C++ library."""
    return TGatePipeline.from_bundle(bundle, "onnxruntime:cpu")


@pytest.fixture(scope="module")
def tiny_pipeline(plain_sessions: None, tiny_bundle: Path) -> TGatePipeline:
    return opened(tiny_bundle)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_inference_steps": 3, "guidance_scale": [3.5]},
        {"num_inference_steps": 4, "num_images_per_prompt": 5, "gate_step": 4},
        {"num_inference_steps": 5, "guidance_rescale": 0.7, "clip_skip": 1, "gate_step": 2},
        {"num_inference_steps": 4, "scheduler": "lcm", "gate_step": 2, "seed": 2**64 - 1},
    ],
)
def test_options(
    driver: Driver, tiny_bundle: Path, tiny_pipeline: TGatePipeline, options: dict[str, Any]
) -> None:
    options = {"seed": 3, "negative_prompt": "a square", **options}
    expected = python_run(tiny_pipeline, ["a circle", "b"], **options)
    request = {"prompt": texts("a circle", "b"), **options}
    request["negative_prompt"] = texts("a square")
    found = driver("run", bundle=str(tiny_bundle), request=request)
    assert_same(found, expected)


def test_numbers_of_the_gate_each(
    driver: Driver, tiny_bundle: Path, tiny_pipeline: TGatePipeline
) -> None:
    spec = tiny_pipeline.manifest.graph("text_encoder").outputs[0]
    # Two texts' embeddings are alike with random weights: the numbers would not matter.
    embeds, negative = RANDOM.standard_normal((2, 2, *spec.shape[1:]), dtype=np.float32)
    options: dict[str, Any] = {"num_inference_steps": 5, "gate_step": 2, "seed": 4}
    numbers = {"cache_blend": [1.25, 0.0], "guidance_carry": [0.75, 0.25]}
    expected = python_run(
        tiny_pipeline, None, prompt_embeds=embeds, negative_prompt_embeds=negative, **numbers,
        **options,
    )  # fmt: skip
    request = {
        "prompt": {"embeds": {spec.name: tensor(embeds)}},
        "negative_prompt": {"embeds": {spec.name: tensor(negative)}},
        **options,
    }
    bundle = str(tiny_bundle)
    assert_same(driver("run", bundle=bundle, request=request | {"parameters": numbers}), expected)
    official = driver("run", bundle=bundle, request=request)
    latents = np.concatenate([array(part) for part in official["latents"]])
    assert np.abs(latents - expected["latents"]).max() > 1e-2
    for name, value in (("cache_blend", 2.5), ("guidance_carry", -0.5), ("cache_blend", [1, 1, 1])):
        reply = driver("run", bundle=bundle, request=request | {"parameters": {name: value}})
        assert reply["field"] == name
        assert name in reply["error"]


def test_latents_embeddings_and_a_scale_each(
    driver: Driver, tiny_bundle: Path, tiny_pipeline: TGatePipeline
) -> None:
    spec = tiny_pipeline.manifest.graph("text_encoder").outputs[0]
    embeds, negative = RANDOM.standard_normal((2, 2, *spec.shape[1:]), dtype=np.float32)
    latents = RANDOM.standard_normal((2, 4, 8, 8), dtype=np.float32)
    options: dict[str, Any] = {
        "num_inference_steps": 4,
        "gate_step": 2,
        "guidance_scale": [2.0, 9.0],
    }
    expected = python_run(
        tiny_pipeline, None, prompt_embeds=embeds, negative_prompt_embeds=negative,
        latents=latents, **options,
    )  # fmt: skip
    request = {
        "prompt": {"embeds": {spec.name: tensor(embeds)}},
        "negative_prompt": {"embeds": {spec.name: tensor(negative)}},
        "latents": tensor(latents), **options,
    }  # fmt: skip
    assert_same(driver("run", bundle=str(tiny_bundle), request=request), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": [0.5, 3.0, 1.0], "gate_step": 2, "clip_skip": 1},
        {"guidance_scale": [-1.0], "gate_step": 5, "num_images_per_prompt": 2},
    ],
)
def test_guidance_of_1_or_less(
    driver: Driver, tiny_bundle: Path, tiny_pipeline: TGatePipeline, options: dict[str, Any]
) -> None:
    options = {"num_inference_steps": 4, "seed": 6, **options}
    prompts = ["a circle", "b", "c"]
    expected = python_run(tiny_pipeline, prompts, negative_prompt="a square", **options)
    negative = {"negative_prompt": texts("a square")}
    request = {"prompt": texts(*prompts), **options}
    found = driver("run", bundle=str(tiny_bundle), request=request | negative)
    assert_same(found, expected)
    other = python_run(tiny_pipeline, prompts, **options | {"guidance_scale": [3.0]})["latents"]
    assert (np.abs(expected["latents"] - other).reshape(len(other), -1).max(axis=1) > 1e-2).any()


def test_token_ids_stand_for_their_text(driver: Driver, tiny_bundle: Path) -> None:
    file = str(tiny_bundle / "tokenizer" / "tokenizer.json")
    ids = driver("encode", file=file, texts=["a circle"])["ids"]
    options = {"seed": 1, "num_inference_steps": 2}
    by_ids, by_text = (
        driver("run", bundle=str(tiny_bundle), request={"prompt": prompt, **options})
        for prompt in ({"token_ids": {"input_ids": ids}}, texts("a circle"))
    )
    assert by_ids["images"] == by_text["images"]


def test_a_prompt_that_is_too_long_is_cut_and_warned_of(
    driver: Driver, tiny_bundle: Path, tiny_pipeline: TGatePipeline
) -> None:
    prompt = "x" * 75 + " left \U0001f600 over"
    options = {"seed": 1, "num_inference_steps": 2}
    with pytest.warns(UserWarning, match="left") as caught:
        expected = python_run(tiny_pipeline, prompt, **options)
    request = {"prompt": texts(prompt), **options}
    found = driver("run", bundle=str(tiny_bundle), request=request)
    assert found["warnings"] == [str(caught[0].message)]
    assert_same(found, expected)


def test_reused_self_attention(driver: Driver, reuse_bundle: Path) -> None:
    options = {"num_inference_steps": 14, "gate_step": 9, "seed": 4, "scheduler": "pndm"}
    expected = python_run(opened(reuse_bundle), "a circle", **options)
    assert {"full_reuse", "gated_reuse"} < set(expected["phases"])
    request = {"prompt": texts("a circle"), **options}
    assert_same(driver("run", bundle=str(reuse_bundle), request=request), expected)


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (24, 48), None])
def test_sizes(driver: Driver, tiny_dynamic_bundle: Path, size: tuple[int, int] | None) -> None:
    pipeline = opened(tiny_dynamic_bundle)
    options: dict[str, Any] = {"num_inference_steps": 3, "gate_step": 2, "seed": 4}
    if size:
        options |= {"width": size[0], "height": size[1]}
    expected = python_run(pipeline, "a circle", **options)
    request = {"prompt": texts("a circle"), **options}
    assert_same(driver("run", bundle=str(tiny_dynamic_bundle), request=request), expected)


REFUSALS: list[dict[str, Any]] = [
    {"prompt": texts()},
    {"negative_prompt": texts("a", "b")},
    {"num_images_per_prompt": 0},
    {"num_inference_steps": 0},
    {"num_inference_steps": 101},
    {"num_inference_steps": 60, "scheduler": "lcm"},
    {"gate_step": 0},
    {"gate_step": -1},
    {"gate_step": 2, "warm_up": 3},
    {"sp_interval": 0},
    {"fi_interval": -3},
    {"warm_up": -1},
    {"sp_interval": 5},
    {"sp_interval": 3, "fi_interval": 2, "gate_step": 8},
    {"guidance_scale": [7.5, 7.5]},
    {"guidance_rescale": 1.5},
    {"guidance_rescale": -1e-20},
    {"clip_skip": -1},
    {"clip_skip": 99},
    {"scheduler": "huen"},
    {"scheduler": "it's"},
    {"scheduler": "\n\u200b'\""},
    {"height": 18},
    {"width": 15},
    {"original_size": [16, 16]},
    {"latents": tensor(np.zeros((1, 4, 8, 7)))},
    {"prompt": {"embeds": {"other": tensor(np.zeros((1, 2)))}}},
    {"prompt": {"embeds": {"prompt_embeds": tensor(np.zeros((1, 2, 3)))}}},
    {"prompt": {"embeds": {"prompt_embeds": tensor(np.zeros((0, 77, 32)))}}},
    {"prompt": {"embeds": {"prompt_embeds": tensor(np.zeros((1, 77, 32)))}}, "clip_skip": 1},
]


def python_arguments(request: dict[str, Any]) -> dict[str, Any]:
    """Return what the Python runtime is called with for a request of the driver."""
    arguments = dict(request)
    for name in ("prompt", "negative_prompt"):
        given = arguments.pop(name, None)
        if given is None:
            continue
        if "texts" in given:
            arguments[name] = given["texts"]
        else:
            arguments[f"{name}_embeds"] = {key: array(t) for key, t in given["embeds"].items()}
    if "latents" in arguments:
        arguments["latents"] = array(arguments["latents"])
    return arguments


@pytest.mark.parametrize("request_", REFUSALS)
def test_the_same_is_refused(
    driver: Driver, tiny_bundle: Path, tiny_pipeline: TGatePipeline, request_: dict[str, Any]
) -> None:
    request = {"prompt": texts("x"), **request_}
    with pytest.raises(InvalidRequestError) as caught:
        tiny_pipeline(**python_arguments(request))
    found = driver.refusal("run", bundle=str(tiny_bundle), request=request)
    assert_alike(found, caught.value)
    assert found.text.isprintable()


# Where a bundle came from: a folder, or a file with what its build was told.
SOURCES: list[dict[str, Any]] = [
    {},
    {"model": "/models/a b.safetensors", "config": "sd21-base"},
    {"model": "/models/x.safetensors", "config": "/p", "vae": "/vae.safetensors"},
    {
        "loras": [
            {"file": f"/l/{name}.safetensors", "sha256": "0" * 64, "scale": scale}
            for name, scale in (("a b", 1.0), ("c", -0.35), ("d", 1e-7))
        ]
    },
    {
        "embeddings": [
            {"file": f"/e/{name}.safetensors", "sha256": "0" * 64, "token": token}
            for name, token in (("a b", "<it's>"), ("c", "猫"))
        ]
    },
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_bundle_is_built_again_by_the_same_command(
    driver: Driver, tiny_bundle_copy: Path, source: dict[str, Any]
) -> None:
    file = tiny_bundle_copy / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["source"] |= source
    file.write_text(json.dumps(manifest))
    options: dict[str, Any] = {"sp_interval": 3, "fi_interval": 2, "gate_step": 8}
    with pytest.raises(InvalidRequestError) as caught:
        opened(tiny_bundle_copy)("x", **options)
    message = driver.error(
        "run", bundle=str(tiny_bundle_copy), request={"prompt": texts("x"), **options}
    )
    assert message.startswith("sp_interval 3 and fi_interval 2: ")
    commands = [
        text.partition("tgate-export build ")[2]
        for text in (message, caught.value.worded(on_command_line))
    ]
    assert commands[0] == commands[1] != ""


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ({"token_ids": {"other": [[1]]}}, "takes token ids of input_ids"),
        ({"token_ids": {"input_ids": [[1] * 78]}}, "has 78 token ids, the text encoder takes 77"),
        ({"token_ids": {"input_ids": []}}, "has no rows"),
    ],
)
def test_token_ids_that_do_not_fit(
    driver: Driver, tiny_bundle: Path, prompt: dict[str, Any], reason: str
) -> None:
    assert reason in driver.error("run", bundle=str(tiny_bundle), request={"prompt": prompt})


def test_token_ids_outside_the_vocabulary_are_an_error(driver: Driver, tiny_bundle: Path) -> None:
    request = {"prompt": {"token_ids": {"input_ids": [[5, 10**9]]}}, "num_inference_steps": 1}
    message = driver.error("run", bundle=str(tiny_bundle), request=request)
    assert message.startswith("onnxruntime cannot run graph 'text_encoder': ")


def test_a_callback_ends_a_run_between_steps(driver: Driver, tiny_bundle: Path) -> None:
    request = {"prompt": texts("a"), "num_inference_steps": 5}
    call: dict[str, Any] = {"bundle": str(tiny_bundle), "request": request}
    found = driver.refusal("run", **call, stop_after=2)
    assert found == Refusal("cancelled", "", "cancelled after step 3 of 5")
    assert len(driver("run", **call)["steps"]) == 5


@pytest.mark.parametrize(("listed", "files", "expected"), QUOTAS)
def test_quotas_of_containers(
    driver: Driver, tmp_path: Path, listed: str, files: dict[str, str], expected: int | None
) -> None:
    write(tmp_path, listed, files)
    assert driver("quota", folder=str(tmp_path)) == {"threads": expected or 0}


def test_pipelines_in_threads_share_nothing(cpp_build: CppBuild, tiny_bundle: Path) -> None:
    run = subprocess.run(
        [cpp_build.threads, tiny_bundle], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "drew what each draws alone" in run.stdout


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize("draw", [0, 1, 25])
def test_noise(driver: Driver, seed: int, draw: int) -> None:
    found = driver("noise", count=1001, seed=seed, image=3, draw=draw)["values"]
    expected = standard_normal((1001,), seed, 3, draw)
    # A unit in the last place of 32 bits, where log, sin or cos round differently in 64.
    assert np.abs(np.array(found, dtype=np.float32) - expected).max() < 5e-7


def test_half_precision(driver: Driver) -> None:
    exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (exact[:-1].astype(np.float64) + exact[1:]) / 2
    values = np.concatenate(
        [exact, between, np.nextafter(between.astype(np.float32), np.float32(np.inf)), [65519.9]]
    ).astype(np.float32)
    values = np.concatenate([values, -values])
    reply, halves = driver("half", values=values.tolist()), values.astype(np.float16)
    assert (np.array(reply["values"], dtype=np.uint16) == halves.view(np.uint16)).all()
    assert (np.array(reply["floats"], dtype=np.float32) == halves.astype(np.float32)).all()


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(max_size=12))
def test_what_is_quoted_can_be_printed(driver: Driver, text: str) -> None:
    quoted = driver("quote", text=text)["text"]
    assert len(quoted) >= 2 + len(text)
    assert quoted[0] == quoted[-1] == "'"
    known = all(character.isprintable() or ord(character) < 0x100 for character in text)
    if known:  # what is printable depends on the version of Unicode
        assert quoted.isprintable()


@pytest.fixture(scope="module", params=tiny.OF_TEXT)
def family_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tiny.save(request.param, folder / "pipeline")
    with tiny.only_samplers("ddim", "euler", "dpm++2m"):
        return tiny.build(request.param, folder / "pipeline", folder / "bundle").path


@pytest.mark.slow
@pytest.mark.parametrize("gate_step", [2, 4])
def test_families(driver: Driver, family_bundle: Path, gate_step: int) -> None:
    """Compare the runtimes; where tokenizers are not CLIP's, C++ takes token ids."""
    pipeline = opened(family_bundle)
    prompts, negatives = ["a red circle", "an umbrella"], ["a square", "x"]
    specs = pipeline.manifest.tokenizers
    files = {name: family_bundle / spec.file for name, spec in specs.items()}
    kinds = {
        json.loads(file.read_text(encoding="utf-8"))["model"]["type"] for file in files.values()
    }
    clip = kinds == {"BPE"}

    def given(words: list[str]) -> dict[str, Any]:
        if clip:
            return texts(*words)
        ids = {}
        for name, spec in specs.items():
            rows, mask = PromptTokenizer(files[name], spec)(words)
            ids[name] = [row[: int(m.sum())].tolist() for row, m in zip(rows, mask, strict=True)]
        return {"token_ids": ids}

    options: dict[str, Any] = {"num_inference_steps": 4, "gate_step": gate_step, "seed": 6}
    if "original_size" in pipeline.manifest.parameters:
        options |= {"original_size": (64, 128), "crops_coords_top_left": (3, 5)}
    guided = pipeline.manifest.guidance == "classifier-free"
    for negative in (None, negatives) if guided else (None,):
        both = {} if negative is None else {"negative_prompt": negative}
        expected = python_run(pipeline, prompts, **options, **both)
        request = {"prompt": given(prompts), **options}
        if negative is not None:
            request["negative_prompt"] = given(negative)
        elif not clip:  # the absent negative prompt is an empty text, which takes a tokenizer
            request["negative_prompt"] = given(["", ""])
        assert_same(driver("run", bundle=str(family_bundle), request=request), expected)
    if not clip:
        reply = driver("run", bundle=str(family_bundle), request={"prompt": texts("x", "y")})
        assert "give token ids or embeddings instead of text" in reply["error"]
