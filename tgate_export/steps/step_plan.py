"""Which graph each denoising step runs, and which caches it reads and writes: a pure function.

T-GATE (arXiv 2404.02747) splits a run in two phases. Evaluations before the gate run the
`full` graph: cross-attention and classifier-free guidance computed. Evaluations from the gate
on run the `gated` graph: the cross-attention outputs of the last `full` evaluation are reused,
and guidance is dropped. Version 2 of the method also reuses self-attention outputs between the
steps that compute them: before the gate with `full_reuse`, from the gate on with `gated_reuse`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

Phase = Literal["full", "full_reuse", "gated", "gated_reuse"]
CacheKind = Literal["cross_cache", "self_passes", "self_cache"]


class Intervals(TypedDict):
    """When self-attention is computed; see `tgate_plan`."""

    sp_interval: int
    fi_interval: int
    warm_up: int


# In every step: version 1 of the method.
VERSION_1: Intervals = {"sp_interval": 1, "fi_interval": 1, "warm_up": 0}

PHASES: tuple[Phase, ...] = get_args(Phase)

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


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the denoiser.

    Attributes:
        phase: the graph that it runs.
        reads: the caches that it takes.
        writes: those of the caches it gives that a later evaluation takes. A graph may give more.
    """

    phase: Phase
    reads: tuple[CacheKind, ...]
    writes: tuple[CacheKind, ...]


@dataclass(frozen=True)
class StepPlan:
    """Every denoiser evaluation of one run, decided before the first launch.

    Attributes:
        evaluations: in the order of the run.
        num_inference_steps: the steps that were asked for.
        gate_step: the first step that is gated.
    """

    evaluations: tuple[Evaluation, ...]
    num_inference_steps: int
    gate_step: int

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The graph of each evaluation."""
        return tuple(evaluation.phase for evaluation in self.evaluations)


def check_step_plan(gate_step: int, sp_interval: int, fi_interval: int, warm_up: int) -> None:
    """Refuse settings that make no step plan, for any number of steps.

    Raises:
        ValueError: names the setting, and what to give instead.
    """
    if gate_step < 1:
        raise ValueError(
            f"gate_step must be at least 1, got {gate_step}: the first step always computes "
            "cross-attention, its outputs are what the gated steps reuse"
        )
    for name, interval in (("sp_interval", sp_interval), ("fi_interval", fi_interval)):
        if interval < 1:
            raise ValueError(
                f"{name} must be at least 1, got {interval}: "
                "1 computes self-attention in every step"
            )
    if warm_up < 0:
        raise ValueError(f"warm_up must be at least 0, got {warm_up}")
    if gate_step < warm_up:
        raise ValueError(
            f"gate_step {gate_step} is before the end of warm_up {warm_up}: give a gate_step of "
            f"at least {warm_up}, or a warm_up of at most {gate_step}"
        )


def tgate_plan(
    num_inference_steps: int,
    gate_step: int,
    extra_evaluations: int = 0,
    *,
    sp_interval: int = 1,
    fi_interval: int = 1,
    warm_up: int = 0,
) -> StepPlan:
    """Plan one run, with exactly the steps of the official `tgate_scheduler`.

    Args:
        num_inference_steps: denoising steps, at least 1.
        gate_step: steps `0..gate_step-1` compute cross-attention and guidance, steps `gate_step..`
            do not. The cache used is the one written at step `gate_step - 1`. At
            `num_inference_steps` or more nothing is gated, which is the baseline.
        extra_evaluations: denoiser evaluations that a sampler makes before its first counted
            step (PNDM with `skip_prk_steps`: one). Steps are counted from after them, as the
            official implementation counts (`cur_step = i - num_warmup_steps`), so they are `full`.
        sp_interval: before the gate, self-attention is computed at multiples of this, and reused
            in between. 1 computes it in every step.
        fi_interval: the same from the gate on.
        warm_up: self-attention is computed in steps `0..warm_up`, whatever `sp_interval` says.

    Raises:
        ValueError: see `check_step_plan`; or no steps.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    check_step_plan(gate_step, sp_interval, fi_interval, warm_up)

    def phase(step: int) -> Phase:
        if step >= gate_step:
            return "gated" if step % fi_interval == 0 else "gated_reuse"
        # Step gate_step - 1 writes what the gated steps read, so it always computes.
        reuses = warm_up < step < gate_step - 1 and step % sp_interval != 0
        return "full_reuse" if reuses else "full"

    phases = [phase(step) for step in range(-extra_evaluations, num_inference_steps)]
    return StepPlan(_with_caches(phases), num_inference_steps, gate_step)


def _with_caches(phases: list[Phase]) -> tuple[Evaluation, ...]:
    """Say which caches each evaluation reads, and which it writes for a later one to read."""
    evaluations = []
    wanted: set[CacheKind] = set()
    for phase in reversed(phases):
        writes = tuple(kind for kind in WRITES[phase] if kind in wanted)
        wanted = wanted.difference(writes).union(READS[phase])
        evaluations.append(Evaluation(phase, READS[phase], writes))
    return tuple(reversed(evaluations))
