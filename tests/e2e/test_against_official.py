"""Whole runs against the official T-GATE package: prompts in, final latents out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.oracle.families import diffusers_run, gated_run
from tests.oracle.official_tgate import SCHEDULERS, load_pipeline, official_latents
from tgate_export import TGatePipeline

PROMPT, NEGATIVE = "a red circle on a blue background", "a green square"

# fp32 on both sides: rounding reaches 1e-6 a step, and a run amplifies it. A gate that is one step
# off changes latents by more than three times this (tested below).
RELATIVE = 1e-3


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path, cpu_backend: str) -> TGatePipeline:
    return TGatePipeline.from_bundle(tiny_bundle, cpu_backend)


@pytest.mark.parametrize("gate_step", [1, 4, 9, 10])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_tiny_latents(
    pipeline: TGatePipeline, tiny_pipeline_dir: Path, scheduler: str, gate_step: int
) -> None:
    latents = np.random.default_rng(gate_step).standard_normal((2, 4, 8, 8), dtype=np.float32)
    ours = pipeline(
        [PROMPT, "an umbrella"], negative_prompt=NEGATIVE, num_inference_steps=10,
        gate_step=gate_step, guidance_scale=6.0, scheduler=scheduler, latents=latents,
        output_type="latent",
    )  # fmt: skip
    expected = np.concatenate(
        [
            official_latents(
                tiny_pipeline_dir, prompt=prompt, negative_prompt=NEGATIVE, latents=latents[[i]],
                steps=10, gate_step=gate_step, guidance_scale=6.0, scheduler=scheduler,
            )
            for i, prompt in enumerate((PROMPT, "an umbrella"))
        ]
    )  # fmt: skip
    assert relative(np.asarray(ours.images), expected) < RELATIVE


@pytest.fixture(scope="module")
def reusing(reuse_bundle: Path, cpu_backend: str) -> TGatePipeline:
    return TGatePipeline.from_bundle(reuse_bundle, cpu_backend)


# Reused self-attention changes little on random weights, so this bound is closer; measured: 1e-6.
CLOSE = 5e-6
# fp32 on both sides. Measured: 3e-6; numbers that are 1 off change latents by more than three times
# the bound, of trained weights numbers that are 0.05 off by 100 times.
EXACT = 1e-5

# gate step, sp_interval, fi_interval, warm_up; each of 10 steps.
VERSION_2 = [
    (8, 5, 1, 2),  # the official defaults, scaled
    (6, 2, 3, 1),
    (5, 3, 2, 0),
    (1, 4, 4, 0),  # nothing to reuse before the gate
    (9, 3, 2, 9),  # warm-up up to the gate
    (99, 4, 2, 1),  # no gate: self-attention alone is reused
]


@pytest.mark.parametrize("gating", VERSION_2)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_version_2_latents(
    reusing: TGatePipeline, tiny_pipeline_dir: Path, scheduler: str, gating: tuple[int, ...]
) -> None:
    names = ("gate_step", "sp_interval", "fi_interval", "warm_up")
    run = {
        "num_inference_steps": 10, "guidance_scale": 6.0, "scheduler": scheduler,
        **dict(zip(names, gating, strict=True)),
    }  # fmt: skip
    latents = np.random.default_rng(sum(gating)).standard_normal((2, 4, 8, 8), dtype=np.float32)
    prompts = [PROMPT, "an umbrella"]
    ours = reusing(prompts, negative_prompt=NEGATIVE, latents=latents, output_type="latent", **run)
    run["steps"] = run.pop("num_inference_steps")
    expected = np.concatenate(
        [
            official_latents(tiny_pipeline_dir, prompt=prompt, negative_prompt=NEGATIVE,
                             latents=latents[[i]], **run)
            for i, prompt in enumerate(prompts)
        ]
    )  # fmt: skip
    assert relative(np.asarray(ours.images), expected) < CLOSE


@pytest.mark.parametrize("numbers", [(0.5, 0.0), (1.25, 0.75)])
@pytest.mark.parametrize("gating", VERSION_2[:3])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_blended_and_carried_as_diffusers_with_hooks(
    reusing: TGatePipeline,
    tiny_pipeline_dir: Path,
    scheduler: str,
    gating: tuple[int, ...],
    numbers: tuple[float, float],
) -> None:
    names = ("gate_step", "sp_interval", "fi_interval", "warm_up")
    method = dict(zip(names, gating, strict=True))
    blend, carry = numbers
    random = np.random.default_rng(sum(gating))
    latents = random.standard_normal((1, 4, 8, 8), dtype=np.float32)
    # Two texts' embeddings are alike with random weights: the numbers would not matter.
    embeds, negative = random.standard_normal((2, 1, 77, 32), dtype=np.float32)
    run = {
        "num_inference_steps": 10, "guidance_scale": 6.0, "scheduler": scheduler,
        "latents": latents, "output_type": "latent",
    }  # fmt: skip
    ours = reusing(
        prompt_embeds=embeds, negative_prompt_embeds=negative, cache_blend=blend,
        guidance_carry=carry, **run, **method,
    )  # fmt: skip
    # PNDM evaluates once more before step 0.
    gates = method | {"scale": 6.0, "blend": blend, "carry": carry}
    gates["extra"] = int(scheduler == "pndm")
    run |= {
        "prompt": None, "prompt_embeds": torch.from_numpy(embeds),
        "negative_prompt_embeds": torch.from_numpy(negative),
    }  # fmt: skip
    expected = gated_run(diffusers_run, tiny_pipeline_dir, gates, **run)
    assert relative(np.asarray(ours.images), expected) < EXACT
    for name in ("blend", "carry"):
        other = gates | {name: gates[name] + 1.0}
        assert (
            relative(gated_run(diffusers_run, tiny_pipeline_dir, other, **run), expected)
            > 3 * EXACT
        )


@pytest.mark.parametrize("numbers", [(1.0, 0.0), (1.25, 0.75)])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_shapes_blended_and_carried_as_diffusers_with_hooks(
    shapes_pipeline: TGatePipeline, shapes_dir: Path, scheduler: str, numbers: tuple[float, float]
) -> None:
    """With trained weights: a number that is 0.05 off is 100 bounds away."""
    blend, carry = numbers
    latents = np.random.default_rng(5).standard_normal(
        (1, *latent_shape(shapes_pipeline)), dtype=np.float32
    )
    run = {
        "prompt": PROMPT, "num_inference_steps": 10, "guidance_scale": 5.0, "scheduler": scheduler,
        "latents": latents, "output_type": "latent",
    }  # fmt: skip
    ours = shapes_pipeline(**run, gate_step=3, cache_blend=blend, guidance_carry=carry)
    gates = {"gate_step": 3, "scale": 5.0, "blend": blend, "carry": carry}
    gates["extra"] = int(scheduler == "pndm")
    expected = gated_run(diffusers_run, shapes_dir, gates, **run)
    assert relative(np.asarray(ours.images), expected) < EXACT
    for name in ("blend", "carry"):
        other = gates | {name: gates[name] + 0.05}
        assert relative(gated_run(diffusers_run, shapes_dir, other, **run), expected) > 100 * EXACT


def test_another_interval_differs(reusing: TGatePipeline) -> None:
    """The bound above can tell one step more or less of self-attention apart."""
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    runs = [
        np.asarray(
            reusing(PROMPT, num_inference_steps=10, gate_step=6, guidance_scale=6.0,
                    latents=latents, output_type="latent", **gating).images
        )
        for gating in (
            {"sp_interval": 2, "fi_interval": 1, "warm_up": 1},
            {"sp_interval": 1, "fi_interval": 2, "warm_up": 0},
            {"sp_interval": 1, "fi_interval": 3, "warm_up": 0},
            {"sp_interval": 1, "fi_interval": 1, "warm_up": 0},
        )
    ]  # fmt: skip
    for i, one in enumerate(runs):
        for other in runs[:i]:
            assert relative(one, other) > 2 * CLOSE


def test_another_gate_differs(pipeline: TGatePipeline) -> None:
    """The bound above can tell neighbouring gates apart, even on random weights."""
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    runs = [
        np.asarray(
            pipeline(PROMPT, num_inference_steps=10, gate_step=gate, guidance_scale=6.0,
                     latents=latents, output_type="latent").images
        )
        for gate in (4, 5)
    ]  # fmt: skip
    assert relative(runs[0], runs[1]) > 3 * RELATIVE


@pytest.mark.parametrize("gate_step", [1, 5, 10, 25])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_shapes_latents(
    shapes_pipeline: TGatePipeline, shapes_dir: Path, scheduler: str, gate_step: int
) -> None:
    latents = np.random.default_rng(gate_step).standard_normal(
        (1, *latent_shape(shapes_pipeline)), dtype=np.float32
    )
    ours = shapes_pipeline(
        PROMPT, num_inference_steps=25, gate_step=gate_step, scheduler=scheduler, latents=latents,
        output_type="latent", cache_blend=0.5, guidance_carry=0.0,
    )  # fmt: skip
    expected = official_latents(
        shapes_dir, prompt=PROMPT, negative_prompt="", latents=latents, steps=25,
        gate_step=gate_step, guidance_scale=ours.request.guidance_scales[0], scheduler=scheduler,
    )  # fmt: skip
    assert relative(np.asarray(ours.images), expected) < RELATIVE


def test_image_equals_diffusers(shapes_pipeline: TGatePipeline, shapes_dir: Path) -> None:
    """Decoding and rounding: diffusers' own image of the same latents, to one grey level."""
    import torch

    latents = np.random.default_rng(3).standard_normal(
        (1, *latent_shape(shapes_pipeline)), dtype=np.float32
    )
    ours = shapes_pipeline(PROMPT, num_inference_steps=10, gate_step=10, latents=latents)
    pipe = load_pipeline(shapes_dir)
    final = official_latents(
        shapes_dir, prompt=PROMPT, negative_prompt="", latents=latents, steps=10, gate_step=10,
        guidance_scale=ours.request.guidance_scales[0], scheduler="ddim",
    )  # fmt: skip
    with torch.no_grad():
        decoded = pipe.vae.decode(torch.from_numpy(final) / pipe.vae.config.scaling_factor)[0]
    expected = np.asarray(pipe.image_processor.postprocess(decoded, output_type="pil")[0])
    difference = np.abs(np.asarray(ours.images[0]).astype(int) - expected.astype(int))
    assert difference.max() <= 1


def latent_shape(pipeline: TGatePipeline) -> tuple[int, int, int]:
    manifest = pipeline.manifest
    downscale = manifest.latents.downscale
    return (
        manifest.latents.channels,
        manifest.size.height.opt // downscale,
        manifest.size.width.opt // downscale,
    )
