"""Which phase each denoising step runs, and which caches it reads and writes: a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    step_of_evaluation: Sequence[int],
) -> StepPlan:
    """Plan one run.

    Args:
        rule: says which phase a step runs.
        caches: of every phase; one that is not listed takes and gives none.
        values: of the rule's parameters.
        step_of_evaluation: the step that each evaluation belongs to, in the order of the run. The
            phase is chosen by the step, so that all evaluations of one step run the same. A sampler
            may evaluate twice a step (Heun: 0, 0, 1, 1, ...), or before its first one (PNDM with
            `skip_prk_steps`: -1, 0, 1, ..., as the official implementation counts: `cur_step =
            i - num_warmup_steps`).

    Raises:
        ValueError: no steps.
    """
    if not step_of_evaluation or step_of_evaluation[-1] < 0:
        raise ValueError("num_inference_steps must be at least 1")
    phases = [phase_of(rule, step, values) for step in step_of_evaluation]
    return StepPlan(_with_caches(phases, caches), step_of_evaluation[-1] + 1)


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
