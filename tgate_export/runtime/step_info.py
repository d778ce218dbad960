"""What a pipeline's callback learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StepInfo:
    """What a callback learns after a step.

    Attributes:
        step: index of the denoiser evaluation that has ended.
        evaluations: how many there are in this run.
        phase: the graph that ran.
        timestep: what the denoiser was given, in training steps.
        latents: returns the current sample [B, C, h, w] f32, copied to the host when called.
        tensor: returns a buffer by its tensor's name, such as a cache, in the same way.

    A GPU may still be at an earlier step: a step is only queued, and `latents` waits for it.
    """

    step: int
    evaluations: int
    phase: str
    timestep: float
    latents: Callable[[], np.ndarray]
    tensor: Callable[[str], np.ndarray]
