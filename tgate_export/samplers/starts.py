"""How a scheduler begins within a run, with a noised image: rows that are not the full run's."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from tgate_export.bundle.sampler_table import INPUT_SCALE, FloatArray, SamplerStart, SamplerSteps
from tgate_export.samplers.fit import fit_recurrence
from tgate_export.samplers.probe import probe_scheduler

_TOLERANCE = 1e-5  # between a row of the full run and one of a later start: rounding to 32 bits
_CHECKED = 3  # starts that are run of a scheduler without history, whose rows are the full run's


class NoStartError(ValueError):
    """A scheduler that does not come back to the rows of its full run."""


def compile_starts(
    scheduler: Any, steps: SamplerSteps, form: tuple[int, bool]
) -> tuple[SamplerStart, ...]:
    """Compile the starts of one step count, each as diffusers' image-to-image pipelines make it.

    A scheduler with a history has none when it begins, so its first steps differ from those of a
    run that came from further up; once its history is full they are the same.

    Args:
        scheduler: a diffusers scheduler that has not run yet; it is copied.
        steps: the full run.
        form: the past entries that the full run was fitted with, and whether they are stored ones.

    Raises:
        NoStartError: says at which start.
    """
    count = steps.num_inference_steps
    apart = 1 if form[0] else max(1, count // _CHECKED)
    noising, running = copy.deepcopy(scheduler), copy.deepcopy(scheduler)
    noising.set_timesteps(count)
    starts = []
    for start in range(count):
        first = steps.first_evaluation(start)
        image_scale, sample_scale = _noising(noising, first)
        own = start % apart == 0
        starts.append(
            SamplerStart(
                image_scale=image_scale,
                sample_scale=sample_scale,
                input_scale=steps.weights[first - 1, INPUT_SCALE] if first else steps.input_scale,
                weights=_own_rows(running, steps, form, start) if own else steps.weights[:0],
            )
        )
    return tuple(starts)


def _noising(scheduler: Any, first: int) -> tuple[float, float]:
    """Return what `add_noise` multiplies an image and the noise with, before an evaluation."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    image, noise = torch.eye(2).reshape(2, 2, 1, 1).unbind()
    at = scheduler.timesteps[[first, first]]
    scales = scheduler.add_noise(image[:, None], noise[:, None], at).flatten()
    return float(scales[0]), float(scales[1])


def _own_rows(
    scheduler: Any, steps: SamplerSteps, form: tuple[int, bool], start: int
) -> FloatArray:
    """Return the first rows of a start, up to the last that differs from the full run's.

    Two more rows than there are past entries can differ (PNDM takes its first step twice). All of
    the next row is known after one more evaluation, which it scales the input of, and after those
    that may use what it pushes.
    """
    slots, push_stored = form
    most = slots + 2
    evaluations = most + 2 + slots
    first = steps.first_evaluation(start)
    trace = probe_scheduler(scheduler, steps.num_inference_steps, first, evaluations)
    fitted = fit_recurrence(trace, slots, push_stored=push_stored)
    if fitted is None:
        raise NoStartError(f"step {start} of {steps.num_inference_steps} needs a longer history")
    known = len(steps.timesteps) - first
    rows = fitted[: known if known <= evaluations else most + 1].astype(np.float32)
    full = steps.weights[first:][: len(rows)]
    differs = np.abs(rows - full).max(axis=1) > _TOLERANCE * np.abs(full).max(axis=1)
    own = 1 + int(differs.nonzero()[0].max(initial=-1))
    if own > most:
        raise NoStartError(
            f"from step {start} of {steps.num_inference_steps} on it never becomes its full run"
        )
    return rows[:own]
