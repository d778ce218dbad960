"""What a caller sees of `TGatePipeline`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tgate_export import TGatePipeline
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.backends import select
from tgate_export.runtime.backends.base import BackendError
from tgate_export.runtime.step_info import StepInfo

# One sample alone and in a batch: the same graph, another summation order in the kernels.
BATCH_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path, cpu_backend: str) -> TGatePipeline:
    return TGatePipeline.from_bundle(tiny_bundle, cpu_backend)


def latents_of(pipeline: TGatePipeline, prompt: Any, **kwargs: Any) -> np.ndarray:
    defaults = {"num_inference_steps": 4, "gate_step": 2, "seed": 5, "output_type": "latent"}
    return np.asarray(pipeline(prompt, **(defaults | kwargs)).images)


def test_output_types(pipeline: TGatePipeline) -> None:
    run = {"num_inference_steps": 2, "gate_step": 1, "seed": 0}
    (image,) = pipeline("a", **run, output_type="pil").images
    array = np.asarray(pipeline("a", **run, output_type="np").images)
    assert isinstance(image, Image.Image)
    assert array.shape == (1, 16, 16, 3)
    assert array.dtype == np.float32
    assert array.min() >= 0
    assert array.max() <= 1
    np.testing.assert_array_equal(np.asarray(image), np.uint8(np.round(array[0] * 255)))
    assert latents_of(pipeline, "a").shape == (1, 4, 8, 8)


def test_same_seed_same_picture(pipeline: TGatePipeline) -> None:
    first, again = latents_of(pipeline, "a", seed=1), latents_of(pipeline, "a", seed=1)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - latents_of(pipeline, "a", seed=2)).max() > 0.1


def test_a_random_seed_is_reported_and_repeats(pipeline: TGatePipeline) -> None:
    output = pipeline("a", num_inference_steps=2, output_type="latent")
    again = latents_of(
        pipeline, "a", seed=output.request.seed, num_inference_steps=2,
        gate_step=output.request.gate_step,
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(output.images), again)


def test_batch_equals_single_runs(pipeline: TGatePipeline) -> None:
    noise = np.random.default_rng(0).standard_normal((3, 4, 8, 8), dtype=np.float32)
    prompts, negatives = ["a", "b c", "d"], ["", "x", "y z"]
    together = latents_of(pipeline, prompts, negative_prompt=negatives, latents=noise)
    for index in range(3):
        alone = latents_of(
            pipeline, prompts[index], negative_prompt=negatives[index], latents=noise[index, None]
        )
        np.testing.assert_allclose(together[index], alone[0], atol=BATCH_TOLERANCE)


def test_more_images_than_the_batch_are_split(pipeline: TGatePipeline) -> None:
    largest = pipeline.manifest.batch.max
    many = latents_of(pipeline, "a", num_images_per_prompt=largest + 1)
    assert len(many) == largest + 1
    assert len(np.unique(many.reshape(len(many), -1)[:, 0])) == largest + 1
    first = latents_of(pipeline, "a")
    np.testing.assert_allclose(many[0], first[0], atol=BATCH_TOLERANCE)


def test_callback_sees_every_step(pipeline: TGatePipeline) -> None:
    seen: list[StepInfo] = []
    final: list[np.ndarray] = []

    def record(info: StepInfo) -> None:
        seen.append(info)
        final.append(info.latents())

    output = pipeline(
        "a", num_inference_steps=5, gate_step=2, seed=0, output_type="latent",
        callback_on_step_end=record,
    )  # fmt: skip
    assert [info.phase for info in seen] == ["full"] * 2 + ["gated"] * 3
    assert [info.step for info in seen] == list(range(5))
    assert [info.timestep for info in seen] == [801, 601, 401, 201, 1]
    np.testing.assert_array_equal(final[-1], np.asarray(output.images))


def test_an_exception_in_the_callback_ends_the_run(pipeline: TGatePipeline) -> None:
    def stop(info: StepInfo) -> None:
        if info.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline("a", num_inference_steps=4, callback_on_step_end=stop)
    np.testing.assert_array_equal(latents_of(pipeline, "a"), latents_of(pipeline, "a"))


def test_timings_add_up(pipeline: TGatePipeline) -> None:
    timings = pipeline("a", num_inference_steps=6, gate_step=2, seed=0).timings
    assert [step.phase for step in timings.steps] == ["full"] * 2 + ["gated"] * 4
    parts = timings.text_encoder + timings.vae_decoder
    parts += sum(step.denoiser for step in timings.steps)
    assert timings.outside_engines == pytest.approx(timings.total - parts)
    assert 0 < sum(step.sampler for step in timings.steps) < timings.outside_engines
    report = timings.as_dict()
    assert report["phases"]["gated"]["evaluations"] == 4


def test_guidance_one_is_the_prompt_alone(pipeline: TGatePipeline) -> None:
    """noise = uncond + 1 (cond - uncond): without a gate the negative prompt has no say."""
    run = {"guidance_scale": 1.0, "gate_step": 99}
    first = latents_of(pipeline, "a", negative_prompt="x", **run)
    np.testing.assert_allclose(
        first, latents_of(pipeline, "a", negative_prompt="quite another", **run), atol=1e-4
    )
    other = latents_of(pipeline, "a", negative_prompt="quite another", gate_step=99)
    assert np.abs(first - other).max() > 1e-2


def test_default_gate_scales_with_steps(pipeline: TGatePipeline) -> None:
    """10 of 25 by default; a gate of 0 would be none that the method has."""
    for steps, gate in ((5, 2), (50, 20), (1, 1)):
        request = pipeline("a", num_inference_steps=steps, output_type="latent").request
        assert request.gate_step == gate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "prompt must be"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"num_inference_steps": 0}, "steps must be at least 1"),
        ({"num_inference_steps": 101}, "steps must be 1 to 100"),
        ({"gate_step": 0}, "gate_step must be at least 1"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite"),
        ({"scheduler": "dmp"}, "unknown scheduler 'dmp'.*ddim"),
        ({"seed": -1}, "seed must be"),
        ({"num_images_per_prompt": 0}, "num_images must be"),
        ({"height": 24}, "height 24 does not fit"),
        ({"latents": np.zeros((1, 4, 4, 4))}, r"latents have shape \[1, 4, 4, 4\]"),
        ({"latents": np.full((1, 4, 8, 8), np.nan)}, "not finite"),
        ({"output_type": "jpg"}, "unknown output_type"),
    ],
)
def test_bad_requests_are_named(
    pipeline: TGatePipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        pipeline(**({"prompt": "a"} | arguments))


def test_backends_that_cannot_run_say_so(
    pipeline: TGatePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InvalidRequestError, match=r"unknown backend 'cuda'.*onnxruntime:cuda"):
        select("cuda", pipeline.bundle)
    with pytest.raises(BackendError, match=r"no CUDAExecutionProvider.*pip install"):
        select("onnxruntime:cuda", pipeline.bundle)
