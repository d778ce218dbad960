"""What a run would end with if its noise prediction stayed as it is: for previews."""

from __future__ import annotations

import numpy as np

from tgate_export.bundle.sampler_table import (
    HISTORY,
    NOISE_PRED,
    PAST,
    PUSH_NOISE_PRED,
    PUSH_SAMPLE,
    SAMPLE,
    SamplerSteps,
)


def denoised(
    sampler: SamplerSteps, step: int, sample: np.ndarray, noise_pred: np.ndarray
) -> np.ndarray:
    """Take the steps that are left with one noise prediction, and no noise of their own.

    Samples and predictions only scale, so what is followed are two weights, one of each. A
    multistep sampler's history is taken to be what it would be had all steps been like the next:
    its higher orders vanish. For models that predict noise, and first orders, this is the usual
    estimate of the finished latents.

    Args:
        sampler: the run's steps.
        step: index of the evaluation that has ended.
        sample: after it [C, h, w] f32.
        noise_pred: the evaluation's prediction, guided [C, h, w] f32.
    """
    now = np.array([1.0, 0.0])  # of the sample, and of the prediction
    history: list[np.ndarray] = []
    prediction = np.array([0.0, 1.0])
    for row in sampler.weights[step + 1 :].astype(np.float64):
        pushed = row[PUSH_SAMPLE] * now + row[PUSH_NOISE_PRED] * prediction
        past = (history + [pushed] * HISTORY)[:HISTORY]
        history = [pushed, *past[: HISTORY - 1]]
        now = row[SAMPLE] * now + row[NOISE_PRED] * prediction + row[PAST] @ np.stack(past)
    return np.asarray(now[0] * sample + now[1] * noise_pred, np.float32)
