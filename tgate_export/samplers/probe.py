"""Run a diffusers scheduler on basis vectors, to read off what its steps do."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

# diffusers rounds to 32 bits within a run; clamping and noise are off by whole units.
_LINEAR_TOLERANCE = 1e-4
_CHECK_SCALE = 10.0  # large enough that a scheduler which clamps images does so


class NotLinearError(ValueError):
    """A scheduler's samples are no fixed linear combination of latents and model outputs."""


@dataclass(frozen=True)
class Trace:
    """What a scheduler does in a run of N evaluations.

    Attributes:
        timesteps: [N], as the denoiser gets them.
        step_of_evaluation: [N], the step that each evaluation belongs to.
        sample_scale: `init_noise_sigma`.
        input_scales: [N], `scale_model_input` at each evaluation.
        local: [N, 2, N], row i is the sample after evaluation i as a combination of the samples
            (index 0) and model outputs (1) that were given at evaluations 0..i.
        stored: [N, 2], row i is what the scheduler keeps of evaluation i for later steps, as a
            combination of that evaluation's sample and model output.
        noise: [N], how much of a unit of noise the sample after evaluation i gets.
        trajectory: [N + 1, N + 1], row i is the sample before evaluation i of a real run as a
            combination of the first sample (column 0) and all model outputs (1..N).
    """

    timesteps: NDArray[np.float32]
    step_of_evaluation: tuple[int, ...]
    sample_scale: float
    input_scales: Array
    local: Array
    stored: Array
    noise: Array
    trajectory: Array


@torch.inference_mode()
def probe_scheduler(
    scheduler: Any, num_inference_steps: int, start: int = 0, evaluations: int | None = None
) -> Trace:
    """Run a fresh scheduler once, with all basis vectors as the batch.

    Half of the batch is given one-hot samples and model outputs at every step, whatever the
    scheduler returned before: that yields the coefficients of single steps as diffusers has them,
    without the rounding of the steps before. The other half is a real run. The last two rows alone
    get noise where the scheduler draws some, in turns, and nothing else: so it shows which noise a
    step has, its own or that of the evaluation before.

    Args:
        scheduler: a diffusers scheduler; `set_timesteps` makes it new.
        num_inference_steps: as in `set_timesteps`.
        start: the evaluation to begin with, as image-to-image pipelines do (a step's first).
        evaluations: how many to run; all that are left when not given.

    Raises:
        NotLinearError: when the scheduler clamps, or draws noise in a way of its own.
        Exception: whatever diffusers raises for a step count that it cannot run.
    """
    scheduler.set_timesteps(num_inference_steps)
    if start and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    steps = step_of_evaluation(scheduler, num_inference_steps)
    timesteps = scheduler.timesteps[start:][:evaluations]
    n = len(timesteps)
    run = slice(2 * n, 3 * n + 1)
    check = slice(3 * n + 1, 3 * n + 3)  # the same random combination of the run's inputs, twice
    mix = _CHECK_SCALE * np.random.default_rng(n).standard_normal(n + 1)
    samples = np.zeros((n + 1, 3 * n + 5))
    samples[0, run.start] = 1.0
    samples[0, check] = mix[0]
    input_scales = np.empty(n)
    ones = torch.ones(1, 4, 1, 1)
    with (
        torch.random.fork_rng(devices=[]),
        _noise_in_last_rows(scheduler) as noise,
        _recorded_conversions(scheduler) as converted,
    ):
        for i, t in enumerate(timesteps):
            noise.row = -1 - i % 2
            sample, noise_pred = samples[i].copy(), np.zeros(3 * n + 5)
            sample[: 2 * n] = sample[-2:] = 0.0
            sample[i] = noise_pred[n + i] = noise_pred[run.start + 1 + i] = 1.0
            noise_pred[check] = mix[i + 1]
            input_scales[i] = scheduler.scale_model_input(ones, t)[0, 0, 0, 0]
            stepped = scheduler.step(_latents(noise_pred), t, _latents(sample), return_dict=False)
            samples[i + 1] = _values(stepped[0])
    if not np.isfinite(samples).all() or not np.isfinite(input_scales).all():
        raise ArithmeticError("its samples are not finite")
    _check_linear(samples[:, run], samples[:, check], mix)
    local = samples[1:, : 2 * n].reshape(n, 2, n)
    drawn = _without_earlier_noise(local, samples[1:, -2:])
    return Trace(
        timesteps=timesteps.numpy().astype(np.float32),
        step_of_evaluation=steps[start:][:evaluations],
        sample_scale=float(scheduler.init_noise_sigma),
        input_scales=input_scales,
        local=local,
        stored=_stored(local, converted),
        noise=drawn,
        trajectory=samples[:, run],
    )


def step_of_evaluation(scheduler: Any, num_inference_steps: int) -> tuple[int, ...]:
    """Return the step of each evaluation that `set_timesteps` asked for.

    What is more than one a step, or than two of a scheduler of that order, comes before the first:
    the official code counts so (`num_warmup_steps`). The last step of one of order 2 has only one.
    """
    found, order = len(scheduler.timesteps), scheduler.order
    steps: Sequence[int]
    if order == 1:
        steps = range(num_inference_steps - found, num_inference_steps)
    else:
        steps = tuple(index // order for index in range(found))
    if found < num_inference_steps or steps[-1] != num_inference_steps - 1:
        raise ArithmeticError(f"it evaluates {found} times, {order} times a step")
    return tuple(steps)


def _without_earlier_noise(local: Array, rows: Array) -> Array:
    """Take the noise of the evaluation before out of a step, where it has some of it.

    That noise is what the given sample has beyond the step before (whose noise it is), so what is
    left depends on samples and model outputs, and on noise of its own.

    Args:
        local: see `Trace`; changed in place.
        rows: [N, 2], what the samples after the evaluations have of the noise of odd ones, and of
            even ones.

    Returns:
        [N], what each has of its own noise.
    """
    n = len(local)
    own, before = (rows[np.arange(n), -1 - (np.arange(n) + back) % 2] for back in (0, 1))
    for i in np.flatnonzero(before[1:]) + 1:
        share = before[i] / own[i - 1]
        local[i] -= share * local[i - 1]
        local[i, 0, i] += share
    return own


class _Noise:
    """Gives ones in one row, and zeros in the others, in place of noise."""

    row = -1

    def draw(self, shape: Any, *_args: Any, dtype: torch.dtype, **_kwargs: Any) -> torch.Tensor:
        """Stand in for `randn_tensor`."""
        noise = torch.zeros(*shape, dtype=dtype)
        noise[self.row] = 1.0
        return noise

    def brownian(self, sample: torch.Tensor, *_args: Any, **_kwargs: Any) -> Callable[..., Any]:
        """Stand in for `BrownianTreeNoiseSampler`: what a path does within an interval.

        Within a step, the second interval begins where the first did and ends beyond it: so it has
        a share of the first one's noise. Other intervals have no more than an end in common.
        """
        last: tuple[float, float] | None = None

        def path(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
            nonlocal last
            begin, end = float(sigma), float(sigma_next)
            known = (begin - last[1]) / (begin - end) if last and last[0] == begin else 0.0
            last = begin, end
            noise = torch.zeros_like(sample)
            noise[self.row] = (1.0 - known) ** 0.5
            noise[-3 - self.row] = known**0.5
            return noise

        return path


@contextlib.contextmanager
def _noise_in_last_rows(scheduler: Any) -> Iterator[_Noise]:
    """Let all by which diffusers' schedulers draw give ones in one of the last rows only."""
    noise = _Noise()
    modules = {sys.modules[cls.__module__] for cls in type(scheduler).__mro__}
    with contextlib.ExitStack() as stack:
        for module in modules:
            for name, stand_in in (
                ("randn_tensor", noise.draw),
                ("BrownianTreeNoiseSampler", noise.brownian),
            ):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, stand_in))
        yield noise


@contextlib.contextmanager
def _recorded_conversions(scheduler: Any) -> Iterator[list[Array]]:
    """Note what multistep samplers turn each model output into before they keep it."""
    converted: list[Array] = []
    convert: Callable[..., Any] | None = getattr(scheduler, "convert_model_output", None)
    if convert is None:
        yield converted
        return

    def recording(*args: Any, **kwargs: Any) -> Any:
        result = convert(*args, **kwargs)
        converted.append(_values(result))
        return result

    with mock.patch.object(scheduler, "convert_model_output", recording):
        yield converted


def _stored(local: Array, converted: list[Array]) -> Array:
    n = len(local)
    if len(converted) == n:
        return np.stack([values[[i, n + i]] for i, values in enumerate(converted)])
    # What a step takes from the evaluation before it, up to a factor.
    stored = np.stack([*(local[i + 1, :, i] for i in range(n - 1)), np.zeros(2)])
    largest = np.abs(stored).max(axis=1, keepdims=True)
    return np.where(largest > 0, stored / np.where(largest > 0, largest, 1.0), [0.0, 1.0])


def _check_linear(run: Array, check: Array, mix: Array) -> None:
    if not np.array_equal(check[:, 0], check[:, 1]):
        raise NotLinearError("it draws noise at its steps, and not by randn_tensor")
    error = np.abs(run @ mix - check[:, 0])
    if (error > _LINEAR_TOLERANCE * (np.abs(run) @ np.abs(mix))).any():
        raise NotLinearError("its steps are not linear: it clamps or rescales samples")


def _latents(values: Array) -> torch.Tensor:
    """Make one latent image a value; four channels, as some schedulers drop those beyond three."""
    return torch.from_numpy(values[:, None, None, None].repeat(4, axis=1))


def _values(latents: torch.Tensor) -> Array:
    return latents[:, 0, 0, 0].numpy().astype(np.float64)
