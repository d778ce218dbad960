"""Compile diffusers schedulers to sampler tables by running them on basis vectors."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np

from tgate_export.bundle.sampler_names import MOST_STEPS
from tgate_export.bundle.sampler_table import HISTORY, SamplerSteps, SamplerTable, advance
from tgate_export.common.errors import InvalidRequestError
from tgate_export.samplers.fit import fit_recurrence, forms
from tgate_export.samplers.probe import NotLinearError, Trace, probe_scheduler
from tgate_export.samplers.specs import SamplerSpec, sampler_spec
from tgate_export.samplers.starts import NoStartError, compile_starts

RESIDUAL_TOLERANCE = 1e-5  # some hundred steps of 32-bit rounding, each 6e-8


class UnsupportedSchedulerError(InvalidRequestError):
    """A scheduler that is no recurrence of a few weights; the message says why in one line."""


def compile_sampler(
    name: str,
    scheduler_config: Mapping[str, Any],
    step_counts: Collection[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    family: str = "stable-diffusion",
    starts: bool = False,
) -> SamplerTable:
    """Compile a sampler.

    Args:
        name: see `bundle.sampler_names`.
        scheduler_config: the configuration of the pipeline's own scheduler, of any class.
        step_counts: the values of `num_inference_steps`; all that it can have, up to `MOST_STEPS`,
            when not given.
        family: see `sampler_spec`.
        progress: called with (step counts done, step counts in all).
        starts: also compile runs that begin at a later step, with an image.

    Raises:
        InvalidRequestError: for an unknown name.
        UnsupportedSchedulerError: when the configuration makes the scheduler clamp.
    """
    scheduler = make_scheduler(name, scheduler_config, family)
    if step_counts is None:
        only = _steps_of_list(sampler_spec(name, family))
        step_counts = range(1, MOST_STEPS + 1) if only is None else (only,)
    return compile_scheduler(name, scheduler, step_counts, progress, starts=starts)


def make_scheduler(
    name: str, scheduler_config: Mapping[str, Any], family: str = "stable-diffusion"
) -> Any:
    """Make the diffusers scheduler that a sampler's name stands for.

    Its `set_timesteps` takes a number of steps; with a list of its own, that of the list alone.

    Raises:
        InvalidRequestError: for an unknown name.
    """
    spec = sampler_spec(name, family)
    scheduler_class = getattr(diffusers, spec.scheduler_class)
    if spec.timesteps:
        scheduler_class = _with_list(scheduler_class, spec)
    return scheduler_class.from_config(dict(scheduler_config), **spec.overrides)


def _steps_of_list(spec: SamplerSpec) -> int | None:
    """Return the number of steps that a list of timesteps or sigmas is for; None without."""
    counts = [len(values) - (kind == "sigmas") for kind, values in spec.timesteps.items()]
    return counts[0] if counts else None


def _with_list(scheduler_class: Any, spec: SamplerSpec) -> Any:
    """Return the class with its `set_timesteps` taking a number of steps, and meaning a list."""
    only = _steps_of_list(spec)

    def set_timesteps(self: Any, num_inference_steps: int, *of_constructor: Any) -> None:
        if of_constructor:  # some ask for all that a model was trained with
            scheduler_class.set_timesteps(self, num_inference_steps, *of_constructor)
            return
        if num_inference_steps != only:
            raise ValueError(f"the list is for {only} steps")
        scheduler_class.set_timesteps(self, **spec.timesteps)

    members = {"set_timesteps": set_timesteps, "__module__": scheduler_class.__module__}
    return type(scheduler_class.__name__, (scheduler_class,), members)


def compile_scheduler(
    name: str,
    scheduler: Any,
    step_counts: Collection[int] = range(1, MOST_STEPS + 1),
    progress: Callable[[int, int], None] | None = None,
    *,
    starts: bool = False,
) -> SamplerTable:
    """Compile any diffusers scheduler.

    Args:
        name: what the table is called.
        scheduler: a diffusers scheduler that has not run yet; it is copied for every run.
        step_counts: the values of `num_inference_steps` to compile; others are left out.
        progress: called with (step counts done, step counts in all).
        starts: also compile runs that begin at a later step, with an image.

    Raises:
        UnsupportedSchedulerError: when the scheduler clamps, needs more than HISTORY
            past entries, or cannot run at all.
    """
    label = f"scheduler {name!r} ({type(scheduler).__name__})"
    reason = _refusal(scheduler)
    if reason:
        raise UnsupportedSchedulerError(f"{label} is not supported: {reason}")
    steps: dict[int, SamplerSteps] = {}
    residual, failure = 0.0, "no step count was asked for"
    form = forms()[0]
    # The largest count decides on the form: it shows all that a scheduler does.
    for done, count in enumerate(sorted(step_counts, reverse=True), start=1):
        try:
            trace = probe_scheduler(copy.deepcopy(scheduler), count)
        except NotLinearError as error:
            raise UnsupportedSchedulerError(f"{label} is not supported: {error}") from None
        except Exception as error:  # diffusers' own errors for a count are of many classes
            failure = f"{type(error).__name__}: {error}"
        else:
            form, steps[count] = _compile_steps(label, trace, count, form)
            residual = max(residual, _residual(steps[count], trace))
            if starts:
                steps[count] = _with_starts(label, scheduler, steps[count], form)
        if progress is not None:
            progress(done, len(step_counts))
    if not steps:
        raise UnsupportedSchedulerError(f"{label} runs with no step count: {failure}")
    if residual > RESIDUAL_TOLERANCE:
        raise UnsupportedSchedulerError(
            f"{label} is not supported: weights in 32 bits differ from it by {residual:.1e}, "
            f"more than {RESIDUAL_TOLERANCE:.0e}"
        )
    return SamplerTable(
        name=name,
        scheduler_class=type(scheduler).__name__,
        prediction_type=str(scheduler.config.get("prediction_type", "epsilon")),
        history=form[0],
        extra_evaluations=max(entry.extra_evaluations for entry in steps.values()),
        steps=dict(sorted(steps.items())),
        residual=residual,
    )


def _compile_steps(
    label: str, trace: Trace, count: int, form: tuple[int, bool]
) -> tuple[tuple[int, bool], SamplerSteps]:
    """Fit one step count with `form`, or the next larger one that will do."""
    larger = forms()[forms().index(form) :]
    for slots, push_stored in larger:
        weights = fit_recurrence(trace, slots, push_stored=push_stored)
        if weights is not None:
            return (slots, push_stored), SamplerSteps(
                num_inference_steps=count,
                timesteps=trace.timesteps,
                sample_scale=trace.sample_scale,
                input_scale=float(trace.input_scales[0]),
                weights=weights.astype(np.float32),
                step_of_evaluation=trace.step_of_evaluation,
            )
    raise UnsupportedSchedulerError(
        f"{label} is not supported: with {count} steps, a step needs more than the sample, "
        f"the model output and {HISTORY} past entries"
    )


def _with_starts(
    label: str, scheduler: Any, steps: SamplerSteps, form: tuple[int, bool]
) -> SamplerSteps:
    try:
        return replace(steps, starts=compile_starts(scheduler, steps, form))
    except NoStartError as error:
        raise UnsupportedSchedulerError(
            f"{label} is not supported with image-to-image: {error}"
        ) from None


def _residual(steps: SamplerSteps, trace: Trace) -> float:
    """Replay the table in 32-bit floats over the basis, and compare with diffusers' own run."""
    n = len(steps.timesteps)
    basis = np.eye(n + 1, dtype=np.float32)
    samples = [basis[0]]
    history = np.zeros((HISTORY, n + 1), dtype=np.float32)
    none = np.zeros(n + 1, dtype=np.float32)
    for row, noise_pred in zip(steps.weights, basis[1:], strict=True):
        sample, _, history = advance(row, samples[-1], noise_pred, history, none)
        samples.append(sample)
    error = np.abs(np.stack(samples) - trace.trajectory).max(axis=1)
    largest = np.abs(trace.trajectory).max(axis=1)
    return float((error / np.where(largest > 0, largest, 1.0)).max())


def _refusal(scheduler: Any) -> str | None:
    """Return why a configuration is no linear recurrence, where it says so itself."""
    options = inspect.signature(type(scheduler).__init__).parameters
    config = {key: scheduler.config[key] for key in options if key in scheduler.config}
    if config.get("thresholding"):
        return "thresholding=True rescales by the image's own quantile, which is not linear"
    if config.get("clip_sample"):
        return "clip_sample=True clamps predicted images, which is not linear"
    return None
