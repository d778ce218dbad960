"""Which phase each denoising step runs, and which caches it reads and writes: a pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from tgate_export.steps.rule import Rule, phase_of


@dataclass(frozen=True)
class PhaseCaches:
    """The caches that a phase's graph takes and gives, in the order of its tensors."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the denoiser.

    Attributes:
        phase: the graph that it runs.
        reads: the caches that it takes.
        writes: those of the caches it gives that a later evaluation takes. A graph may give more.
    """

    phase: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class StepPlan:
    """Every denoiser evaluation of one run, decided before the first launch.

    Attributes:
        evaluations: in the order of the run.
        num_inference_steps: the steps that were asked for.
    """

    evaluations: tuple[Evaluation, ...]
    num_inference_steps: int

    @cached_property
    def phases(self) -> tuple[str, ...]:
        """The graph of each evaluation."""
        return tuple(evaluation.phase for evaluation in self.evaluations)


def plan_steps(
    rule: Rule,
    caches: Mapping[str, PhaseCaches],
    values: Mapping[str, int],
    num_inference_steps: int,
    extra_evaluations: int = 0,
) -> StepPlan:
    """Plan one run.

    Args:
        rule: says which phase a step runs.
        caches: of every phase; one that is not listed takes and gives none.
        values: of the rule's parameters.
        num_inference_steps: denoising steps, at least 1.
        extra_evaluations: denoiser evaluations that a sampler makes before its first counted
            step (PNDM with `skip_prk_steps`: one). Steps are counted from after them, as the
            official implementation counts (`cur_step = i - num_warmup_steps`).

    Raises:
        ValueError: no steps.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    steps = range(-extra_evaluations, num_inference_steps)
    phases = [phase_of(rule, step, values) for step in steps]
    return StepPlan(_with_caches(phases, caches), num_inference_steps)


def _with_caches(phases: list[str], caches: Mapping[str, PhaseCaches]) -> tuple[Evaluation, ...]:
    """Say which caches each evaluation reads, and which it writes for a later one to read."""
    evaluations = []
    wanted: set[str] = set()
    for phase in reversed(phases):
        takes_and_gives = caches.get(phase, PhaseCaches((), ()))
        writes = tuple(name for name in takes_and_gives.writes if name in wanted)
        wanted = wanted.difference(writes).union(takes_and_gives.reads)
        evaluations.append(Evaluation(phase, takes_and_gives.reads, writes))
    return tuple(reversed(evaluations))
