"""Which ways to generate are compared, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tgate_export.bench.result import Kind
from tgate_export.bundle.manifest import Defaults
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.pipeline import TGatePipeline
from tgate_export.runtime.plan import BatchPlan, BatchShape, plan_batch
from tgate_export.runtime.run_plan import step_plan_of
from tgate_export.runtime.timings import Timings
from tgate_export.steps.step_plan import StepPlan

# Self-attention is computed in every step: version 1 of the method.
VERSION_1: Mapping[str, int] = {"sp_interval": 1, "fi_interval": 1, "warm_up": 0}
# Of the steps; 5, 10 and 15 of 25.
_DEFAULT_GATES = (0.2, 0.4, 0.6)


@dataclass(frozen=True)
class RowSpec:
    """One way to generate.

    Attributes:
        kind: baseline; gated; gated with self-attention reused, too (version 2 of the method); or
            ungated with fewer steps, in about a gated row's time.
        num_inference_steps: denoising steps.
        gate_step: None when nothing is gated.
        label: for people.
        intervals: when self-attention is computed.
    """

    kind: Kind
    num_inference_steps: int
    gate_step: int | None
    label: str
    intervals: Mapping[str, int] = field(default_factory=lambda: VERSION_1)

    def call(self) -> dict[str, Any]:
        """Arguments of `TGatePipeline.__call__`."""
        gate = self.num_inference_steps if self.gate_step is None else self.gate_step
        return {
            "num_inference_steps": self.num_inference_steps,
            "gate_step": gate,
            **self.intervals,
        }


def baseline(steps: int) -> RowSpec:
    """The ungated run."""
    return RowSpec("baseline", steps, None, f"{steps} steps, no gate")


def gated(steps: int, gate_step: int) -> RowSpec:
    """T-GATE at one gate step."""
    return RowSpec("gated", steps, gate_step, f"gate {gate_step} of {steps}")


def version_2(steps: int, gate_step: int, intervals: Mapping[str, int]) -> RowSpec:
    """T-GATE at one gate step, with self-attention reused between the steps that compute it."""
    numbers = ",".join(str(number) for number in intervals.values())
    label = f"gate {gate_step} of {steps}, self-attention {numbers}"
    return RowSpec("version_2", steps, gate_step, label, intervals)


def requested_rows(steps: int, gate_steps: Sequence[int], defaults: Defaults) -> list[RowSpec]:
    """Return the ungated row and each gate's; of version 2 where that is a bundle's default."""
    intervals = {name: getattr(defaults, name) for name in VERSION_1}
    rows = [baseline(steps), *(gated(steps, gate) for gate in gate_steps)]
    if max(defaults.sp_interval, defaults.fi_interval) > 1:
        rows += [
            version_2(steps, gate, intervals) for gate in gate_steps if gate >= defaults.warm_up
        ]
    return rows


def fewer_steps(steps: int) -> RowSpec:
    """The honest alternative: plain steps, but fewer."""
    return RowSpec("fewer_steps", steps, None, f"{steps} plain steps")


def parse_gate_steps(text: str | None, steps: int) -> tuple[int, ...]:
    """Read `5,10,15`; by default a fifth, two and three fifths of the steps.

    Raises:
        InvalidRequestError: names the entry that is no gate step of so many steps.
    """
    if text is None:
        gates = {max(1, round(part * steps)) for part in _DEFAULT_GATES}
        return tuple(sorted(gate for gate in gates if gate < steps))
    found: list[int] = []
    for entry in text.split(","):
        try:
            gate = int(entry)
        except ValueError:
            raise InvalidRequestError(
                f"gate steps {text!r}: {entry.strip()!r} is not a whole number: "
                "give a list such as 5,10,15"
            ) from None
        if not 1 <= gate < steps:
            raise InvalidRequestError(
                f"gate steps {text!r}: {gate} is not 1 to {steps - 1}: at {steps} steps "
                "a later gate gates nothing, which is the baseline"
            )
        if gate in found:
            raise InvalidRequestError(f"gate steps {text!r}: {gate} is there twice")
        found.append(gate)
    return tuple(sorted(found))


def equal_time_steps(steps: int, runs: Sequence[Timings], plain: Timings, gated: Timings) -> int:
    """Return how many plain steps take about as long as a gated run.

    From the median time of a step (denoiser and sampler) of each phase, so that a few warm-up runs
    are enough; everything outside the steps is the same for both.

    Args:
        steps: of the plain run; no more are returned.
        runs: all that is known of how long steps take; they have every phase of the other two.
        plain: an ungated run.
        gated: a gated run.
    """
    seconds: dict[str, list[float]] = {}
    for timings in runs:
        for step in timings.steps:
            seconds.setdefault(step.phase, []).append(step.denoiser + step.sampler)
    medians = {phase: median(values) for phase, values in seconds.items()}
    whole, part = (sum(medians[step.phase] for step in run.steps) for run in (plain, gated))
    evaluations = len(plain.steps)
    extra = evaluations - steps  # of the sampler, made whatever the number of steps
    return min(steps, max(1, round(part / whole * evaluations) - extra))


def run_step_plan(pipeline: TGatePipeline, row: RowSpec, scheduler: str | None) -> StepPlan:
    """Return the phases of a row's run, without running it."""
    manifest = pipeline.manifest
    table = pipeline.sampler_table(scheduler or manifest.defaults.scheduler)
    sampler = table.for_steps(row.num_inference_steps)
    return step_plan_of(manifest, row.call(), sampler)


def binding_plan(
    pipeline: TGatePipeline, row: RowSpec, batch: int, scheduler: str | None
) -> BatchPlan:
    """Return the launches and buffers of a row, without running it.

    Raises:
        BundleError: the bundle lacks a graph that the row needs; the message names it.
    """
    size = pipeline.manifest.size
    phases = dict.fromkeys(run_step_plan(pipeline, row, scheduler).phases)
    shape = BatchShape(batch, size.height.opt, size.width.opt, tuple(phases))
    return plan_batch(pipeline.manifest, shape)
