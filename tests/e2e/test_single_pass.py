"""Models without classifier-free guidance: one pass a step, before the gate and after it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from tests.oracle import hooked_diffusers
from tests.support import tiny
from tests.support.once import made_once
from tgate_export import TGatePipeline
from tgate_export.build.build import build_bundle
from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.sampler_names import SCHEDULER_CONFIG
from tgate_export.bundle.sampler_table import SamplerTable
from tgate_export.common.errors import InvalidRequestError
from tgate_export.families.source import resolve_source
from tgate_export.runtime import run_plan
from tgate_export.runtime.noise import standard_normal
from tgate_export.samplers.tables import compile_sampler

PROMPTS = ["a red circle on a blue background", "an umbrella"]
# fp32 on both sides; 6e-7 was measured.
RELATIVE = 5e-6


@pytest.fixture(scope="session")
def lcm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "pipelines/lcm", lambda folder: tiny.save("lcm", folder))


@pytest.fixture(scope="session")
def embedded_bundle(lcm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with tiny.only_samplers("ddim", "lcm", "euler-a"):
        return made_once(
            tmp_path_factory, "bundles/lcm",
            lambda out: build_bundle(str(lcm_dir), batch=tiny.FIXED, out=out),
        )  # fmt: skip


@pytest.fixture(scope="session")
def unguided_bundle(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with tiny.only_samplers("ddim"):
        return made_once(
            tmp_path_factory, "bundles/unguided",
            lambda out: build_bundle(
                str(tiny_pipeline_dir), batch=tiny.FIXED, guidance="none", out=out
            ),
        )  # fmt: skip


@pytest.fixture(scope="module")
def embedded(embedded_bundle: Path, cpu_backend: str) -> TGatePipeline:
    return TGatePipeline.from_bundle(embedded_bundle, cpu_backend)


@pytest.fixture(scope="module")
def unguided(unguided_bundle: Path, cpu_backend: str) -> TGatePipeline:
    return TGatePipeline.from_bundle(unguided_bundle, cpu_backend)


def inputs(pipeline: TGatePipeline, graph: str) -> list[str]:
    return [tensor.name for tensor in pipeline.manifest.graphs[graph].inputs]


def assert_equal(ours: Any, expected: np.ndarray) -> None:
    difference = np.abs(np.asarray(ours.images) - expected).max()
    assert difference <= RELATIVE * np.abs(expected).max()


@pytest.mark.parametrize("gate_step", [1, 2, 4])
def test_guidance_as_an_embedding(embedded: TGatePipeline, lcm_dir: Path, gate_step: int) -> None:
    latents = np.random.default_rng(gate_step).standard_normal((2, 4, 8, 8), dtype=np.float32)
    run: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 8.5, "latents": latents}
    ours = embedded(PROMPTS, gate_step=gate_step, scheduler="ddim", output_type="latent", **run)
    pipe = hooked_diffusers.load(lcm_dir)
    expected = hooked_diffusers.gated_latents(pipe, prompt=PROMPTS, gate_step=gate_step, **run)
    assert_equal(ours, expected)
    other = embedded(
        PROMPTS, gate_step=gate_step, scheduler="ddim", output_type="latent",
        **(run | {"guidance_scale": 1.5}),
    )  # fmt: skip
    assert np.abs(np.asarray(other.images) - expected).max() > 100 * RELATIVE


@pytest.mark.parametrize(
    ("scheduler", "module", "cls"),
    [
        ("lcm", "scheduling_lcm", "LCMScheduler"),
        ("euler-a", "scheduling_euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"),
    ],
)
def test_samplers_that_draw_noise(
    embedded: TGatePipeline,
    lcm_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheduler: str,
    module: str,
    cls: str,
) -> None:
    """diffusers' own scheduler, given the noise that `engines/README.md` describes."""
    draws = iter(range(1, 100))

    def documented(shape: Any, **_kwargs: Any) -> torch.Tensor:
        draw = next(draws)
        noise = [standard_normal(tuple(shape[1:]), 11, image, draw) for image in range(shape[0])]
        return torch.from_numpy(np.stack(noise))

    latents = np.stack([standard_normal((4, 8, 8), 11, image) for image in range(2)])
    run = {"num_inference_steps": 4, "guidance_scale": 8.5}
    ours = embedded(PROMPTS, seed=11, gate_step=2, scheduler=scheduler, output_type="latent", **run)
    pipe = hooked_diffusers.load(lcm_dir, cls)
    monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", documented)
    expected = hooked_diffusers.gated_latents(
        pipe, prompt=PROMPTS, gate_step=2, latents=latents, **run
    )
    assert next(draws) > 3
    assert_equal(ours, expected)
    # A deterministic run after it, in the same memory, is not touched by the noise.
    again = [
        embedded(PROMPTS, seed=11, scheduler="ddim", output_type="latent", **run).images
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*again)


@pytest.mark.parametrize("steps", [4, 10, 25])
@pytest.mark.parametrize(
    ("scheduler", "cls", "overrides", "evaluations"),
    [
        ("heun", "HeunDiscreteScheduler", {}, 2),
        ("DPM2 a", "KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}, 2),
        ("dpm++2m-sde", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 1),
        ("LMS Karras", "LMSDiscreteScheduler", {"use_karras_sigmas": True}, 1),
    ],
)
def test_samplers_that_the_bundle_lacks(
    unguided: TGatePipeline,
    tiny_pipeline_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheduler: str,
    cls: str,
    overrides: dict[str, Any],
    evaluations: int,
    steps: int,
) -> None:
    """Two evaluations a step, or noise with a history, across a gate; compiled when asked for."""
    monkeypatch.setattr(run_plan, "compile_table", compile_here)
    pipe = hooked_diffusers.load(tiny_pipeline_dir)
    pipe.scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config, **overrides)
    evaluation = -1

    def counted(*_args: Any) -> None:
        nonlocal evaluation
        evaluation += 1

    def documented(shape: Any, **_kwargs: Any) -> torch.Tensor:
        noise = [standard_normal(tuple(shape[1:]), 5, image, evaluation + 1) for image in range(2)]
        return torch.from_numpy(np.stack(noise))

    pipe.unet.register_forward_pre_hook(counted)
    module = sys.modules[type(pipe.scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", documented)
    gate_step = steps // 2
    expected = hooked_diffusers.gated_latents(
        pipe, prompt=PROMPTS, num_inference_steps=steps, gate_step=gate_step, guidance_scale=1.0,
        latents=np.stack([standard_normal((4, 8, 8), 5, image) for image in range(2)]),
        evaluations=evaluations,
    )  # fmt: skip
    assert evaluation + 1 == (2 * steps - 1 if evaluations == 2 else steps)
    phases = []
    ours = unguided(
        PROMPTS, num_inference_steps=steps, gate_step=gate_step, seed=5, scheduler=scheduler,
        output_type="latent", callback_on_step_end=lambda info: phases.append(info.phase),
    )  # fmt: skip
    assert phases == ["full"] * (gate_step * evaluations) + ["gated"] * (
        evaluation + 1 - gate_step * evaluations
    )
    assert_equal(ours, expected)


def compile_here(bundle: Bundle, scheduler: str, steps: int, *, starts: bool) -> SamplerTable:
    """Compile in this process, which has PyTorch already."""
    config = json.loads(bundle.file(SCHEDULER_CONFIG).read_text())
    return compile_sampler(
        scheduler, config, (steps,), family=bundle.manifest.family, starts=starts
    )


@pytest.mark.parametrize("gate_step", [1, 4, 99])
def test_no_guidance(unguided: TGatePipeline, tiny_pipeline_dir: Path, gate_step: int) -> None:
    latents = np.random.default_rng(gate_step).standard_normal((2, 4, 8, 8), dtype=np.float32)
    ours = unguided(
        PROMPTS, num_inference_steps=8, gate_step=gate_step, latents=latents, scheduler="ddim",
        output_type="latent",
    )  # fmt: skip
    expected = hooked_diffusers.gated_latents(
        hooked_diffusers.load(tiny_pipeline_dir), prompt=PROMPTS, num_inference_steps=8,
        gate_step=gate_step, guidance_scale=1.0, latents=latents,
    )  # fmt: skip
    assert_equal(ours, expected)
    with pytest.raises(InvalidRequestError, match="negative_prompt has no effect"):
        unguided(PROMPTS, negative_prompt="a")


def test_graphs_take_nothing_that_is_not_used(
    embedded: TGatePipeline, unguided: TGatePipeline
) -> None:
    scale = ["guidance_scale"]
    full, gated = ["sample", "timestep", "prompt_embeds"], ["sample", "timestep"]
    assert inputs(embedded, "full") == full + scale
    assert inputs(embedded, "gated") == [*gated, *scale, "cross_cache_0", "cross_cache_1"]
    assert inputs(unguided, "full") == full
    assert inputs(unguided, "gated") == [*gated, "cross_cache_0", "cross_cache_1"]
    assert (embedded.manifest.guidance, unguided.manifest.guidance) == ("embedded", "none")
    assert unguided.manifest.defaults.guidance_scale == 1.0


def test_an_embedding_cannot_be_left_out(lcm_dir: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"as an embedding .*leave guidance out$"):
        resolve_source(str(lcm_dir)).guided_by("none")
