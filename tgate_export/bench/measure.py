"""Run every row of every target, interleaved in random order, and keep what each run took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from tgate_export.bench.bound import choose_bound
from tgate_export.bench.result import Bound
from tgate_export.bench.rows import RowSpec, fewer_steps, gated, requested_rows
from tgate_export.bench.similarity import as_bytes
from tgate_export.bench.step_times import equal_time_steps, evaluations_of
from tgate_export.runtime.backends.base import MemoryReport
from tgate_export.runtime.pipeline import TGatePipeline
from tgate_export.runtime.timings import Timings

Advance = Callable[[str, int, int], None]
"""Called before each call with what runs, calls done, and calls in all (as far as known)."""


ATTRIBUTED_STEPS = 4
"""Of the short runs that guidance and cache are told apart by; half of them `full`."""


@dataclass(frozen=True)
class Reading:
    """One call: where its time went, and its pictures [B, H, W, 3], 8 bits."""

    timings: Timings
    images: np.ndarray


@dataclass
class Variant:
    """One row of one target, and what was read so far.

    Attributes:
        target: the target's name.
        spec: how to generate.
        readings: by round; an interrupted round may lack one.
        judged: pictures of the setup's `judging` prompts, in order.
    """

    target: str
    spec: RowSpec
    readings: dict[int, Reading] = field(default_factory=dict)
    judged: list[np.ndarray] = field(default_factory=list)


@dataclass
class Setup:
    """One bundle on one backend, loaded.

    Attributes:
        name: unique in this comparison.
        pipeline: what generates.
        prompts: used in turn.
        judging: prompts whose pictures are judged; by default, the rounds' are.
        load_s: seconds that its first calls took beside generating: engines load when needed.
        memory: what the backend reports once every row has been run.
        single: seconds of a step of one batch by phase, of every round.
        twice: seconds of a step of two batches by phase, of every round.
    """

    name: str
    pipeline: TGatePipeline
    prompts: Sequence[str]
    judging: Sequence[str] = ()
    load_s: float = 0.0
    memory: MemoryReport | None = None
    single: list[dict[str, float]] = field(default_factory=list)
    twice: list[dict[str, float]] = field(default_factory=list)

    @property
    def bound(self) -> Bound:
        """What its pictures have to meet."""
        return choose_bound(self.judging)


@dataclass(frozen=True)
class Plan:
    """What to measure; see the options of `bench`."""

    steps: int
    gate_steps: Sequence[int]
    scheduler: str | None
    batch: int
    repeats: int
    warmup: int
    seed: int


def attributable(setup: Setup, batch: int) -> bool:
    """Tell whether there is guidance to drop, and two batches run in one as fast as they can."""
    manifest, backend = setup.pipeline.manifest, setup.pipeline.backend
    twice = 2 * batch
    fits = twice in manifest.batch and backend.batch_size(twice) == twice
    guided = manifest.guidance == "classifier-free"
    return fits and guided and not backend.slow_after_another_shape


class Measurement:
    """A comparison that can be interrupted: what was read stays."""

    def __init__(self, setups: Sequence[Setup], plan: Plan, advance: Advance) -> None:
        self.setups = {setup.name: setup for setup in setups}
        self.plan = plan
        self.variants: list[Variant] = []
        self.complete = False
        self._advance = advance
        self._done = 0
        self._rng = np.random.default_rng(plan.seed)
        self._attributed = [c for c in setups if attributable(c, plan.batch)]

    def run(self) -> None:
        """Warm up, measure, and generate what is judged. Ctrl-C ends it, `complete` unset.

        Raises:
            TGateError: what a pipeline raises.
        """
        try:
            self._warm_up()
            for number in range(self.plan.repeats):
                for variant in self._shuffled(self.variants):
                    self._advance(f"round {number + 1}", self._done, self._total())
                    variant.readings[number] = self._measure(variant, number)
                    self._done += 1
            self._attribute()
            self._judge()
            self.complete = True
        except KeyboardInterrupt:
            self.complete = False

    def _warm_up(self) -> None:
        """Load and warm every row; then add plain runs that take about as long as the gated."""
        self.variants = [
            Variant(name, row)
            for name, setup in self.setups.items()
            for row in requested_rows(
                self.plan.steps, self.plan.gate_steps, setup.pipeline.manifest
            )
        ]
        warm = self._warm(self.variants)
        for name in self.setups:
            plain, *runs = [warm[i] for i, s in enumerate(self.variants) if s.target == name]
            pool = [timings for run in runs for timings in run]
            whole = evaluations_of(plain[-1])
            counts = {
                equal_time_steps(self.plan.steps, pool, whole, evaluations_of(run[-1]))
                for run in runs
            }
            self.variants += [
                Variant(name, fewer_steps(count))
                for count in sorted(counts, reverse=True)
                if count < self.plan.steps
            ]
        self._warm([variant for variant in self.variants if variant.spec.kind == "fewer_steps"])
        for setup in self.setups.values():  # before larger batches take more
            setup.memory = setup.pipeline.backend.memory_report()

    def _warm(self, variants: list[Variant]) -> list[list[Timings]]:
        """Run without keeping pictures; the first of several calls, which is slow, is left out."""
        timings: dict[int, list[Timings]] = {id(variant): [] for variant in variants}
        for _ in range(self.plan.warmup):
            for variant in self._shuffled(variants):
                self._advance("warming up", self._done, self._total())
                started = perf_counter()
                reading = self._measure(variant, 0)
                beside = perf_counter() - started - reading.timings.total
                if not timings[id(variant)]:
                    self.setups[variant.target].load_s += beside
                timings[id(variant)].append(reading.timings)
                self._done += 1
        return [runs[1:] or runs for runs in timings.values()]

    def _attribute(self) -> None:
        """Time steps of one batch, then of two, not in turn: a change of shape costs time."""
        for setup in self._attributed:
            for batches, kept in ((1, setup.single), (2, setup.twice)):
                for number in range(-1, self.plan.repeats):  # the first to warm up
                    self._advance("guidance and cache", self._done, self._total())
                    steps = self._last_steps(setup, batches * self.plan.batch)
                    self._done += 1
                    if number >= 0:
                        kept.append(steps)

    def _last_steps(self, setup: Setup, images: int) -> dict[str, float]:
        """Seconds of the last `full` and the last `gated` step of a short run."""
        prompts = setup.prompts
        steps = min(ATTRIBUTED_STEPS, self.plan.steps)
        output = setup.pipeline(
            [prompts[i % len(prompts)] for i in range(images)], seed=self.plan.seed,
            scheduler=self.plan.scheduler, output_type="latent",
            **gated(steps, steps // 2).call(),
        )  # fmt: skip
        return {step.phase: step.denoiser for step in output.timings.steps}

    def _judge(self) -> None:
        for variant in self.variants:
            setup = self.setups[variant.target]
            chunk = setup.pipeline.manifest.batch.max
            for first in range(0, len(setup.judging), chunk):
                self._advance("adherence", self._done, self._total())
                prompts = setup.judging[first : first + chunk]
                images = self._call(variant, prompts, self.plan.seed + first).images
                variant.judged.extend(images)
                self._done += 1

    def _measure(self, variant: Variant, number: int) -> Reading:
        prompts = self.setups[variant.target].prompts
        batch = self.plan.batch
        chosen = [prompts[(number * batch + i) % len(prompts)] for i in range(batch)]
        return self._call(variant, chosen, self.plan.seed + number * self.plan.batch)

    def _call(self, variant: Variant, prompts: Sequence[str], seed: int) -> Reading:
        output = self.setups[variant.target].pipeline(
            list(prompts), seed=seed, scheduler=self.plan.scheduler, output_type="np",
            **variant.spec.call(),
        )  # fmt: skip
        return Reading(output.timings, as_bytes(np.asarray(output.images)))

    def _shuffled(self, variants: Sequence[Variant]) -> list[Variant]:
        return [variants[index] for index in self._rng.permutation(len(variants))]

    def _total(self) -> int:
        calls = len(self.variants) * (self.plan.repeats + self.plan.warmup)
        calls += len(self._attributed) * 2 * (self.plan.repeats + 1)
        for variant in self.variants:
            setup = self.setups[variant.target]
            calls += -(-len(setup.judging) // setup.pipeline.manifest.batch.max)
        return calls
