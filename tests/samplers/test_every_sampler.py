"""Every sampler's table against diffusers' own scheduler, with a linear denoiser in 64 bits.

Samplers that draw noise get the noise of each evaluation as a basis vector: a row of the batch has
that noise alone, and so shows all that it does to the run.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers.schedulers import AysSchedules, scheduling_dpmsolver_sde

from tests.samplers.test_sampler_tables import SD15
from tgate_export.bundle.sampler_names import EVERY, SAMPLERS, draws_noise, parse_name
from tgate_export.bundle.sampler_table import HISTORY, SamplerSteps, advance
from tgate_export.common.errors import InvalidRequestError
from tgate_export.samplers.specs import AYS
from tgate_export.samplers.tables import compile_sampler, make_scheduler

# Weights in 32 bits, each rounded by up to 6e-8, in runs of up to 99 evaluations.
TOLERANCE = 1e-5
NEW = [name for name in EVERY if parse_name(name).sampler not in ("ddim", "pndm", "lcm")]  # type: ignore[union-attr]
TWICE = {"heun", "dpm2", "dpm2-a", "dpm++sde"}
# One of each kind: twice a step; twice, with noise; a path of noise; noise with history; steps in
# pairs.
KINDS = ("heun", "dpm2-a-karras", "dpm++sde", "dpm++3m-sde", "dpm++2s-exponential")


def config(prediction_type: str = "epsilon") -> dict[str, Any]:
    return {**SD15, "prediction_type": prediction_type}


def denoise(model_input: np.ndarray, timestep: float) -> np.ndarray:
    """Stand in for a denoiser [..., 4, 1, 1]: linear, and different at each timestep."""
    mixing = np.random.default_rng(5).standard_normal((4, 4)) / 4
    wave = math.sin(timestep / 100)
    return (1 + 0.3 * wave) * np.einsum("ij,bjhw->bihw", mixing, model_input) + 0.1 * wave


class Noise:
    """Gives the schedulers of diffusers noise by evaluation."""

    def __init__(self, evaluations: int) -> None:
        self.evaluation = 0
        # Row e has the noise of evaluation e, the last one none.
        self.basis = np.zeros((evaluations, evaluations + 1, 4, 1, 1))
        self.basis[range(evaluations), range(evaluations)] = 1.0

    def draw(self, shape: Any, **_kwargs: Any) -> torch.Tensor:
        found = torch.from_numpy(self.basis[self.evaluation])
        assert found.shape == shape
        return found

    def path(self, *_args: Any, **_kwargs: Any) -> Any:
        """A Brownian path: the increment up to each evaluation is that evaluation's noise."""
        begun: dict[float, tuple[float, torch.Tensor]] = {}

        def between(sigma: Any, sigma_next: Any) -> torch.Tensor:
            begin, end = float(sigma), float(sigma_next)
            middle, before = begun.get(begin, (begin, torch.zeros(())))
            moved = before + math.sqrt(middle - end) * torch.from_numpy(self.basis[self.evaluation])
            begun[begin] = end, moved
            return moved / math.sqrt(begin - end)

        return between

    @contextlib.contextmanager
    def given_to(self, scheduler: Any) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for cls in type(scheduler).__mro__:
                module = sys.modules[cls.__module__]
                stand_ins = {"randn_tensor": self.draw, "BrownianTreeNoiseSampler": self.path}
                for name, stand_in in stand_ins.items():
                    if hasattr(module, name):
                        stack.enter_context(mock.patch.object(module, name, stand_in))
            yield


def run_diffusers(scheduler: Any, first: int, sample: np.ndarray, noise: Noise) -> np.ndarray:
    """Run the loop of a diffusers pipeline from an evaluation on; return all samples."""
    samples = [sample]
    with noise.given_to(scheduler):
        for noise.evaluation, t in enumerate(scheduler.timesteps[first:]):
            tensor = torch.from_numpy(samples[-1])
            noise_pred = denoise(scheduler.scale_model_input(tensor, t).numpy(), float(t))
            stepped = scheduler.step(torch.from_numpy(noise_pred), t, tensor, return_dict=False)
            samples.append(stepped[0].numpy())
    return np.stack(samples)


def run_table(steps: SamplerSteps, sample: np.ndarray, noise: Noise) -> np.ndarray:
    samples = [sample]
    model_input = sample * steps.input_scale
    history = np.zeros((HISTORY, *sample.shape))
    for index, (timestep, weights) in enumerate(zip(steps.timesteps, steps.weights, strict=True)):
        noise_pred = denoise(model_input, float(timestep))
        sample, model_input, history = advance(
            weights, sample, noise_pred, history, noise.basis[index]
        )
        samples.append(sample)
    return np.stack(samples)


def first_sample(evaluations: int) -> np.ndarray:
    sample = np.zeros((evaluations + 1, 4, 1, 1))
    sample[-1, :, 0, 0] = np.random.default_rng(evaluations).standard_normal(4)
    return sample


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    """Compare sample by sample: what is wrong at the end is not hidden by noise at the begin."""
    assert found.shape == expected.shape
    error = np.abs(found - expected).max(axis=(1, 2, 3, 4))
    largest = np.abs(expected).max(axis=(1, 2, 3, 4))
    assert (error <= TOLERANCE * largest).all(), (error / largest).max()


def check(name: str, counts: Any, prediction_type: str = "epsilon", family: str = "") -> None:
    family = family or "stable-diffusion"
    scheduler = make_scheduler(name, config(prediction_type), family)
    table = compile_sampler(name, config(prediction_type), counts, family=family)
    sampler = parse_name(name)
    assert sampler is not None
    assert table.steps
    for count, steps in table.steps.items():
        scheduler.set_timesteps(count)
        evaluations = len(scheduler.timesteps)
        noise, latents = Noise(evaluations), first_sample(evaluations)
        twice = [e // 2 for e in range(2 * count - 1)]
        before = [-1] if sampler.sampler == "pndm" and count > 1 else []
        once = [*before, *range(count)]
        assert list(steps.step_of_evaluation) == (twice if sampler.sampler in TWICE else once)
        if count > 1:
            assert steps.draws_noise == draws_noise(name)
        expected = run_diffusers(scheduler, 0, latents * float(scheduler.init_noise_sigma), noise)
        assert_equal(run_table(steps, latents * steps.sample_scale, noise), expected)


@pytest.mark.parametrize("name", KINDS)
def test_one_of_each_kind_at_all_numbers_of_steps(name: str) -> None:
    check(name, range(1, 51))


@pytest.mark.parametrize("name", [name for name in NEW if name not in KINDS])
def test_every_sampler(name: str) -> None:
    check(name, (1, 2, 4, 13), "v_prediction")


@pytest.mark.slow
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", EVERY)
def test_every_sampler_at_all_numbers_of_steps(name: str, prediction_type: str) -> None:
    check(name, range(1, 51), prediction_type)


SPACED = [
    f"{sampler}-{part}"
    for sampler, parts in SAMPLERS.items()
    for part in ("linspace", "leading", "trailing", "trailing-zsnr")
    if part.split("-")[-1] in parts
]


@pytest.mark.parametrize("name", SPACED)
def test_spacings(name: str) -> None:
    check(name, (7,), "v_prediction" if "zsnr" in name else "epsilon")


@pytest.mark.parametrize("name", [s for s, parts in SAMPLERS.items() if "ays" in parts])
@pytest.mark.parametrize("family", AYS)
def test_align_your_steps(name: str, family: str) -> None:
    check(f"{name}-ays", None, family=family)
    table = compile_sampler(f"{name}-ays", config(), family=family)
    assert list(table.steps) == [10]
    key = {"stable-diffusion": "StableDiffusion", "stable-diffusion-xl": "StableDiffusionXL"}
    # Of two evaluations of a step the second is elsewhere; the first ones are at the list's.
    first = [table.steps[10].step_of_evaluation.index(step) for step in range(10)]
    assert table.steps[10].timesteps[first].tolist() == AysSchedules[f"{key[family]}Timesteps"]


def test_lists_of_one_s_own() -> None:
    check("dpm++2m@timesteps=900,501,250,3", None)
    check("tcd@timesteps=999,499", None)
    check("euler@sigmas=14.6,2.5,0.3", None)
    steps = compile_sampler("euler@sigmas=14.6,2.5,0.3", config()).steps[3]
    assert steps.sample_scale == pytest.approx(math.hypot(14.6, 1))  # spacing is leading
    with pytest.raises(InvalidRequestError, match="takes no sigmas of one's own"):
        compile_sampler("heun@sigmas=14.6,2.5", config())


def test_align_your_steps_of_another_family() -> None:
    with pytest.raises(InvalidRequestError, match="no such steps were found for pixart models"):
        compile_sampler("euler-ays", config(), family="pixart")


STARTS = ("heun", "dpm2-a", "dpm++sde", "dpm++2m-sde", "dpm++2s", "lms", "tcd", "ddpm")


@pytest.mark.parametrize("name", STARTS)
def test_starts_with_an_image(name: str) -> None:
    """As diffusers' image-to-image pipelines begin: `t_start * order`, with `set_begin_index`."""
    for count, steps in compile_sampler(name, config(), (1, 2, 7), starts=True).steps.items():
        for start in range(count):
            scheduler = make_scheduler(name, config())
            scheduler.set_timesteps(count)
            first = start * scheduler.order
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(first)
            evaluations = len(scheduler.timesteps) - first
            noise, latents = Noise(evaluations), first_sample(evaluations)
            image = np.full_like(latents, 0.25)
            at = scheduler.timesteps[first : first + 1].repeat(len(image))
            noised = scheduler.add_noise(torch.from_numpy(image), torch.from_numpy(latents), at)
            expected = run_diffusers(scheduler, first, noised.numpy(), noise)
            found = steps.starting_at(start)
            sample = image * found.image_scale + latents * found.sample_scale
            assert_equal(run_table(found, sample, noise), expected)


def test_the_path_of_dpm_plus_plus_sde_is_that_of_torchsde() -> None:
    """Its two noises of a step are not independent; what is left of the second one is."""
    asked: list[tuple[float, float, np.ndarray]] = []

    class Recorded(scheduling_dpmsolver_sde.BrownianTreeNoiseSampler):
        def __call__(self, sigma: Any, sigma_next: Any) -> torch.Tensor:
            found = super().__call__(sigma, sigma_next)
            asked.append((float(sigma), float(sigma_next), found.numpy()))
            return found

    steps = compile_sampler("dpm++sde", config(), (6,)).steps[6]
    scheduler = make_scheduler("dpm++sde", {**config(), "noise_sampler_seed": 3})
    scheduler.set_timesteps(6)
    samples = [np.random.default_rng(0).standard_normal((2, 4, 40, 40)) * steps.sample_scale]
    with mock.patch.object(scheduling_dpmsolver_sde, "BrownianTreeNoiseSampler", Recorded):
        for t in scheduler.timesteps:
            sample = torch.from_numpy(samples[-1])
            noise_pred = denoise(scheduler.scale_model_input(sample, t).numpy(), float(t))
            stepped = scheduler.step(torch.from_numpy(noise_pred), t, sample, return_dict=False)
            samples.append(stepped[0].numpy())
    noise = Noise(11)
    noise.basis = np.zeros((11, *samples[0].shape))
    for index, (begin, end, drawn) in enumerate(asked):
        noise.basis[index] = drawn
        if index % 2:
            _, middle, before = asked[index - 1]
            moved = math.sqrt(begin - end) * drawn - math.sqrt(begin - middle) * before
            noise.basis[index] = moved / math.sqrt(middle - end)
    assert_equal(run_table(steps, samples[0], noise), np.stack(samples))
    drawn = noise.basis[:10].reshape(10, -1)
    # Of 12,800 numbers each: four deviations of what independent unit noises have.
    assert np.abs(np.cov(drawn) - np.eye(10)).max() < 4 * math.sqrt(2 / drawn.shape[1])
