"""Which graph each denoising step runs: a pure function of steps and gate step.

T-GATE (arXiv 2404.02747) splits a run in two phases. Evaluations before the gate run the
`full` graph: cross-attention and classifier-free guidance computed. Evaluations from the gate
on run the `gated` graph: the cross-attention outputs of the last `full` evaluation are reused,
and guidance is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["full", "gated"]


@dataclass(frozen=True)
class Schedule:
    """The graph of every denoiser evaluation of one run, decided before the first launch.

    Attributes:
        phases: one entry for each denoiser evaluation.
        num_inference_steps: the steps that were asked for.
        gate_step: the first step that is gated.
    """

    phases: tuple[Phase, ...]
    num_inference_steps: int
    gate_step: int

    @property
    def full_evaluations(self) -> int:
        """How many evaluations run the `full` graph."""
        return self.phases.count("full")

    @property
    def gated_evaluations(self) -> int:
        """How many evaluations run the `gated` graph."""
        return self.phases.count("gated")


def gate_schedule(num_inference_steps: int, gate_step: int, extra_evaluations: int = 0) -> Schedule:
    """Plan one run.

    Args:
        num_inference_steps: denoising steps, at least 1.
        gate_step: steps `0..gate_step-1` run `full`, steps `gate_step..` run `gated`. The cache
            used is the one written at step `gate_step - 1`. At `num_inference_steps` or more
            nothing is gated, which is the baseline.
        extra_evaluations: denoiser evaluations that a sampler makes before its first counted
            step (PNDM with `skip_prk_steps`: one). Steps are counted from after them, as the
            official implementation counts (`cur_step = i - num_warmup_steps`), so they are `full`.

    Raises:
        ValueError: when a step count or the gate step is below 1.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    if gate_step < 1:
        raise ValueError(
            f"gate_step must be at least 1, got {gate_step}: the first step always computes "
            "cross-attention, its outputs are what the gated steps reuse"
        )
    full = extra_evaluations + min(gate_step, num_inference_steps)
    gated = num_inference_steps + extra_evaluations - full
    before: tuple[Phase, ...] = ("full",)
    after: tuple[Phase, ...] = ("gated",)
    return Schedule(before * full + after * gated, num_inference_steps, gate_step)
