"""Compiled samplers against the diffusers schedulers that they come from."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnxruntime
import pytest
import torch

from tgate_export.bundle.sampler_file import read_sampler_table, write_sampler_table
from tgate_export.bundle.sampler_table import (
    HISTORY,
    SamplerSteps,
    SamplerTable,
    advance,
)
from tgate_export.common.errors import InvalidRequestError
from tgate_export.samplers.graph import build_sampler_graph
from tgate_export.samplers.specs import EDM_SAMPLERS, SAMPLERS
from tgate_export.samplers.tables import (
    UnsupportedSchedulerError,
    compile_sampler,
    compile_scheduler,
    make_scheduler,
)

SD15 = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
    "timestep_spacing": "leading",
}
STEP_COUNTS = (1, 2, 3, 5, 10, 25, 50, 100)
HISTORY_USED = {
    "ddim": 0,
    "euler": 0,
    "euler-karras": 0,
    "dpm++2m": 1,
    "dpm++2m-karras": 1,
    "dpm++3m": 2,
    "deis": 1,
    "unipc": 2,
    "euler-a": 0,
    "lcm": 0,
    "pndm": 3,
}
SHAPE = (2, 4, 4, 4)
# Both sides round each of up to 101 steps to 32 bits (6e-8 a rounding), and the denoiser carries
# the difference on: 1.6e-6 at most, relative to the run's largest value. Scaling any one column of
# weights by 1.001 moves a run by 5e-5 or more (but for DEIS' push of the sample, which is 0).
TOLERANCE = 5e-6


def draws_noise(scheduler: Any) -> bool:
    return isinstance(
        scheduler,
        diffusers.EulerAncestralDiscreteScheduler
        | diffusers.LCMScheduler
        | diffusers.DDPMScheduler,
    )


Step = Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]


@cache
def compiled(name: str, prediction_type: str) -> SamplerTable:
    scheduler = make_scheduler(name, {**SD15, "prediction_type": prediction_type})
    return compile_scheduler(name, scheduler, STEP_COUNTS)


@cache
def sampler_session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        build_sampler_graph().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def denoise(model_input: np.ndarray, timestep: float) -> np.ndarray:
    """Stand in for a denoiser: not linear, and different at each timestep."""
    mixing = np.random.default_rng(5).standard_normal((SHAPE[-1], SHAPE[-1])).astype(np.float32)
    phase = np.float32(timestep / 100.0)
    return np.tanh(0.5 * model_input @ mixing + np.sin(phase)).astype(np.float32)


def drawn(count: int) -> torch.Generator:
    """What diffusers draws a run's noise from, and what our side draws the same noise from."""
    return torch.Generator().manual_seed(count)


def run_diffusers(scheduler: Any, num_inference_steps: int, latents: np.ndarray) -> np.ndarray:
    """Run the loop of a diffusers pipeline; return all samples [N + 1, B, C, h, w]."""
    scheduler.set_timesteps(num_inference_steps)
    sample = torch.from_numpy(latents) * scheduler.init_noise_sigma
    samples = [sample.numpy()]
    noise = {"generator": drawn(num_inference_steps)} if draws_noise(scheduler) else {}
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(sample, t)
        noise_pred = torch.from_numpy(denoise(model_input.numpy(), float(t)))
        sample = scheduler.step(noise_pred, t, sample, return_dict=False, **noise)[0]
        samples.append(sample.numpy())
    return np.stack(samples)


def run_table(
    steps: SamplerSteps, latents: np.ndarray, step: Step, image: np.ndarray | None = None
) -> np.ndarray:
    sample = latents * np.float32(steps.sample_scale)
    if image is not None:
        sample += image * np.float32(steps.image_scale)
    model_input = sample * np.float32(steps.input_scale)
    history = np.zeros((HISTORY, *latents.shape), dtype=np.float32)
    samples = [sample]
    generator = drawn(steps.num_inference_steps)
    for timestep, weights in zip(steps.timesteps, steps.weights, strict=True):
        noise_pred = denoise(model_input, float(timestep))
        noise = torch.randn(SHAPE, generator=generator).numpy()
        sample, model_input, history = step(weights, sample, noise_pred, history, noise)
        samples.append(sample)
    return np.stack(samples)


def advance_in_graph(
    weights: np.ndarray,
    sample: np.ndarray,
    noise_pred: np.ndarray,
    history: np.ndarray,
    noise: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    feeds = {
        "sample": sample,
        "noise_pred": noise_pred,
        "history": np.ascontiguousarray(history.swapaxes(0, 1)),
        "noise": noise,
        "weights": np.tile(weights, (len(sample), 1)),
    }
    names = ["next_sample", "denoiser_input", "next_history"]
    next_sample, denoiser_input, next_history = sampler_session().run(names, feeds)
    return next_sample, denoiser_input, next_history.swapaxes(0, 1)


def assert_follows(scheduler: Any, steps: SamplerSteps, step: Step) -> None:
    latents = np.random.default_rng(steps.num_inference_steps).standard_normal(SHAPE, np.float32)
    expected = run_diffusers(scheduler, steps.num_inference_steps, latents)
    found = run_table(steps, latents, step)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("step", [advance, advance_in_graph])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", [*SAMPLERS, *EDM_SAMPLERS])
def test_table_follows_diffusers(name: str, prediction_type: str, step: Step) -> None:
    table = compiled(name, prediction_type)
    assert table.steps.keys() == {count for count in STEP_COUNTS if name != "lcm" or count <= 50}
    for count in table.steps:
        scheduler = make_scheduler(name, {**SD15, "prediction_type": prediction_type})
        assert_follows(scheduler, table.for_steps(count), step)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_table_describes_itself(name: str, prediction_type: str) -> None:
    table = compiled(name, prediction_type)
    assert table.name == name
    assert table.scheduler_class == SAMPLERS[name].scheduler_class
    assert table.prediction_type == prediction_type
    assert table.history == HISTORY_USED[name]
    assert table.extra_evaluations == (1 if name == "pndm" else 0)
    assert table.residual < 5e-6
    assert [steps.draws_noise for steps in table.steps.values()] == [
        name in ("euler-a", "lcm") and count > 1 for count in table.steps
    ]
    for steps in table.steps.values():
        used = np.flatnonzero(np.abs(steps.weights[:, 2 : 2 + HISTORY]).max(axis=0))
        assert used.max(initial=-1) < table.history


def test_pndm_evaluates_once_more_but_for_a_single_step() -> None:
    table = compiled("pndm", "epsilon")
    extra = {count: table.steps[count].extra_evaluations for count in STEP_COUNTS}
    assert extra == {count: int(count > 1) for count in STEP_COUNTS}


def test_euler_scales_the_latents_and_the_input() -> None:
    steps = compiled("euler", "epsilon").for_steps(10)
    scheduler = make_scheduler("euler", SD15)
    scheduler.set_timesteps(10)
    assert steps.sample_scale == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-7)
    assert steps.input_scale == pytest.approx(1 / float(scheduler.sigmas[0] ** 2 + 1) ** 0.5)
    np.testing.assert_array_equal(steps.timesteps, scheduler.timesteps.numpy())


def test_sample_prediction() -> None:
    config = {**SD15, "prediction_type": "sample"}
    table = compile_scheduler("dpm++2m", make_scheduler("dpm++2m", config), (5,))
    assert_follows(make_scheduler("dpm++2m", config), table.for_steps(5), advance)


@pytest.mark.parametrize(
    ("scheduler_class", "overrides", "history"),
    [
        ("LMSDiscreteScheduler", {}, 3),
        ("HeunDiscreteScheduler", {}, 1),  # two evaluations a step
        ("DPMSolverSinglestepScheduler", {}, 1),  # a step of order 2 starts at an earlier sample
        ("UniPCMultistepScheduler", {"solver_order": 3}, 3),
        ("DDPMScheduler", {"variance_type": "fixed_small"}, 0),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 0),
    ],
)
def test_schedulers_without_a_name_of_ours(
    scheduler_class: str, overrides: dict[str, Any], history: int
) -> None:
    config = {**SD15, "prediction_type": "v_prediction", **overrides}
    make = getattr(diffusers, scheduler_class).from_config
    table = compile_scheduler("other", make(config), (1, 4, 10))
    assert table.history == history
    for steps in table.steps.values():
        assert_follows(make(config), steps, advance)


def test_all_step_counts_of_a_sampler(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    table = compile_sampler("pndm", SD15, progress=lambda done, of: reports.append((done, of)))
    assert list(table.steps) == list(range(1, 101))
    assert reports == [(done, 100) for done in range(1, 101)]
    path = tmp_path / "pndm.json"
    write_sampler_table(table, path)
    assert path.stat().st_size < 1_000_000
    read = read_sampler_table(path)
    assert all(
        read.steps[n].weights.tobytes() == table.steps[n].weights.tobytes() for n in STEP_COUNTS
    )


def test_compiling_leaves_the_scheduler_and_the_random_state_alone() -> None:
    scheduler = make_scheduler("dpm++2m", SD15)
    state = torch.get_rng_state()
    first = compile_scheduler("dpm++2m", scheduler, (5,)).steps[5]
    second = compile_scheduler("dpm++2m", scheduler, (5,)).steps[5]
    assert first.weights.tobytes() == second.weights.tobytes()
    assert torch.equal(state, torch.get_rng_state())
    assert scheduler.num_inference_steps is None


class Clamping(diffusers.DDIMScheduler):
    """Clamps without an option that says so."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        return (super().step(*args, **kwargs)[0].clamp(-1.0, 1.0),)


class Drawing(diffusers.DDIMScheduler):
    """Draws noise of its own."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        sample = super().step(*args, **kwargs)[0]
        return (sample + torch.randn_like(sample),)


class LongMemory(diffusers.DDIMScheduler):
    """Keeps five past model outputs."""

    def step(self, model_output: Any, timestep: Any, sample: Any, **kwargs: Any) -> Any:
        self.past = [*getattr(self, "past", []), model_output][-6:]
        return (sample + sum((i + 1) ** 2 * past for i, past in enumerate(self.past)),)


@pytest.mark.parametrize(
    ("scheduler_class", "overrides", "reason"),
    [
        (diffusers.DDIMScheduler, {"clip_sample": True}, "clip_sample=True clamps"),
        (diffusers.DDIMScheduler, {"thresholding": True}, "thresholding=True rescales"),
        (Drawing, {}, "it draws noise at its steps, and not by randn_tensor"),
        (diffusers.LCMScheduler, {"clip_sample": True}, "clip_sample=True clamps"),
        (Clamping, {}, "not linear"),
        (LongMemory, {}, "needs more than the sample, the model output and 3 past entries"),
        (diffusers.PNDMScheduler, {"prediction_type": "sample"}, "runs with no step count: Value"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    scheduler_class: Any, overrides: dict[str, Any], reason: str
) -> None:
    scheduler = scheduler_class.from_config(SD15, **overrides)
    with pytest.raises(UnsupportedSchedulerError, match=reason) as caught:
        compile_scheduler("some", scheduler, (3, 10))
    message = str(caught.value)
    assert message.startswith(f"scheduler 'some' ({scheduler_class.__name__}) ")
    assert "\n" not in message
    assert isinstance(caught.value, ValueError)


def test_a_configuration_that_clamps_is_refused_for_ddim_only() -> None:
    config = {**SD15, "clip_sample": True}
    with pytest.raises(UnsupportedSchedulerError, match=r"scheduler 'ddim' .* clip_sample=True"):
        compile_sampler("ddim", config, (1, 2))
    assert compile_sampler("euler", config, (1, 2)).history == 0


def test_a_count_that_diffusers_cannot_run_is_left_out() -> None:
    class Refusing(diffusers.DDIMScheduler):
        def set_timesteps(self, num_inference_steps: int, *args: Any, **kwargs: Any) -> None:
            if num_inference_steps == 2:
                raise IndexError("no such step")
            super().set_timesteps(num_inference_steps, *args, **kwargs)

    table = compile_scheduler("ddim", Refusing.from_config(SD15), range(1, 5))
    assert list(table.steps) == [1, 3, 4]
    with pytest.raises(ValueError, match="available: 1, 3-4"):
        table.for_steps(2)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"'euler-b'; choose from ddim, euler, "):
        compile_sampler("euler-b", SD15)
