"""Every family's runs: against the official T-GATE package, and ungated against diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import CLIPTextModel

from tests.oracle.families import (
    as_diffusers,
    diffusers_embeds,
    diffusers_run,
    gated_run,
    official_latents,
)
from tests.support import tiny
from tests.support.once import made_once
from tests.support.solo import assert_equals_solo, batcher_of
from tgate_export import TGatePipeline
from tgate_export.bundle.integrity import read_manifest
from tgate_export.common.errors import InvalidRequestError

PROMPTS = ("A red circle on a blue background ", "an umbrella")
NEGATIVE = "a green Square"
STEPS = 6
GUIDANCE = 6.0
STEPS_OF_ONE: dict[str, Any] = {"num_inference_steps": 3, "gate_step": 2, "seed": 7}
# fp32 on both sides: 2e-6 is what rounding makes of it. A gate that is one step off changes latents
# by more than three times the bound (tested below).
RELATIVE = 2e-5
# 3e-6 was measured; numbers that are 2 off change latents by more than three times the bound.
EXACT = 1e-5


@dataclass(frozen=True)
class Built:
    """A tiny pipeline's folder and its bundle, loaded."""

    folder: Path
    pipeline: TGatePipeline


@pytest.fixture(scope="session", params=tiny.GUIDED)
def folder_and_bundle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    name: str = request.param
    folder = made_once(
        tmp_path_factory, f"pipelines/{name}", lambda folder: tiny.save(name, folder)
    )
    with tiny.only_samplers("ddim", "euler", "dpm++2m"):
        bundle = made_once(
            tmp_path_factory, f"bundles/{name}", lambda out: tiny.build(name, folder, out)
        )
    return folder, bundle


@pytest.fixture(scope="module")
def built(folder_and_bundle: tuple[Path, Path], cpu_backend: str) -> Built:
    folder, bundle = folder_and_bundle
    return Built(folder, TGatePipeline.from_bundle(bundle, cpu_backend))


def noise(built: Built, seed: int) -> np.ndarray:
    manifest = built.pipeline.manifest
    side = manifest.size.height.opt // manifest.latents.downscale
    shape = (len(PROMPTS), manifest.latents.channels, side, side)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def relative(found: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def negatives() -> Iterator[dict[str, str]]:
    yield {}
    yield {"negative_prompt": NEGATIVE}


@pytest.mark.parametrize("negative", negatives(), ids=["no-negative", "negative"])
@pytest.mark.parametrize(("gate_step", "scheduler"), [(1, "euler"), (3, "euler"), (3, "dpm++2m"),
                                                      (5, "dpm++2m")])  # fmt: skip
def test_gated_as_the_official_package(
    built: Built, scheduler: str, gate_step: int, negative: dict[str, str]
) -> None:
    latents = noise(built, gate_step)
    ours = built.pipeline(
        PROMPTS, num_inference_steps=STEPS, gate_step=gate_step, guidance_scale=GUIDANCE,
        scheduler=scheduler, latents=latents, output_type="latent", **negative,
    )  # fmt: skip
    for index, prompt in enumerate(PROMPTS):
        expected = official_latents(
            built.folder, prompt=prompt, latents=latents[[index]], scheduler=scheduler,
            num_inference_steps=STEPS, gate_step=gate_step, guidance_scale=GUIDANCE, **negative,
        )  # fmt: skip
        assert relative(ours.images[index], expected[0]) < RELATIVE


@pytest.mark.parametrize(
    ("blend", "carry", "gate_step", "scheduler"),
    [(0.5, 0.0, 3, "euler"), (1.25, 0.75, 3, "dpm++2m"), (0.0, 1.0, 1, "euler")],
)
def test_blended_and_carried_as_diffusers_with_hooks(
    built: Built, blend: float, carry: float, gate_step: int, scheduler: str
) -> None:
    """Each prompt has numbers of its own."""
    latents, numbers = noise(built, gate_step), ((blend, carry), (0.75, 0.25))
    embeds, negatives = diffusers_embeds(built.folder, PROMPTS, NEGATIVE)
    # Two texts' embeddings are alike with random weights: neither numbers nor prompts would matter.
    random = np.random.default_rng(gate_step)
    shape = embeds["prompt_embeds"].shape
    embeds["prompt_embeds"] = random.standard_normal(shape, dtype=np.float32)
    run: dict[str, Any] = {
        "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "scheduler": scheduler,
        "output_type": "latent",
    }  # fmt: skip
    ours = built.pipeline(
        prompt_embeds=embeds, negative_prompt_embeds=negatives, gate_step=gate_step,
        latents=latents, cache_blend=[each[0] for each in numbers],
        guidance_carry=[each[1] for each in numbers], **run,
    )  # fmt: skip
    for index, (of_blend, of_carry) in enumerate(numbers):
        gates = {"gate_step": gate_step, "scale": GUIDANCE, "blend": of_blend, "carry": of_carry}
        call = run | {"latents": latents[[index]]} | as_diffusers(embeds, negatives, index)
        expected = gated_run(diffusers_run, built.folder, gates, **call)
        assert relative(ours.images[index], expected[0]) < EXACT
        for name in ("blend", "carry"):
            other = gates | {name: gates[name] + 2.0}
            assert (
                relative(gated_run(diffusers_run, built.folder, other, **call), expected)
                > 3 * EXACT
            )


@pytest.mark.parametrize("negative", negatives(), ids=["no-negative", "negative"])
def test_ungated_as_diffusers(built: Built, negative: dict[str, str]) -> None:
    latents = noise(built, 7)
    run = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **negative}
    for output_type in ("latent", "np"):
        ours = built.pipeline(
            PROMPTS, gate_step=STEPS, scheduler="euler", latents=latents, output_type=output_type,
            **run,
        )  # fmt: skip
        for index, prompt in enumerate(PROMPTS):
            expected = diffusers_run(
                built.folder, prompt=prompt, latents=latents[[index]], scheduler="euler",
                output_type=output_type, **run,
            )  # fmt: skip
            assert relative(ours.images[index], expected[0]) < RELATIVE


def test_sdxl_is_told_sizes_as_by_diffusers(built: Built) -> None:
    if "original_size" not in built.pipeline.manifest.parameters:
        with pytest.raises(InvalidRequestError, match=r"original_size .* it is for SDXL"):
            built.pipeline(PROMPTS, original_size=(64, 128))
        return
    latents = noise(built, 8)
    run = {
        "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "original_size": (64, 128),
        "crops_coords_top_left": (3, 5), "target_size": (32, 48), "output_type": "latent",
    }  # fmt: skip
    ours = built.pipeline(PROMPTS, gate_step=STEPS, scheduler="euler", latents=latents, **run)
    usual = run | {"original_size": None, "crops_coords_top_left": (0, 0), "target_size": None}
    expected, other = (
        diffusers_run(
            built.folder, prompt=PROMPTS[0], latents=latents[:1], scheduler="euler", **options
        )
        for options in (run, usual)
    )
    assert relative(ours.images[0], expected[0]) < RELATIVE
    assert relative(other, expected) > 3 * RELATIVE


def test_the_bound_tells_gates_and_prompts_apart(built: Built) -> None:
    latents = np.repeat(noise(built, 0)[:1], 2, axis=0)

    def run(prompt: str, gate_step: int, **negative: str) -> np.ndarray:
        output = built.pipeline(
            [prompt] * 2, num_inference_steps=STEPS, gate_step=gate_step, guidance_scale=GUIDANCE,
            scheduler="euler", latents=latents, output_type="latent", **negative,
        )  # fmt: skip
        return np.asarray(output.images)

    usual = run(PROMPTS[0], 3)
    assert relative(run(PROMPTS[0], 4), usual) > 3 * RELATIVE
    assert relative(run(PROMPTS[1], 3), usual) > 3 * RELATIVE
    assert relative(run(PROMPTS[0], 3, negative_prompt=NEGATIVE), usual) > 3 * RELATIVE


def test_embeddings_of_diffusers_give_what_their_prompts_give(built: Built) -> None:
    embeds, negative_embeds = diffusers_embeds(built.folder, PROMPTS, NEGATIVE)
    run: dict[str, Any] = {
        "num_inference_steps": STEPS, "gate_step": 3, "guidance_scale": GUIDANCE,
        "scheduler": "euler", "latents": noise(built, 9), "output_type": "latent",
    }  # fmt: skip
    expected = np.asarray(built.pipeline(PROMPTS, negative_prompt=NEGATIVE, **run).images)
    ours = built.pipeline(prompt_embeds=embeds, negative_prompt_embeds=negative_embeds, **run)
    assert relative(ours.images, expected) < RELATIVE
    mixed = built.pipeline(prompt_embeds=embeds, negative_prompt=NEGATIVE, **run)
    assert relative(mixed.images, expected) < RELATIVE
    first = {name: value[:1] for name, value in negative_embeds.items()}
    one = built.pipeline(PROMPTS, negative_prompt_embeds=first, **run)
    assert relative(one.images, expected) < RELATIVE
    swapped = {name: value[::-1] for name, value in embeds.items()}
    other = built.pipeline(prompt_embeds=swapped, negative_prompt=NEGATIVE, **run)
    assert relative(other.images, expected) > 3 * RELATIVE
    # The text encoder runs again after a call that did without it.
    again = built.pipeline(PROMPTS, negative_prompt=NEGATIVE, **run)
    np.testing.assert_array_equal(np.asarray(again.images), expected)


def test_every_prompt_has_its_own_guidance_scale(built: Built) -> None:
    latents, scales = noise(built, 10), (GUIDANCE, 2.0)
    ours = built.pipeline(
        PROMPTS, num_inference_steps=STEPS, gate_step=STEPS, guidance_scale=scales,
        scheduler="euler", latents=latents, output_type="latent",
    )  # fmt: skip
    assert ours.request.guidance_scales == scales
    for index, scale in enumerate(scales):
        expected = diffusers_run(
            built.folder, prompt=PROMPTS[index], latents=latents[[index]], scheduler="euler",
            output_type="latent", num_inference_steps=STEPS, guidance_scale=scale,
        )  # fmt: skip
        assert relative(ours.images[index], expected[0]) < RELATIVE


# What diffusers gives without guidance, among prompts that are guided.
SCALES = (GUIDANCE, 1.0, 0.5, 0.0, -1.0, 2.0)


@pytest.mark.parametrize("given", ["texts", "embeddings", "mixed"])
def test_guidance_of_1_or_less_is_the_prompt_alone_as_in_diffusers(
    built: Built, given: str
) -> None:
    prompts = [PROMPTS[index % 2] for index in range(len(SCALES))]
    latents = np.concatenate([noise(built, seed) for seed in (13, 14, 15)])
    embeds, negative_embeds = diffusers_embeds(built.folder, tuple(prompts), NEGATIVE)
    call: dict[str, Any] = {"prompt": prompts, "negative_prompt": NEGATIVE}
    if given == "embeddings":
        call = {"prompt_embeds": embeds}
    if given != "texts":
        call |= {"negative_prompt": None, "negative_prompt_embeds": negative_embeds}
    run = {"scheduler": "euler", "num_inference_steps": STEPS, "output_type": "latent"}
    found = built.pipeline(
        **call, gate_step=STEPS, guidance_scale=SCALES, latents=latents, **run
    )  # fmt: skip
    assert found.request.guidance_scales == SCALES
    for index, (prompt, scale) in enumerate(zip(prompts, SCALES, strict=True)):
        expected = diffusers_run(
            built.folder, prompt=prompt, negative_prompt=NEGATIVE, latents=latents[[index]],
            guidance_scale=scale, **run,
        )  # fmt: skip
        assert relative(found.images[index], expected[0]) < RELATIVE, scale


@pytest.mark.parametrize("gate_step", [1, 3])
def test_guidance_of_1_or_less_leaves_the_prompt_s_caches(built: Built, gate_step: int) -> None:
    """A gated run of any such scale, with any negative prompt, is one that both halves agree in."""
    latents = noise(built, 16)
    run = {
        "num_inference_steps": STEPS, "gate_step": gate_step, "latents": latents,
        "scheduler": "euler", "output_type": "latent",
    }  # fmt: skip
    expected = built.pipeline(PROMPTS, negative_prompt=PROMPTS, guidance_scale=GUIDANCE, **run)
    guided = built.pipeline(PROMPTS, guidance_scale=GUIDANCE, **run)
    for scales in ((0.0, 0.5), (1.0, -1.0)):
        for negative in (None, NEGATIVE):
            found = built.pipeline(PROMPTS, negative_prompt=negative, guidance_scale=scales, **run)
            assert relative(found.images, np.asarray(expected.images)) < RELATIVE
    assert relative(guided.images, np.asarray(expected.images)) > 3 * RELATIVE
    mixed = built.pipeline(PROMPTS, guidance_scale=(0.0, GUIDANCE), **run)
    assert relative(mixed.images[0], np.asarray(expected.images)[0]) < RELATIVE
    assert relative(mixed.images[1], np.asarray(guided.images)[1]) < RELATIVE


@pytest.mark.parametrize("gate_step", [3, STEPS])
def test_guidance_is_rescaled_as_by_the_official_package(built: Built, gate_step: int) -> None:
    run = {
        "num_inference_steps": STEPS, "gate_step": gate_step, "guidance_scale": GUIDANCE,
        "scheduler": "euler", "guidance_rescale": 0.7,
    }  # fmt: skip
    latents = noise(built, 11)
    if "guidance_rescale" not in built.pipeline.manifest.parameters:
        with pytest.raises(InvalidRequestError, match="this bundle's guidance is never rescaled"):
            built.pipeline(PROMPTS, **run)
        return
    ours = built.pipeline(PROMPTS, latents=latents, output_type="latent", **run)
    plain = built.pipeline(
        PROMPTS, latents=latents, output_type="latent", **run | {"guidance_rescale": 0.0}
    )
    assert relative(plain.images, np.asarray(ours.images)) > 3 * RELATIVE
    for index, prompt in enumerate(PROMPTS):
        expected = official_latents(
            built.folder, prompt=prompt, latents=latents[[index]], **run
        )  # fmt: skip
        assert relative(ours.images[index], expected[0]) < RELATIVE


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_clip_layers_are_skipped_as_by_diffusers(
    built: Built, clip_skip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "clip_skip" not in built.pipeline.manifest.parameters:
        with pytest.raises(InvalidRequestError, match="text encoder cannot skip layers"):
            built.pipeline(PROMPTS, clip_skip=1)
        return
    # Of transformers 4, where the norm is found by diffusers; transformers 5 has no `text_model`.
    itself = property(lambda self: self)
    monkeypatch.setattr(CLIPTextModel, "text_model", itself, raising=False)
    latents = noise(built, 12)
    run = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "negative_prompt": NEGATIVE}
    ours = built.pipeline(
        PROMPTS, gate_step=STEPS, scheduler="euler", latents=latents, output_type="latent",
        clip_skip=clip_skip, **run,
    )  # fmt: skip
    for index, prompt in enumerate(PROMPTS):
        expected, other = (
            diffusers_run(
                built.folder, prompt=prompt, latents=latents[[index]], scheduler="euler",
                output_type="latent", clip_skip=skip, **run,
            )
            for skip in (clip_skip, 1 - clip_skip)
        )  # fmt: skip
        assert relative(ours.images[index], expected[0]) < RELATIVE
        assert relative(other, expected) > 3 * RELATIVE


def test_in_flight_batches_equal_solo_runs(built: Built) -> None:
    calls: list[dict[str, Any]] = [
        {"prompt": PROMPTS, "num_inference_steps": steps, "gate_step": gate, "seed": steps}
        for steps, gate in ((4, 2), (6, 1), (5, 9), (3, 2))
    ]
    calls[1]["negative_prompt"] = NEGATIVE
    calls[2]["guidance_scale"] = (0.5, GUIDANCE)
    embeds, _ = diffusers_embeds(built.folder, PROMPTS, NEGATIVE)
    calls[3] |= {"prompt": None, "prompt_embeds": embeds, "guidance_scale": (GUIDANCE, 0.0)}
    with batcher_of(built.pipeline) as batcher:
        assert_equals_solo(batcher, built.pipeline, calls)
        # A bundle of fixed batches has no call for one image: the others are padding.
        alone = batcher.submit(batcher.request(PROMPTS[0], output_type="latent", **STEPS_OF_ONE))
        pair = built.pipeline((PROMPTS[0], PROMPTS[0]), output_type="latent", **STEPS_OF_ONE)
        assert relative(alone.result(60).images, np.asarray(pair.images)[:1]) < RELATIVE


def test_a_second_build_exports_nothing(
    folder_and_bundle: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another default; its files are those of the first."""

    def refuse(*_arguments: Any, **_options: Any) -> None:
        pytest.fail("something was exported")

    folder, bundle = folder_and_bundle
    monkeypatch.setattr("tgate_export.export.onnx_export.torch.onnx.export", refuse)
    with tiny.only_samplers("ddim", "euler", "dpm++2m"):
        again = tiny.build(read_manifest(bundle).name, folder, tmp_path / "again", gate_step=3)
    assert again.manifest.files == read_manifest(bundle).files
    assert again.manifest.build_key != read_manifest(bundle).build_key
    assert len(again.differences) > 5
