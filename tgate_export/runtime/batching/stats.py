"""What a batcher has done, in numbers that only grow."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tgate_export.runtime.image_state import Stage

Outcome = Literal["done", "cancelled", "late", "failed", "refused"]


@dataclass(frozen=True)
class StageStats:
    """Calls of one stage.

    Attributes:
        batches: number of calls by the images in them.
        engine_seconds: in engines.
        seconds: in all, with the copies of rows around the engines.
    """

    batches: Mapping[int, int]
    engine_seconds: float
    seconds: float

    @property
    def calls(self) -> int:
        """Number of calls."""
        return sum(self.batches.values())

    @property
    def images(self) -> int:
        """Images in all calls together."""
        return sum(batch * calls for batch, calls in self.batches.items())


@dataclass(frozen=True)
class BatcherStats:
    """A moment's view.

    Attributes:
        waiting: images accepted and not yet begun.
        in_flight: images begun and not yet done.
        outcomes: requests that ended, by how.
        stages: calls so far.
    """

    waiting: int
    in_flight: int
    outcomes: Mapping[Outcome, int]
    stages: Mapping[Stage, StageStats]

    @property
    def gated_fraction(self) -> float:
        """Part of all denoiser evaluations that ran behind the gate; 0 before the first."""
        images = {stage: stats.images for stage, stats in self.stages.items()}
        gated = images.get("gated", 0) + images.get("gated_reuse", 0)
        full = images.get("full", 0) + images.get("full_reuse", 0)
        return gated / (gated + full) if gated + full else 0.0

    @property
    def seconds_to_wait(self) -> int:
        """When about half of what is pending should be done, by what was so far; 1 to 600."""
        done = self.stages["decode"].images if "decode" in self.stages else 0
        each = sum(stage.seconds for stage in self.stages.values()) / done if done else 1.0
        return min(600, max(1, math.ceil(each * (self.waiting + self.in_flight) / 2)))


@dataclass
class _Tally:
    batches: Counter[int] = field(default_factory=Counter)
    engine_seconds: float = 0.0
    seconds: float = 0.0


class Recorder:
    """Collects them; any thread may."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: Counter[Outcome] = Counter()
        self._stages: dict[Stage, _Tally] = {}

    def count(self, outcome: Outcome) -> None:
        """Note how a request ended."""
        with self._lock:
            self._outcomes[outcome] += 1

    def call(self, stage: Stage, batch: int, engine_seconds: float, seconds: float) -> None:
        """Note an engine call."""
        with self._lock:
            tally = self._stages.setdefault(stage, _Tally())
            tally.batches[batch] += 1
            tally.engine_seconds += engine_seconds
            tally.seconds += seconds

    def stats(self, waiting: int, in_flight: int) -> BatcherStats:
        """Return a copy of everything."""
        with self._lock:
            stages = {
                stage: StageStats(dict(tally.batches), tally.engine_seconds, tally.seconds)
                for stage, tally in self._stages.items()
            }
            return BatcherStats(waiting, in_flight, dict(self._outcomes), stages)
