"""What a run would end with, against the estimates that diffusers' own schedulers make."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.samplers.test_sampler_tables import SD15
from tgate_export.runtime.denoised import denoised
from tgate_export.samplers.tables import compile_scheduler, make_scheduler

COUNT = 12


@pytest.mark.parametrize("name", ["ddim", "euler", "euler-karras", "dpm++2m"])
def test_the_estimate_is_that_of_the_scheduler(name: str) -> None:
    config = {**SD15, "prediction_type": "epsilon"}
    scheduler = make_scheduler(name, config)
    steps = compile_scheduler(name, make_scheduler(name, config), [COUNT]).for_steps(COUNT)
    scheduler.set_timesteps(COUNT)
    random = torch.Generator().manual_seed(0)
    sample = torch.randn((1, 4, 3, 2), generator=random) * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        noise_pred = torch.randn(sample.shape, generator=random)
        if name == "dpm++2m":  # from its second step on it is of second order
            if step:
                break
            scheduler._init_step_index(timestep)
            expected = scheduler.convert_model_output(noise_pred, sample=sample)
            sample = scheduler.step(noise_pred, timestep, sample).prev_sample
        else:
            output = scheduler.step(noise_pred, timestep, sample)
            expected, sample = output.pred_original_sample, output.prev_sample
            if name == "ddim":  # it ends a little above no noise
                kept = scheduler.final_alpha_cumprod
                assert 0.999 < kept < 1
                expected = kept**0.5 * expected + (1 - kept) ** 0.5 * noise_pred
        found = denoised(steps, step, sample.numpy(), noise_pred.numpy())
        assert found.dtype == np.float32
        # The estimate is a difference of numbers as large as the first samples' noise.
        scale = float(max(sample.abs().max(), expected.abs().max()))
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-5 * scale)


def test_the_last_sample_is_what_it_is() -> None:
    config = {**SD15, "prediction_type": "epsilon"}
    steps = compile_scheduler("pndm", make_scheduler("pndm", config), [5]).for_steps(5)
    sample, noise_pred = np.random.default_rng(0).standard_normal((2, 4, 3, 2), np.float32)
    found = denoised(steps, len(steps.timesteps) - 1, sample, noise_pred)
    np.testing.assert_array_equal(found, sample)
