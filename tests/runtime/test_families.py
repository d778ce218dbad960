"""Every family's runs: against the official T-GATE package, and ungated against diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.oracle.families import diffusers_run, official_latents
from tgate_export import TGatePipeline
from tgate_export.export.build import build_bundle

PROMPTS = ("A red circle on a blue background ", "an umbrella")
NEGATIVE = "a green Square"
STEPS = 6
GUIDANCE = 6.0
# fp32 on both sides: 2e-6 is what rounding makes of it. A gate that is one step off changes latents
# by more than three times the bound (tested below).
RELATIVE = 2e-5


@dataclass(frozen=True)
class Built:
    """A tiny pipeline's folder and its bundle, loaded."""

    folder: Path
    pipeline: TGatePipeline


@pytest.fixture(scope="module", params=tiny.PIPELINES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("families") / request.param
    kind = tiny.PIPELINES[request.param]
    kind.save(folder)
    bundle = build_bundle(
        str(folder), size=tiny.SIZE, batch=kind.batch, out=folder.with_name("bundle")
    )
    return Built(folder, TGatePipeline.from_bundle(bundle.path))


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
