"""Runs that begin later, with an image: every start of a table against diffusers' schedulers."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from tests.samplers.test_sampler_tables import (
    SD15,
    SHAPE,
    TOLERANCE,
    Step,
    advance_in_graph,
    denoise,
    drawn,
    draws_noise,
    run_table,
)
from tgate_export.bundle.sampler_table import SamplerTable, advance
from tgate_export.samplers.specs import SAMPLERS
from tgate_export.samplers.tables import (
    UnsupportedSchedulerError,
    compile_scheduler,
    make_scheduler,
)

STEP_COUNTS = (1, 2, 3, 7, 25)


@cache
def compiled(name: str, prediction_type: str) -> SamplerTable:
    scheduler = make_scheduler(name, {**SD15, "prediction_type": prediction_type})
    return compile_scheduler(name, scheduler, STEP_COUNTS, starts=True)


def run_diffusers_from(
    scheduler: Any, count: int, start: int, image: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """Do as `StableDiffusionImg2ImgPipeline` does; return all samples [E + 1, B, C, h, w]."""
    scheduler.set_timesteps(count)
    timesteps = scheduler.timesteps[start * scheduler.order :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start * scheduler.order)
    at = timesteps[:1].repeat(len(image))
    sample = scheduler.add_noise(torch.from_numpy(image), torch.from_numpy(noise), at)
    samples = [sample.numpy()]
    extra = {"generator": drawn(count - start)} if draws_noise(scheduler) else {}
    for t in timesteps:
        model_input = scheduler.scale_model_input(sample, t)
        noise_pred = torch.from_numpy(denoise(model_input.numpy(), float(t)))
        sample = scheduler.step(noise_pred, t, sample, return_dict=False, **extra)[0]
        samples.append(sample.numpy())
    return np.stack(samples)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_start_follows_diffusers(name: str, prediction_type: str) -> None:
    config = {**SD15, "prediction_type": prediction_type}
    image, noise = np.random.default_rng(3).standard_normal((2, *SHAPE)).astype(np.float32)
    for count, steps in compiled(name, prediction_type).steps.items():
        assert len(steps.starts) == count
        for start in range(count):
            expected = run_diffusers_from(make_scheduler(name, config), count, start, image, noise)
            step: Step = advance_in_graph if start == count // 2 else advance
            found = run_table(steps.starting_at(start), noise, step, image)
            assert found.shape == expected.shape
            # Not only at the end: what a wrong start does to a run fades.
            error = np.abs(found - expected).max(axis=(1, 2, 3, 4))
            assert (error <= TOLERANCE * np.abs(expected).max()).all()


def test_only_rows_without_a_full_history_are_stored() -> None:
    for name in SAMPLERS:
        table = compiled(name, "epsilon")
        rows = [len(start.weights) for start in table.steps[25].starts]
        assert max(rows) == (5 if name == "pndm" else table.history)
        if name != "pndm":
            assert rows[0] == 0


class Counting(diffusers.DDIMScheduler):
    """Grows samples with the number of steps since the run began."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.taken = 0

    def step(self, model_output: Any, timestep: Any, sample: Any, **kwargs: Any) -> Any:
        self.taken += 1
        return super().step(model_output, timestep, (1 + 1e-3 * self.taken) * sample, **kwargs)


def test_a_scheduler_whose_later_starts_are_other_runs_is_refused() -> None:
    scheduler = Counting.from_config(SD15)
    assert compile_scheduler("odd", scheduler, (12,)).history == 0
    reason = r"'odd' \(Counting\) is not supported with image-to-image: from step 4 of 12 on"
    with pytest.raises(UnsupportedSchedulerError, match=reason):
        compile_scheduler("odd", scheduler, (12,), starts=True)
