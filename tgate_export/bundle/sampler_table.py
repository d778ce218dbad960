"""Sampler tables: a sampler as per-step weights.

Samplers are linear in the samples and the noise predictions, so one step of any of them is a
weighted sum. With `w` one row of `SamplerSteps.weights`, `K = 2 + HISTORY + 4` long:

    next_sample    = w[0] * sample + w[1] * noise_pred + sum over h of w[2 + h] * history[h]
                     + w[5 + HISTORY] * noise
    pushed         = w[2 + HISTORY] * sample + w[3 + HISTORY] * noise_pred
    next_history   = [pushed, history[0], ..., history[HISTORY - 2]]
    denoiser_input = w[4 + HISTORY] * next_sample

`noise` is unit-variance noise, drawn anew for every step of samplers that draw some, and zeros for
the others. `history` starts as zeros (not as uninitialised memory: weight 0 times NaN is NaN), the
first sample is `sample_scale` times unit-variance latents, plus, where a run begins with an image,
`image_scale` times its latents. The first denoiser input is `input_scale` times that sample. The
last row's `denoiser_input` is never used; its weight is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

HISTORY = 3  # slots in the sampler graph's `history`, the same for every scheduler

SAMPLE = 0
NOISE_PRED = 1
PAST = slice(2, 2 + HISTORY)
PUSH_SAMPLE = 2 + HISTORY
PUSH_NOISE_PRED = 3 + HISTORY
INPUT_SCALE = 4 + HISTORY
NOISE = 5 + HISTORY
NUM_WEIGHTS = 6 + HISTORY

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SamplerStart:
    """How a run begins at a later step, with a noised image instead of noise.

    Attributes:
        image_scale: the first sample has the image's latents times this,
        sample_scale: and unit-variance latents times this (`add_noise` in diffusers).
        input_scale: the first sample times this is the first denoiser input.
        weights: [R, NUM_WEIGHTS], the rows that differ from those of a run from the first step: a
            sampler with a history has none yet.
    """

    image_scale: float
    sample_scale: float
    input_scale: float
    weights: FloatArray

    def __post_init__(self) -> None:
        weights = _as_float32("weights", self.weights)
        if weights.ndim != 2 or weights.shape[1] != NUM_WEIGHTS:
            raise ValueError(
                f"weights: expected rows of {NUM_WEIGHTS}, found shape {list(weights.shape)}"
            )
        object.__setattr__(self, "weights", weights)
        for field in ("image_scale", "sample_scale", "input_scale"):
            object.__setattr__(self, field, float(_as_float32(field, getattr(self, field))))


@dataclass(frozen=True, eq=False)
class SamplerSteps:
    """One step count of one scheduler. Arrays are 32-bit floats and read-only.

    Attributes:
        num_inference_steps: the count that was asked for.
        timesteps: [N], what the denoiser gets at each evaluation, in training steps. May be
            fractional (Euler).
        sample_scale: unit-variance latents times this are the first sample
            (`init_noise_sigma` in diffusers).
        input_scale: the first sample times this is the first denoiser input.
        weights: [N, NUM_WEIGHTS], one row an evaluation; the module says what the columns are.
        starts: how a run begins at step 0, 1, ... `num_inference_steps - 1` with an image; empty
            where the bundle was built without image-to-image.
        image_scale: what the first sample has of an image's latents.
        step_of_evaluation: [N], the step that each evaluation belongs to: 0, 1, ...
            `num_inference_steps - 1`, some of them twice where a sampler evaluates twice a step
            (Heun), after -1 where it evaluates once before its first step (PNDM). When not given
            every step has one evaluation, and what is more comes before the first.

    Raises:
        ValueError: for wrong shapes or numbers that are not finite; starts with the field's name.
    """

    num_inference_steps: int
    timesteps: FloatArray
    sample_scale: float
    input_scale: float
    weights: FloatArray
    starts: tuple[SamplerStart, ...] = ()
    image_scale: float = 0.0
    step_of_evaluation: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps: expected 1 or more, {self.num_inference_steps}")
        timesteps = _as_float32("timesteps", self.timesteps)
        weights = _as_float32("weights", self.weights)
        if timesteps.ndim != 1 or len(timesteps) < self.num_inference_steps:
            raise ValueError(
                f"timesteps: expected {self.num_inference_steps} numbers or more, "
                f"found shape {list(timesteps.shape)}"
            )
        if weights.shape != (len(timesteps), NUM_WEIGHTS):
            raise ValueError(
                f"weights: expected shape {[len(timesteps), NUM_WEIGHTS]}, "
                f"found {list(weights.shape)}"
            )
        extra = len(timesteps) - self.num_inference_steps
        steps = self.step_of_evaluation or tuple(range(-extra, self.num_inference_steps))
        object.__setattr__(self, "step_of_evaluation", steps)
        grows = all(after - before in (0, 1) for before, after in pairwise(steps))
        ends = steps[0] <= 0 and steps[-1] == self.num_inference_steps - 1
        if len(steps) != len(timesteps) or not (grows and ends):
            raise ValueError(
                f"step_of_evaluation: expected {len(timesteps)} numbers that grow by 0 or 1 up to "
                f"{self.num_inference_steps - 1}, from 0 or less on"
            )
        if len(self.starts) not in (0, self.num_inference_steps):
            raise ValueError(
                f"starts: expected none or {self.num_inference_steps}, found {len(self.starts)}"
            )
        for start, entry in enumerate(self.starts):
            most = len(timesteps) - self.first_evaluation(start)
            if len(entry.weights) > most:
                raise ValueError(
                    f"starts[{start}].weights: expected {most} rows at most, "
                    f"found {len(entry.weights)}"
                )
        object.__setattr__(self, "timesteps", timesteps)
        object.__setattr__(self, "weights", weights)
        for field in ("sample_scale", "input_scale", "image_scale"):
            object.__setattr__(self, field, float(_as_float32(field, getattr(self, field))))

    def first_evaluation(self, start: int) -> int:
        """Return with which evaluation a run begins that leaves out as many steps.

        What a sampler does before its first step it does in every run.
        """
        return self.step_of_evaluation.index(self.step_of_evaluation[0] + start)

    def evaluations_until(self, timestep: float) -> int:
        """Return how many evaluations come before the first step that begins below a timestep."""
        steps = self.step_of_evaluation
        for index, at in enumerate(self.timesteps):
            if at < timestep and (index == 0 or steps[index] != steps[index - 1]):
                return index
        return len(self.timesteps)

    def ending_before(self, evaluation: int) -> SamplerSteps:
        """Return the run that ends early, with the sample before an evaluation, 1 or more."""
        steps = self.step_of_evaluation[:evaluation]
        return SamplerSteps(
            num_inference_steps=steps[-1] + 1,
            timesteps=self.timesteps[:evaluation],
            sample_scale=self.sample_scale,
            input_scale=self.input_scale,
            weights=self.weights[:evaluation],
            image_scale=self.image_scale,
            step_of_evaluation=steps,
        )

    def starting_at(self, step: int, *, noised: bool = False) -> SamplerSteps:
        """Return the run that begins with an image at a step, 0 to `num_inference_steps - 1`.

        Args:
            step: of the whole run.
            noised: the image has that step's noise already, as the sample of another run: it is
                begun with as it is.
        """
        entry, first = self.starts[step], self.first_evaluation(step)
        same = first + len(entry.weights)
        return SamplerSteps(
            num_inference_steps=self.num_inference_steps - step,
            timesteps=self.timesteps[first:],
            sample_scale=0.0 if noised else entry.sample_scale,
            input_scale=entry.input_scale,
            weights=np.concatenate([entry.weights, self.weights[same:]]),
            image_scale=1.0 if noised else entry.image_scale,
            step_of_evaluation=tuple(each - step for each in self.step_of_evaluation[first:]),
        )

    @property
    def extra_evaluations(self) -> int:
        """Denoiser evaluations beyond `num_inference_steps`."""
        return len(self.timesteps) - self.num_inference_steps

    @cached_property
    def draws_noise(self) -> bool:
        """Whether any step adds noise."""
        return bool(self.weights[:, NOISE].any())


@dataclass(frozen=True, eq=False)
class SamplerTable:
    """One scheduler, compiled for many step counts.

    Attributes:
        name: what users call it, such as "dpm++2m".
        scheduler_class: the diffusers class that was compiled.
        prediction_type: what `noise_pred` holds: "epsilon", "v_prediction" or "sample".
        history: past entries that the weights use, 0 to HISTORY.
        extra_evaluations: the most evaluations beyond the step count that any count has: 1 for
            PNDM (whose single step alone has none), as many as there are steps but one for samplers
            that evaluate twice a step, 0 for the others.
        steps: keyed by `num_inference_steps`. A count that diffusers cannot run is left out.
        residual: the largest difference between this table, replayed in 32-bit floats, and
            diffusers, relative to the largest coefficient of the sample that it is in.
    """

    name: str
    scheduler_class: str
    prediction_type: str
    history: int
    extra_evaluations: int
    steps: Mapping[int, SamplerSteps]
    residual: float

    def __post_init__(self) -> None:
        if not 0 <= self.history <= HISTORY:
            raise ValueError(f"history: expected 0 to {HISTORY}, found {self.history}")
        if not (math.isfinite(self.residual) and self.residual >= 0):
            raise ValueError(f"residual: expected a finite number >= 0, found {self.residual}")
        most = max((steps.extra_evaluations for steps in self.steps.values()), default=None)
        if most is None:
            raise ValueError("steps: expected one step count or more, found none")
        if self.extra_evaluations != most:
            raise ValueError(f"extra_evaluations: {self.extra_evaluations}, but steps have {most}")

    def for_steps(self, num_inference_steps: int) -> SamplerSteps:
        """Return the weights for a step count.

        Raises:
            ValueError: when there are none; says which counts there are.
        """
        if num_inference_steps not in self.steps:
            raise ValueError(
                f"scheduler {self.name!r} has no table for {num_inference_steps} steps; "
                f"available: {_ranges(self.steps)}"
            )
        return self.steps[num_inference_steps]


def advance(
    weights: FloatArray,
    sample: FloatArray,
    noise_pred: FloatArray,
    history: FloatArray,
    noise: FloatArray,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Take one step, in numpy: what the sampler graph computes, for one step and a whole batch.

    Args:
        weights: [NUM_WEIGHTS], one row of `SamplerSteps.weights`.
        sample: [...], any shape.
        noise_pred: [...], the denoiser's output for this step.
        history: [HISTORY, ...], newest first; zeros before the first step.
        noise: [...], of unit variance; zeros for a sampler that draws none.

    Returns:
        next_sample [...], denoiser_input [...] and next_history [HISTORY, ...].
    """
    past = (weights[PAST] @ history.reshape(HISTORY, -1)).reshape(sample.shape)
    next_sample = weights[SAMPLE] * sample + weights[NOISE_PRED] * noise_pred + past
    next_sample = next_sample + weights[NOISE] * noise
    pushed = weights[PUSH_SAMPLE] * sample + weights[PUSH_NOISE_PRED] * noise_pred
    next_history = np.concatenate([pushed[None], history[:-1]])
    return next_sample, weights[INPUT_SCALE] * next_sample, next_history


def _as_float32(field: str, values: Any) -> FloatArray:
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=np.float32)
    except OverflowError:  # a whole number may have any length
        raise ValueError(f"{field}: not finite in 32 bits") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{field}: not finite in 32 bits")
    array.flags.writeable = False
    return array


def _ranges(counts: Iterable[int]) -> str:
    """Write counts compactly: 1-20, 25."""
    runs: list[tuple[int, int]] = []
    for count in sorted(counts):
        extends = runs and runs[-1][1] == count - 1
        runs.append((runs.pop()[0] if extends else count, count))
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
