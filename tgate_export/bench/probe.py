"""`probe` without its command line: where cross-attention converges, and the gate it allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tgate_export.bench.adherence import adherence
from tgate_export.bench.convergence import ConvergenceRecorder
from tgate_export.bench.machine import machine, now
from tgate_export.bench.result import Adherence, Bound, GateQuality, ProbeResult, ProbeSettings
from tgate_export.bench.rows import VERSION_1
from tgate_export.bench.similarity import as_bytes, similarity
from tgate_export.data.shapes_world import all_captions
from tgate_export.runtime.pipeline import StepCallback, TGatePipeline

MAX_LOST = 0.03
"""Share of pictures whose adherence a gate may cost, `shapes` only."""
MIN_SSIM = 0.84
"""Least mean SSIM to the ungated pictures, everywhere else.

Calibrated on `shapes` (25 DDIM steps, 128 captions), where the truth is known: the earliest gate
that meets the bound on adherence has 0.841, the last that breaks it 0.832.
"""
SHOWN = 8
"""Prompts that the charts show of every gate."""
_CHART_GATES = (0.04, 0.08, 0.12, 0.2, 0.28, 0.4, 0.52, 0.68, 0.84)

Advance = Callable[[str, int, int], None]


@dataclass
class Probe:
    """One probe; `run` can be interrupted, and keeps what it has.

    Attributes:
        pipeline: what generates.
        prompts: all of them decide; the first few are shown.
        steps: denoising steps.
        scheduler: a sampler of the bundle.
        seed: of the first picture.
        min_ssim: bound to use; by default adherence where it can be judged, else `MIN_SSIM`.
        command: what generates with a gate step, for the result; for instance a shell command.
        pictures: by gate step, 8 bits; the ungated under `steps`.
    """

    pipeline: TGatePipeline
    prompts: Sequence[str]
    steps: int
    scheduler: str
    seed: int
    advance: Advance
    min_ssim: float | None = None
    command: Callable[[int], str] | None = None
    pictures: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bound = choose_bound(self.prompts, self.min_ssim)
        self._recorder = ConvergenceRecorder(self.pipeline.manifest.caches)
        self._gates: dict[int, GateQuality] = {}
        self._done = 0

    def run(self) -> ProbeResult:
        """Generate ungated and gated, and find the earliest gate that meets the bound.

        Raises:
            KeyboardInterrupt: interrupted before all ungated pictures were made.
            TGateError: what the pipeline raises.
        """
        self.pictures[self.steps] = self._generate(
            "ungated", self.steps, self.prompts, self._recorder.record
        )
        suggested, complete = None, False
        try:
            found = self._bisect()
            for gate in chart_gates(self.steps):
                self._look(gate)
            suggested = found if found < self.steps else None
            complete = True
        except KeyboardInterrupt:
            pass
        return self._result(suggested, complete)

    def _bisect(self) -> int:
        """Return the earliest gate that meets the bound, `steps` when none does.

        A later gate computes more, so it is taken to be no worse; every gate that was judged
        after the one returned does meet the bound.
        """
        low, high = 0, self.steps
        while high - low > 1:
            middle = (low + high) // 2
            if self._judge(middle):
                high = middle
            else:
                low = middle
        return high

    def _judge(self, gate: int) -> bool:
        """Generate every prompt at a gate, and tell whether it meets the bound."""
        images = self._generate(f"gate {gate}", gate, self.prompts)
        self.pictures[gate] = images
        quality = judge(gate, self.pictures[self.steps], images, self.prompts, self.bound)
        self._gates[gate] = quality
        return bool(quality.meets_bound)

    def _look(self, gate: int) -> None:
        """Generate a few prompts at a gate for the charts, unless there are pictures of it."""
        if gate in self.pictures:
            return
        images = self._generate(f"gate {gate}", gate, self.prompts[:SHOWN])
        self.pictures[gate] = images
        similar = similarity(self.pictures[self.steps][: len(images)], images)
        self._gates[gate] = GateQuality(
            gate_step=gate, similarity=similar, shown=similar,
            adherence=None, lost=None, lost_bound=None, meets_bound=None,
        )  # fmt: skip

    def _generate(
        self, label: str, gate: int, prompts: Sequence[str], callback: StepCallback | None = None
    ) -> list[np.ndarray]:
        pictures: list[np.ndarray] = []
        chunk = self.pipeline.manifest.batch.max
        for first in range(0, len(prompts), chunk):
            self.advance(label, self._done, self._total())
            output = self.pipeline(
                list(prompts[first : first + chunk]), num_inference_steps=self.steps,
                gate_step=gate, parameters=VERSION_1, scheduler=self.scheduler,
                seed=self.seed + first, output_type="np", callback_on_step_end=callback,
            )  # fmt: skip
            pictures.extend(as_bytes(np.asarray(output.images)))
            self._done += len(pictures[first:])
        return pictures

    def _total(self) -> int:
        judged = 1 + (self.steps - 1).bit_length()
        shown = len(chart_gates(self.steps)) * min(SHOWN, len(self.prompts))
        return max(judged * len(self.prompts) + shown, self._done)

    def _result(self, suggested: int | None, complete: bool) -> ProbeResult:
        manifest = self.pipeline.manifest
        curves = self._recorder.curves()
        means = np.mean([curve.change for curve in curves], axis=0) if curves else []
        share = None
        if self.bound.metric == "adherence":
            ungated = adherence(self.pictures[self.steps], self.prompts)
            share = Adherence(share=ungated, prompts=len(self.prompts))
        return ProbeResult(
            created=now(),
            complete=complete,
            bundle=manifest.name,
            settings=ProbeSettings(
                num_inference_steps=self.steps,
                scheduler=self.scheduler,
                guidance_scale=manifest.defaults.guidance_scale,
                seed=self.seed,
                prompts=list(self.prompts),
                backend=self.pipeline.backend.name,
            ),
            machine=machine(),
            bound=self.bound,
            curves=curves,
            mean_change=[float(value) for value in means],
            ungated_adherence=share,
            gates=[self._gates[gate] for gate in sorted(self._gates)],
            suggested_gate_step=suggested,
            command=self.command(suggested) if suggested and self.command else None,
        )


def choose_bound(prompts: Sequence[str], min_ssim: float | None) -> Bound:
    """Return adherence where every prompt is a caption of the `shapes` world, SSIM otherwise."""
    if min_ssim is None and set(prompts) <= set(all_captions()):
        text = (
            f"95 % sure that at most {MAX_LOST:.0%} of the pictures that show what the prompt says "
            "no longer do"
        )
        return Bound(metric="adherence", value=MAX_LOST, text=text)
    value = MIN_SSIM if min_ssim is None else min_ssim
    text = f"mean SSIM to the ungated pictures of at least {value:g}"
    return Bound(metric="ssim", value=value, text=text)


def chart_gates(steps: int) -> list[int]:
    """Gates for the charts: denser where pictures change more. 1, 2, 3, 5, 7, 10 ... of 25."""
    gates = {max(1, round(part * steps)) for part in _CHART_GATES}
    return sorted(gate for gate in gates if gate < steps)


def judge(
    gate: int,
    ungated: Sequence[np.ndarray],
    gated: Sequence[np.ndarray],
    prompts: Sequence[str],
    bound: Bound,
) -> GateQuality:
    """Compare gated with ungated pictures of the same prompts and seeds."""
    similar = similarity(ungated, gated)
    shown = similarity(ungated[:SHOWN], gated[:SHOWN])
    if bound.metric == "ssim":
        return GateQuality(
            gate_step=gate, similarity=similar, shown=shown, adherence=None, lost=None,
            lost_bound=None, meets_bound=similar.ssim >= bound.value,
        )  # fmt: skip
    before, after = (_adhering(side, prompts) for side in (ungated, gated))
    lost = int((before & ~after).sum())
    limit = upper_bound(lost, len(prompts))
    return GateQuality(
        gate_step=gate,
        similarity=similar,
        shown=shown,
        adherence=Adherence(share=float(after.mean()), prompts=len(prompts)),
        lost=lost,
        lost_bound=limit,
        meets_bound=limit <= bound.value,
    )


def _adhering(pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> np.ndarray:
    pairs = zip(pictures, prompts, strict=True)
    return np.array([adherence([picture], [prompt]) == 1 for picture, prompt in pairs])


def upper_bound(lost: int, count: int) -> float:
    """One-sided 95 % upper confidence bound of a share (Clopper-Pearson)."""
    from scipy.stats import binomtest

    test = binomtest(lost, count, alternative="less")
    return float(test.proportion_ci(confidence_level=0.95, method="exact").high)
