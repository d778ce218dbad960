"""Step plans of T-GATE, as the official code counts."""

from __future__ import annotations

from tgate_export.methods.tgate_v2 import METHOD
from tgate_export.steps.step_plan import StepPlan


def tgate_plan(
    num_inference_steps: int,
    gate_step: int,
    extra_evaluations: int = 0,
    *,
    sp_interval: int = 1,
    fi_interval: int = 1,
    warm_up: int = 0,
) -> StepPlan:
    """Plan one run, by kinds of caches."""
    values = {
        "gate_step": gate_step, "sp_interval": sp_interval, "fi_interval": fi_interval,
        "warm_up": warm_up,
    }  # fmt: skip
    return METHOD.plan(values, range(-extra_evaluations, num_inference_steps))
