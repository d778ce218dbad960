"""The hires fix: both passes against diffusers, and what a call of it may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracle.families import hires_run
from tests.support.solo import assert_equals_solo, batcher_of
from tgate_export import TGatePipeline
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.noise import SECOND_PASS, standard_normal
from tgate_export.runtime.step_info import StepInfo

PROMPT = "A red circle on a blue background"
SEED = 5
CALL: dict[str, Any] = {"guidance_scale": 6.0, "num_inference_steps": 5}
RELATIVE = 1e-4  # as in test_image_to_image, of two runs of which one goes on from the other
MODES = {"latent": "bilinear", "latent-bicubic": "bicubic", "latent-nearest": "nearest",
         "lanczos": "lanczos"}  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A tiny pipeline's folder, its bundle, and the noise of a first pass."""

    folder: Path
    pipeline: TGatePipeline
    latents: np.ndarray

    def noise(self, width: int, height: int) -> np.ndarray:
        """The seed's noise for a second pass of that size."""
        space = self.pipeline.manifest.latents
        _, *shape = space.shape(1, height, width)
        return standard_normal(tuple(shape), SEED, 0, SECOND_PASS)[None]


def built_of(folder: Path, bundle: Path) -> Built:
    pipeline = TGatePipeline.from_bundle(bundle, "onnxruntime:cpu")
    shape = pipeline.manifest.latents.shape(1, 16, 16)
    latents = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return Built(folder, pipeline, latents)


@pytest.fixture(scope="module")
def built(tiny_pipeline_dir: Path, hires_bundle: Path) -> Built:
    return built_of(tiny_pipeline_dir, hires_bundle)


@pytest.fixture(scope="module")
def sdxl(sdxl_dir: Path, sdxl_bundle: Path) -> Built:
    return built_of(sdxl_dir, sdxl_bundle)


def relative(found: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def assert_as_diffusers(
    built: Built, scheduler: str, upscaler: str, size: tuple[int, int], strength: float, steps: int
) -> None:
    def expected(mode: str) -> np.ndarray:
        return hires_run(
            built.folder, prompt=PROMPT, latents=built.latents, noise=built.noise(*size),
            upscaler=MODES[mode], scheduler=scheduler,
            second={"strength": strength, "num_inference_steps": steps}, **CALL,
        )  # fmt: skip

    found = built.pipeline(
        PROMPT, latents=built.latents, seed=SEED, gate_step=100, scheduler=scheduler,
        hires=f"{size[0]}x{size[1]}", hires_strength=strength, hires_steps=steps,
        hires_upscaler=upscaler, output_type="latent", **CALL,
    )  # fmt: skip
    assert relative(found.images, expected(upscaler)) < RELATIVE
    other = "latent-nearest" if upscaler != "latent-nearest" else "latent"
    assert relative(found.images, expected(other)) > 10 * RELATIVE


@pytest.mark.parametrize("upscaler", MODES)
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++2m", "pndm"])
def test_as_diffusers(built: Built, scheduler: str, upscaler: str) -> None:
    assert_as_diffusers(built, scheduler, upscaler, (32, 24), 0.7, 7)


@pytest.mark.parametrize("upscaler", ["latent-bicubic", "lanczos"])
@pytest.mark.parametrize("scheduler", ["euler", "dpm++2m"])
def test_sdxl_as_diffusers(sdxl: Built, scheduler: str, upscaler: str) -> None:
    """Its sizes, which are conditions, are those of each pass."""
    assert_as_diffusers(sdxl, scheduler, upscaler, (32, 32), 0.5, 6)


def test_the_gate_keeps_its_place_and_progress_covers_both_passes(built: Built) -> None:
    infos: list[StepInfo] = []
    found = built.pipeline(
        PROMPT, seed=1, hires=2, hires_steps=10, hires_strength=0.6, num_inference_steps=5,
        gate_step=3, callback_on_step_end=infos.append,
    )  # fmt: skip
    phases = [*["full"] * 3, *["gated"] * 2, *["full"] * 4, *["gated"] * 2]  # 3 * 6 / 5
    assert [info.phase for info in infos] == phases
    assert [info.step for info in infos] == list(range(11))
    assert {info.evaluations for info in infos} == {11}
    assert [step.phase for step in found.timings.steps] == phases
    assert found.images[0].size == (32, 32)
    ungated = built.pipeline(
        PROMPT, hires=2, num_inference_steps=3, gate_step=3, output_type="latent"
    )
    assert {step.phase for step in ungated.timings.steps} == {"full"}


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_one_seed_makes_both_passes(built: Built, upscaler: str) -> None:
    def run(seed: int, **options: Any) -> np.ndarray:
        call = {"scheduler": "euler-a", "hires": 1.5, "hires_upscaler": upscaler, **CALL}
        found = built.pipeline(PROMPT, seed=seed, output_type="np", **call | options)
        return np.asarray(found.images)

    assert np.array_equal(run(1), run(1))
    several = run(1, num_images_per_prompt=3)
    assert several.shape == (3, 24, 24, 3)
    assert relative(several[2], run(3)[0]) < RELATIVE
    assert relative(run(1), run(2)) > 10 * RELATIVE


def test_in_flight_batches_equal_solo_runs(built: Built) -> None:
    calls: list[dict[str, Any]] = [
        {"prompt": "a", "hires": 2, "seed": 1, **CALL},
        {"prompt": "b", "hires": 2, "hires_upscaler": "lanczos", "seed": 2, **CALL},
        {"prompt": "c", "seed": 3, **CALL},
        {"prompt": "d", "seed": 3, "width": 32, "height": 32, **CALL},
        {"prompt": ["e", "f"], "hires": "32x48", "scheduler": "dpm++2m", "seed": 4, **CALL},
    ]
    with batcher_of(built.pipeline) as batcher:
        assert_equals_solo(batcher, built.pipeline, calls)
        steps: list[tuple[int, int]] = []
        batcher.submit(
            batcher.request("a", hires=2, hires_strength=0.6, **CALL),
            on_step=lambda step: steps.append((step.step, step.evaluations)),
        ).result(60)
    assert steps == [(step, 8) for step in range(8)]


def test_latents_in_place_of_an_image(built: Built) -> None:
    """As in diffusers: what a run gives as latents, another one begins with."""
    call = CALL | {"scheduler": "ddim", "seed": SEED, "output_type": "latent"}
    first = built.pipeline(PROMPT, **call)
    second = built.pipeline(PROMPT, image=first.images, strength=0.6, **call)
    decoded = built.pipeline(PROMPT, **call | {"output_type": "np"})
    as_pictures = built.pipeline(PROMPT, image=decoded.images, strength=0.6, **call)
    assert np.asarray(second.images).shape == (1, 4, 8, 8)
    assert relative(as_pictures.images, np.asarray(second.images)) > 10 * RELATIVE


def test_without_the_encoder(tiny_dynamic_bundle: Path, built: Built) -> None:
    """Latents are enlarged without it; how a run begins with them is compiled when asked for."""
    pipeline = TGatePipeline.from_bundle(tiny_dynamic_bundle, "onnxruntime:cpu")
    call = CALL | {
        "seed": SEED, "latents": built.latents, "width": 16, "height": 16, "hires": 2,
        "scheduler": "euler", "output_type": "latent", "gate_step": 3,
    }  # fmt: skip
    found = pipeline(PROMPT, **call)
    assert relative(found.images, np.asarray(built.pipeline(PROMPT, **call).images)) < RELATIVE
    with pytest.raises(InvalidRequestError, match=r"upscaler lanczos: .* image-to-im") as caught:
        pipeline(PROMPT, **call, hires_upscaler="lanczos")
    assert "--image-to-image" in caught.value.worded(on_command_line)


def test_a_bundle_of_one_size_says_how_to_build_it(tiny_bundle: Path) -> None:
    pipeline = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    with pytest.raises(InvalidRequestError, match="hires 32x32 does not fit") as caught:
        pipeline(PROMPT, hires=2)
    assert caught.value.worded(on_command_line).endswith(
        "build it for both sizes: --size 16x16:16x16:32x32"
    )
