"""`probe` without its command line: where cross-attention converges, and the gate it allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from tgate_export.bench.answer import answer
from tgate_export.bench.bound import choose_bound, judge
from tgate_export.bench.convergence import ConvergenceRecorder
from tgate_export.bench.machine import machine, now
from tgate_export.bench.result import (
    Interval,
    Number,
    ProbeResult,
    ProbeSettings,
    Quality,
    Row,
)
from tgate_export.bench.rows import (
    Command,
    RowSpec,
    baseline,
    fewer_steps,
    gate_settings,
    gated,
)
from tgate_export.bench.similarity import as_bytes
from tgate_export.bench.statistics import quantiles, speedup
from tgate_export.bench.step_times import equal_time_steps, evaluations_of, latencies_by_steps
from tgate_export.runtime.pipeline import StepCallback, TGatePipeline
from tgate_export.runtime.timings import Timings

# Of the steps, judged before the search: 2, 5, 10, 15 and 20 of 25.
_CHART_GATES = (0.08, 0.2, 0.4, 0.6, 0.8)

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """One way to generate, tried on all prompts.

    Attributes:
        spec: how to generate.
        quality: of its pictures beside the ungated.
        evaluations: of the denoiser, by phase.
    """

    spec: RowSpec
    quality: Quality
    evaluations: dict[str, int]


@dataclass
class Probe:
    """One probe; `run` can be interrupted, and keeps what it has.

    Attributes:
        pipeline: what generates.
        prompts: all of them decide.
        steps: denoising steps.
        scheduler: a sampler of the bundle.
        seed: of the first picture.
        min_ssim: bound to use; by default adherence where it can be judged, else `MIN_SSIM`.
        command: writes what generates as a row does, for the result.
        pictures: by label of the row, 8 bits.
    """

    pipeline: TGatePipeline
    prompts: Sequence[str]
    steps: int
    scheduler: str
    seed: int
    advance: Advance
    min_ssim: float | None = None
    command: Command | None = None
    pictures: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bound = choose_bound(self.prompts, self.min_ssim)
        self._recorder = ConvergenceRecorder(self.pipeline.manifest.caches)
        self._trials: dict[str, Trial] = {}
        self._ungated = baseline(self.steps)
        self._runs: dict[str, list[Timings]] = {}
        self._done = 0

    def run(self) -> ProbeResult:
        """Generate ungated and gated, find the earliest gate that meets the bound, and plain steps.

        Raises:
            KeyboardInterrupt: interrupted before all ungated pictures were made.
            TGateError: what the pipeline raises.
        """
        self._try(self._ungated, self._recorder.record)
        suggested, complete = None, False
        try:
            found = [self._search(setting) for setting in gate_settings(self.pipeline.manifest)]
            suggested = self._earliest([spec for spec in found if spec is not None])
            if suggested is not None:
                self._try_fewer_steps(suggested)
            complete = True
        except KeyboardInterrupt:
            suggested = None
        return self._result(suggested, complete)

    def _earliest(self, specs: Sequence[RowSpec]) -> RowSpec | None:
        """Return the earliest gate; of several at its step, that of the best pictures."""

        def order(spec: RowSpec) -> tuple[float, float]:
            similarity = self._trials[spec.label].quality.similarity
            return spec.parameters["gate_step"], -similarity.ssim

        return min(specs, key=order, default=None)

    def _search(self, setting: Mapping[str, Number]) -> RowSpec | None:
        """Return the earliest gate of a setting that meets the bound, if one does.

        A later gate computes more, so it is taken to be no worse between two that were judged;
        every gate that was judged after the one returned does meet the bound.
        """
        low, high = 0, self.steps
        for gate in reversed(chart_gates(self.steps)):
            if self._try_gate(gate, setting) and not low:
                high = gate
            else:
                low = max(low, gate)
        while high - low > 1:
            middle = (low + high) // 2
            if self._try_gate(middle, setting):
                high = middle
            else:
                low = middle
        return gated(self.steps, high, **setting) if high < self.steps else None

    def _try_gate(self, gate: int, setting: Mapping[str, Number]) -> bool:
        return self._try(gated(self.steps, gate, **setting)).meets_bound

    def _try_fewer_steps(self, gate: RowSpec) -> None:
        """Try as many plain steps as take about as long as a gate."""
        runs = [timings for runs in self._gated_runs().values() for timings in runs]
        plain, other = (self._trials[spec.label].evaluations for spec in (self._ungated, gate))
        count = equal_time_steps(self.steps, runs, plain, other)
        if count < self.steps:
            self._try(fewer_steps(count))

    def _try(self, spec: RowSpec, callback: StepCallback | None = None) -> Quality:
        """Generate every prompt, and judge the pictures."""
        images = self._generate(spec, callback)
        self.pictures[spec.label] = images
        ungated = self.pictures[self._ungated.label]
        quality = judge(ungated, images, self.prompts, self.bound)
        evaluations = evaluations_of(self._runs[spec.label][0])
        self._trials[spec.label] = Trial(spec, quality, evaluations)
        return quality

    def _generate(self, spec: RowSpec, callback: StepCallback | None = None) -> list[np.ndarray]:
        pictures: list[np.ndarray] = []
        self._runs[spec.label] = []
        for first in range(0, len(self.prompts), self._batch):
            self.advance(spec.label, self._done, self._total())
            prompts = list(self.prompts[first : first + self._batch])
            output = self.pipeline(
                prompts, **spec.call(), scheduler=self.scheduler, seed=self.seed + first,
                output_type="np", callback_on_step_end=callback,
            )  # fmt: skip
            pictures.extend(as_bytes(np.asarray(output.images)))
            self._done += len(prompts)
            if len(prompts) == self._batch:
                self._runs[spec.label].append(output.timings)
        return pictures

    @property
    def _batch(self) -> int:
        """Pictures of a call; the last call, which may make fewer, is not timed."""
        return min(self.pipeline.manifest.batch.max, len(self.prompts))

    def _gated_runs(self) -> dict[str, list[Timings]]:
        """Runs that have both phases, by label of the row."""
        return {
            label: runs
            for label, runs in self._runs.items()
            if label in self._trials and self._trials[label].spec.kind == "gated"
        }

    def _total(self) -> int:
        charts = chart_gates(self.steps)
        widest = max(b - a for a, b in pairwise([0, *charts, self.steps]))
        settings = len(gate_settings(self.pipeline.manifest))
        rows = 2 + settings * (len(charts) + (widest - 1).bit_length())
        return max(rows * len(self.prompts), self._done)

    def _rows(self) -> list[Row]:
        """Return the rows, the slowest first; none before the first gate, which times all."""
        runs = [timings for runs in self._gated_runs().values() for timings in runs]
        if not runs:
            return []
        seconds = {
            label: [value / self._batch for value in latencies_by_steps(runs, trial.evaluations)]
            for label, trial in self._trials.items()
        }
        plain = seconds[self._ungated.label]
        found = []
        for label, trial in self._trials.items():
            ratio = speedup(plain, seconds[label], seed=self.seed)
            if trial.spec is self._ungated:
                ratio = Interval(value=1.0, low=None, high=None)
            found.append(
                Row(
                    id=label, kind=trial.spec.kind, label=label,
                    num_inference_steps=trial.spec.num_inference_steps,
                    parameters=dict(trial.spec.parameters), evaluations=trial.evaluations,
                    latencies_s=seconds[label], latency=quantiles(seconds[label]), speedup=ratio,
                    quality=trial.quality,
                )
            )  # fmt: skip
        # By work, not by time: gates follow one another, the plain steps are last.
        return sorted(found, key=lambda r: (r.kind == "fewer_steps", -r.evaluations.get("full", 0)))

    def _result(self, suggested: RowSpec | None, complete: bool) -> ProbeResult:
        manifest = self.pipeline.manifest
        curves = self._recorder.curves()
        means = np.mean([curve.change for curve in curves], axis=0) if curves else []
        rows = self._rows()
        found = answer(manifest.name, rows, complete=complete)
        if found.use:
            use = self._command(self._trials[found.use].spec)
            found = found.model_copy(update={"command": use})
        return ProbeResult(
            created=now(),
            complete=complete,
            answer=found,
            suggested=dict(suggested.parameters) if suggested else None,
            gate_command=self._command(suggested) if suggested else None,
            bundle=manifest.name,
            settings=ProbeSettings(
                num_inference_steps=self.steps,
                scheduler=self.scheduler,
                guidance_scale=manifest.defaults.guidance_scale,
                seed=self.seed,
                prompts=list(self.prompts),
                batch=self._batch,
                backend=self.pipeline.backend.name,
            ),
            machine=machine(),
            bound=self.bound,
            curves=curves,
            mean_change=[float(value) for value in means],
            rows=rows,
        )

    def _command(self, row: RowSpec) -> str | None:
        if self.command is None:
            return None
        return self.command(self.pipeline, self.prompts[0], self.scheduler, row)


def chart_gates(steps: int) -> list[int]:
    """Gates that are judged before the search, for the charts: 2, 5, 10, 15 and 20 of 25."""
    gates = {max(1, round(part * steps)) for part in _CHART_GATES}
    return sorted(gate for gate in gates if gate < steps)
