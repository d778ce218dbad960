"""T-GATE's step plan (arXiv 2404.02747), as data.

T-GATE splits a run in two phases. Evaluations before the gate run the `full` graph:
cross-attention and classifier-free guidance computed. Evaluations from the gate on run the `gated`
graph: the cross-attention outputs of the last `full` evaluation are reused, and guidance is
dropped. Version 2 of the method also reuses self-attention outputs between the steps that compute
them: before the gate with `full_reuse`, from the gate on with `gated_reuse`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict, get_args

from tgate_export.steps.rule import Comparison, Guard
from tgate_export.steps.step_plan import PhaseCaches, StepPlan, plan_steps

Phase = Literal["full", "full_reuse", "gated", "gated_reuse"]
CacheKind = Literal["cross_cache", "self_passes", "self_cache"]

PHASES: tuple[Phase, ...] = get_args(Phase)
PARAMETERS = ("gate_step", "sp_interval", "fi_interval", "warm_up")
# The gate is not before the end of warm-up.
AT_LEAST: Mapping[str, str] = {"gate_step": "warm_up"}

# What each graph takes and gives, in the order of its tensors. `self_passes` holds the outputs of
# every guidance pass of a step before the gate; `cross_cache` and `self_cache` hold one for all.
READS: Mapping[Phase, tuple[CacheKind, ...]] = {
    "full": (),
    "full_reuse": ("self_passes",),
    "gated": ("cross_cache",),
    "gated_reuse": ("cross_cache", "self_cache"),
}
WRITES: Mapping[Phase, tuple[CacheKind, ...]] = {
    "full": ("cross_cache", "self_passes", "self_cache"),
    "full_reuse": (),
    "gated": ("self_cache",),
    "gated_reuse": (),
}

_GATED = Comparison(op=">=", parameter="gate_step")
# Exactly the steps of the official `tgate_scheduler`.
RULE: tuple[Guard, ...] = (
    Guard(phase="gated_reuse", all=(_GATED, Comparison(modulo="fi_interval", op="!=", constant=0))),
    Guard(phase="gated", all=(_GATED,)),
    Guard(
        phase="full_reuse",
        all=(
            Comparison(op=">", parameter="warm_up"),
            # Step gate_step - 1 writes what the gated steps read, so it always computes.
            Comparison(op="<", parameter="gate_step", constant=-1),
            Comparison(modulo="sp_interval", op="!=", constant=0),
        ),
    ),
    Guard(phase="full", all=()),
)


class Intervals(TypedDict):
    """When self-attention is computed; see `tgate_plan`."""

    sp_interval: int
    fi_interval: int
    warm_up: int


# In every step: version 1 of the method.
VERSION_1: Intervals = {"sp_interval": 1, "fi_interval": 1, "warm_up": 0}


def tgate_plan(
    num_inference_steps: int,
    gate_step: int,
    extra_evaluations: int = 0,
    *,
    sp_interval: int = 1,
    fi_interval: int = 1,
    warm_up: int = 0,
) -> StepPlan:
    """Plan one run of settings that were checked, by kinds of caches.

    Args:
        num_inference_steps: denoising steps, at least 1.
        gate_step: steps `0..gate_step-1` compute cross-attention and guidance, steps `gate_step..`
            do not. The cache used is the one written at step `gate_step - 1`. At
            `num_inference_steps` or more nothing is gated, which is the baseline.
        extra_evaluations: see `plan_steps`.
        sp_interval: before the gate, self-attention is computed at multiples of this, and reused
            in between. 1 computes it in every step.
        fi_interval: from the gate on, self-attention is computed at multiples of this, and reused
            in between. 1 computes it in every step.
        warm_up: self-attention is computed in steps `0..warm_up`, whatever `sp_interval` says.

    Raises:
        ValueError: no steps.
    """
    values = {
        "gate_step": gate_step, "sp_interval": sp_interval, "fi_interval": fi_interval,
        "warm_up": warm_up,
    }  # fmt: skip
    caches: dict[str, PhaseCaches] = {
        phase: PhaseCaches(READS[phase], WRITES[phase]) for phase in PHASES
    }
    return plan_steps(RULE, caches, values, num_inference_steps, extra_evaluations)
