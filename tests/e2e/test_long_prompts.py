"""Prompts of several chunks and with weights: what the denoiser is told, and the pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracle.a1111_prompts import chunks, embeddings
from tests.oracle.families import as_diffusers, diffusers_run, load_pipeline
from tests.support import tiny
from tests.support.once import made_once
from tests.support.solo import assert_equals_solo, batcher_of
from tgate_export import TGatePipeline
from tgate_export.build.verify_bundle import verify_bundle
from tgate_export.bundle.integrity import read_manifest
from tgate_export.common.errors import BundleError, InvalidRequestError
from tgate_export.verify.differences import require

STEPS = 4
RUN: dict[str, Any] = {"num_inference_steps": STEPS, "scheduler": "ddim", "seed": 3}
# Of f32 on both sides: 2e-6 was measured. A weight that is 0.1 off changes it by 1e-2 and more.
EXACT = 1e-4
# Two, one and three chunks: 154, 77 and 231 tokens.
LONG = "a (red circle:1.3), [blue] " + "background, " * 4 + "(sky:0.8) BREAK ((green)) " + "x" * 40
SHORT = "a (red:1.4) circle"
THREE = "a red circle, " * 14 + "(end:1.2)"
PROMPTS = (LONG, SHORT, THREE)


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "pipelines/sdxl", lambda folder: tiny.save("sdxl", folder))


@pytest.fixture(scope="session")
def sdxl_chunks_bundle(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with tiny.only_samplers("ddim"):
        return made_once(
            tmp_path_factory, "bundles/sdxl-chunks",
            lambda out: tiny.build(
                "sdxl", sdxl_folder, out, batch=tiny.FIXED, prompt_chunks=3,
                prompt_syntax="a1111",
            ),
        )  # fmt: skip


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def folder_and_pipeline(
    request: pytest.FixtureRequest,
    tiny_pipeline_dir: Path,
    chunks_bundle: Path,
    sdxl_folder: Path,
    sdxl_chunks_bundle: Path,
) -> tuple[Path, TGatePipeline]:
    folder, bundle = {
        "sd15": (tiny_pipeline_dir, chunks_bundle),
        "sdxl": (sdxl_folder, sdxl_chunks_bundle),
    }[request.param]
    return folder, TGatePipeline.from_bundle(bundle, "onnxruntime:cpu")


def told(pipeline: TGatePipeline, **call: Any) -> dict[str, np.ndarray]:
    """Return the text conditions that the denoiser reads."""
    found: dict[str, np.ndarray] = {}
    names = [tensor.name for tensor in pipeline.manifest.graph("text_encoder").outputs]

    def note(step: Any) -> None:
        for name in (*names, *(f"negative_{name}" for name in names)):
            found[name] = step.tensor(name)[:1]

    images = pipeline.manifest.batch.min
    pipeline(
        **RUN | {"num_inference_steps": 1, "gate_step": 1} | call, num_images_per_prompt=images,
        output_type="latent", callback_on_step_end=note,
    )  # fmt: skip
    return found


def test_the_prompts_have_the_chunks_that_they_are_for(tiny_pipeline_dir: Path) -> None:
    tokenizer = load_pipeline(tiny_pipeline_dir, "diffusers").tokenizer
    assert [len(chunks(tokenizer, text)) for text in PROMPTS] == [2, 1, 3]


@pytest.mark.parametrize("prompt", PROMPTS, ids=["two", "one", "three"])
@pytest.mark.parametrize("clip_skip", [0, 1])
def test_embeddings_as_a1111s(
    folder_and_pipeline: tuple[Path, TGatePipeline], prompt: str, clip_skip: int
) -> None:
    folder, pipeline = folder_and_pipeline
    found = told(
        pipeline, prompt=prompt, negative_prompt=THREE, prompt_syntax="a1111", clip_skip=clip_skip
    )
    expected = embeddings(folder, prompt, 3, clip_skip)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert np.abs(found[name] - value).max() < EXACT
    for name, value in embeddings(folder, THREE, 3).items():
        assert np.abs(found[f"negative_{name}"] - value).max() < EXACT
    other = prompt.replace(":1.", ":1.1", 1)
    assert other != prompt
    different = embeddings(folder, other, 3, clip_skip)["prompt_embeds"]
    assert np.abs(found["prompt_embeds"] - different).max() > 10 * EXACT


@pytest.mark.parametrize(
    ("prompt", "negative", "number"), [(SHORT, "a green (square:0.7)", 1), (LONG, THREE, 3)]
)
def test_the_picture_is_that_of_diffusers_with_these_embeddings(
    folder_and_pipeline: tuple[Path, TGatePipeline], prompt: str, negative: str, number: int
) -> None:
    """A single chunk is not repeated there."""
    folder, pipeline = folder_and_pipeline
    manifest, batch = pipeline.manifest, pipeline.manifest.batch.min
    side = manifest.size.height.opt // manifest.latents.downscale
    latents = np.random.default_rng(0).standard_normal((batch, 4, side, side), dtype=np.float32)
    ours = pipeline(
        prompt, negative_prompt=negative, prompt_syntax="a1111", gate_step=STEPS,
        guidance_scale=6.0, latents=latents, num_images_per_prompt=batch, output_type="np",
        num_inference_steps=STEPS, scheduler="ddim",
    ).images  # fmt: skip
    embeds, negatives = embeddings(folder, prompt, number), embeddings(folder, negative, number)
    expected = diffusers_run(
        folder, latents=latents[:1], scheduler="ddim", output_type="np", guidance_scale=6.0,
        num_inference_steps=STEPS, **as_diffusers(embeds, negatives, 0),
    )  # fmt: skip
    assert np.abs(np.asarray(ours)[0] - expected[0]).max() < 1e-4
    unweighted = embeddings(folder, prompt.replace(":1.", ":0."), number)
    other = diffusers_run(
        folder, latents=latents[:1], scheduler="ddim", output_type="np", guidance_scale=6.0,
        num_inference_steps=STEPS, **as_diffusers(unweighted, negatives, 0),
    )  # fmt: skip
    assert np.abs(other - expected).max() > 1e-3


def test_a_plain_prompt_is_that_of_one_chunk(tiny_bundle: Path, chunks_bundle: Path) -> None:
    one, three = (
        TGatePipeline.from_bundle(path, "onnxruntime:cpu") for path in (tiny_bundle, chunks_bundle)
    )
    call = RUN | {"gate_step": 2, "output_type": "np"}
    found = [
        np.asarray(pipeline("a (red] circle", negative_prompt="blue", **call).images)
        for pipeline in (one, three)
    ]
    assert np.abs(found[0] - found[1]).max() < 1e-5
    # What is cut is what diffusers cuts.
    with pytest.warns(UserWarning, match="longer than the 77 tokens"):
        long = told(three, prompt="x" * 200)["prompt_embeds"]
    with pytest.warns(UserWarning, match="longer than the 77 tokens"):
        expected = told(one, prompt="x" * 200)["prompt_embeds"]
    np.testing.assert_allclose(long, np.tile(expected, (1, 3, 1)), atol=1e-6)


def test_a_bundle_of_one_chunk_has_weights(tiny_bundle: Path, tiny_pipeline_dir: Path) -> None:
    pipeline = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    found = told(pipeline, prompt=SHORT, prompt_syntax="a1111")["prompt_embeds"]
    expected = embeddings(tiny_pipeline_dir, SHORT, 1)["prompt_embeds"]
    assert np.abs(found - expected).max() < EXACT
    with pytest.warns(UserWarning, match=r"the chunk of 75 tokens .* left out: '.*green.*x{40}'"):
        told(pipeline, prompt=LONG, prompt_syntax="a1111")


def test_weights_of_a_trained_model(shapes_pipeline: TGatePipeline, shapes_dir: Path) -> None:
    prompt = "a (red circle:1.4) on a [blue] background"
    found = told(shapes_pipeline, prompt=prompt, prompt_syntax="a1111")["prompt_embeds"]
    expected = embeddings(shapes_dir, prompt, 1)["prompt_embeds"]
    assert np.abs(found - expected).max() < EXACT
    plain = told(shapes_pipeline, prompt=prompt)["prompt_embeds"]
    assert np.abs(found - plain).max() > 0.1


def test_embeddings_of_fewer_chunks(chunks_bundle: Path, tiny_pipeline_dir: Path) -> None:
    """One chunk is repeated; two are filled up with the empty text."""
    pipeline = TGatePipeline.from_bundle(chunks_bundle, "onnxruntime:cpu")
    three = embeddings(tiny_pipeline_dir, THREE, 3)["prompt_embeds"]
    empty = embeddings(tiny_pipeline_dir, "", 1)["prompt_embeds"]
    for given, expected in (
        (three, three),
        (three[:, :77], np.tile(three[:, :77], (1, 3, 1))),
        (three[:, :154], np.concatenate([three[:, :154], empty], axis=1)),
    ):
        found = told(pipeline, prompt_embeds=given, negative_prompt_embeds=given)
        for prefix in ("", "negative_"):
            np.testing.assert_allclose(found[f"{prefix}prompt_embeds"], expected, atol=EXACT)
    with pytest.raises(InvalidRequestError, match="a1111 has no effect on prompt_embeds"):
        pipeline(prompt_embeds=three, prompt_syntax="a1111")
    wrong = np.zeros((1, 308, 32), np.float32)
    with pytest.raises(InvalidRequestError, match=r"takes \[prompts, 77, 32\], or up to 3 times"):
        pipeline(prompt_embeds=wrong)


@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_in_flight_prompts_of_all_kinds_share_calls(chunks_bundle: Path) -> None:
    pipeline = TGatePipeline.from_bundle(chunks_bundle, "onnxruntime:cpu")
    steps = {"num_inference_steps": 4, "scheduler": "ddim"}
    embeds = np.random.default_rng(1).standard_normal((1, 154, 32), dtype=np.float32)
    calls = [
        {"prompt": text, "negative_prompt": negative, "prompt_syntax": syntax, "gate_step": gate}
        for syntax in ("plain", "a1111")
        for text, negative, gate in (
            (SHORT, THREE, 2), (THREE, None, 3), (LONG, "blue", 1), (SHORT, SHORT, 4)
        )
    ]  # fmt: skip
    calls += [{"prompt_embeds": embeds, "gate_step": 3}]
    calls = [call | steps | {"seed": seed} for seed, call in enumerate(calls)]
    with batcher_of(pipeline) as batcher:
        cut = batcher.submit(batcher.request("y" * 300, prompt_syntax="a1111", **steps))
        assert_equals_solo(batcher, pipeline, calls)
        (warning,) = cut.result().warnings
        assert "longer than the 3 chunks of 75 tokens" in warning
        assert warning.endswith(f"left out: '{'y' * 75}'")
        assert max(batcher.stats().stages["full"].batches) > 1


@pytest.mark.parametrize("backend", ["openvino"])
def test_other_backends(chunks_bundle: Path, tiny_pipeline_dir: Path, backend: str) -> None:
    pytest.importorskip(backend)
    call = RUN | {"prompt_syntax": "a1111", "negative_prompt": THREE, "output_type": "np"}
    found, expected = (
        np.asarray(TGatePipeline.from_bundle(chunks_bundle, name)(LONG, **call).images)
        for name in (backend, "onnxruntime:cpu")
    )
    assert np.abs(found - expected).max() < 1e-4


def test_bad_prompts_are_refused_before_anything_runs(chunks_bundle: Path) -> None:
    pipeline = TGatePipeline.from_bundle(chunks_bundle, "onnxruntime:cpu")
    for call, field in (
        ({"prompt": "a (b"}, "prompt"), ({"prompt": "a", "negative_prompt": "[x:0.5]"},
                                         "negative_prompt"),
        ({"prompt": "a", "prompt_syntax": "comfy"}, "prompt_syntax"),
    ):  # fmt: skip
        with pytest.raises(InvalidRequestError) as caught:
            pipeline(**{"prompt_syntax": "a1111", **call})
        assert caught.value.field == field


def test_verified_against_pytorch(chunks_bundle: Path) -> None:
    verification = verify_bundle(chunks_bundle)
    require(verification.differences)
    assert {each.graph for each in verification.graphs} >= {"text_encoder", "full", "gated"}
    assert verification.trajectories


def test_what_readers_must_know(
    tiny_bundle: Path, chunks_bundle: Path, sdxl_chunks_bundle: Path, tmp_path: Path
) -> None:
    """A bundle of one chunk has the graphs that it always had, and older readers may have it."""
    raw = [
        json.loads((path / "manifest.json").read_text())
        for path in (tiny_bundle, chunks_bundle, sdxl_chunks_bundle)
    ]
    assert [each["requires"] for each in raw] == [
        [], ["prompt-chunks"], ["prompt-chunks", "prompt-syntax"],
    ]  # fmt: skip
    assert [each["parameters"]["prompt_syntax"]["default"] for each in raw] == [
        "plain", "plain", "a1111",
    ]  # fmt: skip
    columns = {name: each["columns"] for name, each in raw[2]["tokenizers"].items()}
    assert columns == {"input_ids": [0, 32], "input_ids_2": [32, 80]}
    shapes = [
        {tensor["name"]: tensor["shape"] for tensor in each["graphs"]["full"]["inputs"]}
        for each in raw
    ]
    assert [each["prompt_embeds"] for each in shapes] == [
        ["batch", 77, 32], ["batch", 231, 32], ["batch", 231, 80],
    ]  # fmt: skip
    for keys, value in (
        (("tokenizers", "input_ids_2", "columns"), [32, 79]),
        (("tokenizers", "input_ids_2", "columns"), [31, 80]),
        (("tokenizers", "input_ids", "columns"), None),
        (("parameters", "prompt_syntax", "choices"), ["plain", "a1111", "comfy"]),
    ):
        changed = json.loads(json.dumps(raw[2]))
        inner = changed
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (tmp_path / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(BundleError, match=r"columns|tokenizers|prompt_syntax"):
            read_manifest(tmp_path)
