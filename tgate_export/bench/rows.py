"""Which ways to generate are compared, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tgate_export.bench.result import Kind, Number, Row
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.pipeline import TGatePipeline
from tgate_export.runtime.plan import BatchPlan, BatchShape, plan_batch
from tgate_export.runtime.run_plan import step_plan_of
from tgate_export.steps.step_plan import StepPlan

# Self-attention is computed in every step: version 1 of the method.
VERSION_1: Mapping[str, int] = {"sp_interval": 1, "fi_interval": 1, "warm_up": 0}
# What a gate keeps of guidance: as the official code, and what was best for the demo pipeline; see
# docs/methods.md.
OFFICIAL: Mapping[str, Number] = {"cache_blend": 0.5, "guidance_carry": 0.0}
BETTER: Mapping[str, Number] = {"cache_blend": 1.0, "guidance_carry": 0.25}
_SHORT = {"cache_blend": "blend", "guidance_carry": "carry"}
# Of the steps; 5, 10 and 15 of 25.
_DEFAULT_GATES = (0.2, 0.4, 0.6)


@dataclass(frozen=True)
class RowSpec:
    """One way to generate.

    Attributes:
        kind: baseline; gated; gated with self-attention reused, too (version 2 of the method); or
            ungated with fewer steps, in about a gated row's time.
        num_inference_steps: denoising steps.
        label: for people.
        parameters: of a run, by name, that make the row what it is; none where nothing is gated.
    """

    kind: Kind
    num_inference_steps: int
    label: str
    parameters: Mapping[str, Number] = field(default_factory=dict)

    def call(self) -> dict[str, Any]:
        """Arguments of `TGatePipeline.__call__`."""
        steps = self.num_inference_steps
        return {
            "num_inference_steps": steps, "gate_step": steps, **VERSION_1, **self.parameters,
        }  # fmt: skip


Command = Callable[[TGatePipeline, str, str | None, RowSpec], str]
"""Writes what generates as a row does: with a pipeline, a prompt, a scheduler or its default."""


def spec_of(row: Row) -> RowSpec:
    """Return how a row of a result generates."""
    return RowSpec(row.kind, row.num_inference_steps, row.label, row.parameters)


def baseline(steps: int) -> RowSpec:
    """The ungated run."""
    return RowSpec("baseline", steps, f"{steps} steps, no gate")


def gated(steps: int, gate_step: int, **others: Number) -> RowSpec:
    """T-GATE at one gate step, with other parameters of a run at values of the row's own."""
    parameters = {"gate_step": gate_step, **others}
    words = unofficial(parameters)
    label = f"gate {gate_step} of {steps}" + f", {words}" * bool(words)
    return RowSpec("gated", steps, label, parameters)


def unofficial(parameters: Mapping[str, Number]) -> str:
    """Write what makes a gate another one than the official method's at its step."""
    return ", ".join(
        f"{_SHORT.get(name, name.replace('_', ' '))} {value:g}"
        for name, value in parameters.items()
        if name != "gate_step" and value != OFFICIAL.get(name)
    )


def gate_settings(manifest: Manifest) -> list[Mapping[str, Number]]:
    """Return what gates of a bundle are tried with: official, better, and its own defaults."""
    if not OFFICIAL.keys() <= manifest.parameters.keys():
        return [{}]
    found = [OFFICIAL, BETTER]
    own = {name: getattr(manifest.defaults, name) for name in OFFICIAL}
    return found if own in found else [*found, own]


def version_2(
    steps: int, gate_step: int, intervals: Mapping[str, int], **others: Number
) -> RowSpec:
    """T-GATE at one gate step, with self-attention reused between the steps that compute it."""
    numbers = ",".join(str(number) for number in intervals.values())
    label = f"gate {gate_step} of {steps}, self-attention {numbers}"
    return RowSpec("version_2", steps, label, {"gate_step": gate_step, **intervals, **others})


def requested_rows(steps: int, gate_steps: Sequence[int], manifest: Manifest) -> list[RowSpec]:
    """Return the ungated row and each gate's; of version 2 where that is a bundle's default."""
    defaults = manifest.defaults
    intervals = {name: getattr(defaults, name) for name in VERSION_1}
    settings = gate_settings(manifest)
    rows = [baseline(steps)]
    rows += [gated(steps, gate, **setting) for gate in gate_steps for setting in settings]
    if max(defaults.sp_interval, defaults.fi_interval) > 1:
        rows += [
            version_2(steps, gate, intervals, **settings[0])
            for gate in gate_steps
            if gate >= defaults.warm_up
        ]
    return rows


def fewer_steps(steps: int) -> RowSpec:
    """What one would do otherwise: plain steps, but fewer."""
    return RowSpec("fewer_steps", steps, f"{steps} plain steps")


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
