"""Runs that begin with an image: against diffusers, and gated ones against the official package."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch

from tests.oracle.families import (
    as_diffusers,
    diffusers_embeds,
    diffusers_image_run,
    gated_run,
    image_latents,
    load_pipeline,
)
from tests.support import tiny
from tests.support.once import made_once
from tests.support.solo import assert_equals_solo, batcher_of
from tgate_export import TGatePipeline
from tgate_export.build.build import build_bundle
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import InvalidRequestError
from tgate_export.families.registry import FAMILIES
from tgate_export.runtime.step_info import StepInfo

PROMPTS = ("A red circle on a blue background ", "an umbrella")
CALL: dict[str, Any] = {"guidance_scale": 6.0, "num_inference_steps": 7}
# As in test_families.
RELATIVE = 2e-5


@dataclass(frozen=True)
class Built:
    """A tiny pipeline's folder, its bundle, and what a call takes: images and noise."""

    folder: Path
    pipeline: TGatePipeline
    images: np.ndarray
    noise: np.ndarray


# One of each family; others than Stable Diffusion take minutes to build.
KINDS = [
    kinds[0].name
    for name, kinds in tiny.FAMILIES.items()
    if FAMILIES[name].image_to_image and not kinds[0].refiner  # see test_refiner
]


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name != "sd15")) for name in KINDS],
)
def folder_and_bundle(
    request: pytest.FixtureRequest,
    tiny_pipeline_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    folder = tiny_pipeline_dir
    if request.param != "sd15":
        folder = tmp_path_factory.mktemp("pipelines") / request.param
        tiny.save(request.param, folder)
        # The starts of the other pipeline's scheduler are kept.
        shutil.copytree(tiny_pipeline_dir / "scheduler", folder / "scheduler", dirs_exist_ok=True)
    with tiny.only_samplers("ddim", "euler", "euler-a", "dpm++2m", "pndm"):
        bundle = made_once(
            tmp_path_factory, f"bundles/image-to-image-{request.param}",
            lambda out: build_bundle(str(folder), image_to_image=True, out=out),
        )  # fmt: skip
    return folder, bundle


@pytest.fixture(scope="module")
def built(folder_and_bundle: tuple[Path, Path], cpu_backend: str) -> Built:
    folder, bundle = folder_and_bundle
    pipeline = TGatePipeline.from_bundle(bundle, cpu_backend)
    manifest, random = pipeline.manifest, np.random.default_rng(0)
    side = manifest.size.height.opt
    latents = (2, manifest.latents.channels, *(2 * [side // manifest.latents.downscale]))
    return Built(
        folder,
        pipeline,
        random.random((2, side, side, 3), dtype=np.float32),
        random.standard_normal(latents, dtype=np.float32),
    )


def relative(found: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++2m", "pndm"])
def test_ungated_as_diffusers(built: Built, scheduler: str, strength: float) -> None:
    ours = built.pipeline(
        PROMPTS, image=built.images, strength=strength, latents=built.noise, gate_step=100,
        scheduler=scheduler, output_type="latent", **CALL,
    )  # fmt: skip
    for index, prompt in enumerate(PROMPTS):
        expected = diffusers_image_run(
            built.folder, prompt=prompt, image=built.images[[index]], strength=strength,
            noise=built.noise[[index]], scheduler=scheduler, **CALL,
        )  # fmt: skip
        assert relative(ours.images[index], expected[0]) < RELATIVE
    other = built.pipeline(
        PROMPTS, image=1 - built.images, strength=strength, latents=built.noise, gate_step=100,
        scheduler=scheduler, output_type="latent", **CALL,
    )  # fmt: skip
    assert relative(other.images, np.asarray(ours.images)) > 3 * RELATIVE


def test_the_gate_counts_executed_steps(built: Built) -> None:
    phases: list[str] = []

    def note(info: StepInfo) -> None:
        phases.append(info.phase)

    call = CALL | {"image": built.images, "scheduler": "euler", "callback_on_step_end": note}
    built.pipeline(PROMPTS, strength=0.6, gate_step=3, **call)  # int(7 * 0.6) are 4
    assert phases == ["full"] * 3 + ["gated"]
    phases.clear()
    # The default gate of 10 of 25 keeps its place: 10 * 4 / 25.
    built.pipeline(PROMPTS, strength=0.6, **call)
    assert phases == ["full"] * 2 + ["gated"] * 2


class Later(diffusers.DDIMScheduler):
    """The end of a run of 7 steps, from noised latents; a run of its own for the package."""

    def set_timesteps(self, num_inference_steps: int, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(7, *args, **kwargs)
        self.timesteps = self.timesteps[7 - num_inference_steps :]


@pytest.mark.parametrize("gate_step", [1, 3])
def test_gated_as_the_official_package(built: Built, gate_step: int) -> None:
    """The package has no image-to-image, but it can run the end of a run."""
    strength, executed = 0.6, 4
    ours = built.pipeline(
        PROMPTS, image=built.images, strength=strength, latents=built.noise, gate_step=gate_step,
        scheduler="ddim", output_type="latent", **CALL,
    )  # fmt: skip
    pipe = load_pipeline(built.folder, "tgate")
    later = Later.from_config(pipe.scheduler.config, clip_sample=False)
    later.set_timesteps(executed)
    image = torch.from_numpy(image_latents(built.folder, built.images))
    noised = later.add_noise(image, torch.from_numpy(built.noise), later.timesteps[[0, 0]])
    from tests.oracle import families

    for index, prompt in enumerate(PROMPTS):
        with mock.patch.object(families, "_with_scheduler", lambda pipe, _: _swap(pipe, later)):
            expected = families.official_latents(
                built.folder, prompt=prompt, latents=noised[[index]].numpy(), scheduler="ddim",
                gate_step=gate_step, **CALL | {"num_inference_steps": executed},
            )  # fmt: skip
        assert relative(ours.images[index], expected[0]) < RELATIVE


@pytest.mark.parametrize(("blend", "carry"), [(0.5, 0.0), (1.25, 0.75)])
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++2m"])
def test_blended_and_carried_as_diffusers_with_hooks(
    built: Built, scheduler: str, blend: float, carry: float
) -> None:
    embeds, negatives = diffusers_embeds(built.folder, PROMPTS, "")
    # Two texts' embeddings are alike with random weights: the numbers would not matter.
    random, shape = np.random.default_rng(1), embeds["prompt_embeds"].shape
    embeds["prompt_embeds"] = random.standard_normal(shape, dtype=np.float32)
    ours = built.pipeline(
        prompt_embeds=embeds, negative_prompt_embeds=negatives, image=built.images, strength=0.6,
        latents=built.noise, gate_step=2, scheduler=scheduler, output_type="latent",
        cache_blend=blend, guidance_carry=carry, **CALL,
    )  # fmt: skip
    gates = {"gate_step": 2, "scale": CALL["guidance_scale"], "blend": blend, "carry": carry}
    for index in range(len(PROMPTS)):
        run = {
            "image": built.images[[index]], "noise": built.noise[[index]], "strength": 0.6,
            "scheduler": scheduler, **as_diffusers(embeds, negatives, index), **CALL,
        }  # fmt: skip
        expected = gated_run(diffusers_image_run, built.folder, gates, **run)
        assert relative(ours.images[index], expected[0]) < 1e-5
        for name in ("blend", "carry"):
            other = gated_run(
                diffusers_image_run, built.folder, gates | {name: gates[name] + 1.0}, **run
            )
            assert relative(other, expected) > 3e-5


def _swap(pipe: Any, scheduler: Any) -> Any:
    pipe.scheduler = scheduler
    return pipe


def test_seeds_differ_and_repeat(built: Built) -> None:
    def run(seed: int) -> np.ndarray:
        found = built.pipeline(
            PROMPTS, image=built.images, seed=seed, scheduler="euler-a", output_type="np", **CALL
        )
        return np.asarray(found.images)

    assert np.array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


def test_several_images_of_a_prompt_begin_with_its_image(built: Built) -> None:
    call = CALL | {"scheduler": "ddim", "output_type": "latent", "strength": 0.3}
    both = built.pipeline(
        PROMPTS, image=built.images, num_images_per_prompt=2, latents=built.noise.repeat(2, 0),
        **call,
    )  # fmt: skip
    once = built.pipeline(PROMPTS, image=built.images, latents=built.noise, **call)
    assert relative(both.images, np.asarray(once.images).repeat(2, 0)) < RELATIVE


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"strength": 0.5}, "strength 0.5 has no effect without an image"),
        ({"image": "images", "strength": 0.0}, "strength must be above 0 and at most 1, got 0.0"),
        ({"image": "images", "strength": 1.5}, "strength must be above 0 and at most 1, got 1.5"),
        ({"image": "images", "strength": float("nan")}, "strength must be above 0"),
        ({"image": "images", "strength": 0.1}, "strength 0.1 of 7 steps leaves no step to run"),
        ({"image": np.zeros((8, 8, 3))}, "height 8 does not fit: this bundle was built for"),
        ({"image": "images", "width": 512}, r"the image is (\d+)x\1, asked for is 512x"),
    ],
)
def test_what_makes_no_run_is_refused(built: Built, call: dict[str, Any], message: str) -> None:
    if isinstance(call.get("image"), str):
        call = call | {"image": built.images}
    with pytest.raises(InvalidRequestError, match=message):
        built.pipeline(PROMPTS, **CALL | call)


def test_a_bundle_without_it_says_how_to_build_it(tiny_bundle: Path) -> None:
    pipeline = TGatePipeline.from_bundle(tiny_bundle)
    with pytest.raises(InvalidRequestError, match="built without image-to-image") as caught:
        pipeline(PROMPTS, image=np.zeros((16, 16, 3)), seed=0)
    command = shlex.split(caught.value.worded(on_command_line).split(": ")[-1])
    assert command[:2] == ["tgate-export", "build"]
    assert "--image-to-image" in command
    assert str(caught.value).endswith(", image_to_image=True)")


def test_a_family_without_it_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pixart"
    tiny.save("pixart-alpha", folder)
    with pytest.raises(InvalidRequestError, match="PixArtAlphaPipeline, which has no image-to-im"):
        build_bundle(str(folder), image_to_image=True, out=tmp_path / "bundle")


def test_in_flight_batches_equal_solo_runs(built: Built) -> None:
    calls: list[dict[str, Any]] = [
        {"prompt": "a", "image": built.images[0], "strength": 0.5, "seed": 1, **CALL},
        {"prompt": "b", "image": built.images[1], "latents": built.noise[:1], **CALL},
        {"prompt": "c", "seed": 3, **CALL},
        {"prompt": PROMPTS, "image": list(built.images), "scheduler": "dpm++2m", "seed": 4, **CALL},
    ]
    with batcher_of(built.pipeline) as batcher:
        assert_equals_solo(batcher, built.pipeline, calls)
