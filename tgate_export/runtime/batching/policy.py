"""Who goes next: pure functions of what is in flight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from tgate_export.runtime.image_state import Stage

# When an image is due: after this share of the time that all its evaluations take in the largest
# batches. 1 would be just possible. Less hurries long runs, which decide the slowest answers; more
# hurries short ones. `scripts/load_test.py` measures what it does to both.
TIGHTNESS = 0.25


class Candidate(Protocol):
    """What the choice depends on."""

    @property
    def stage(self) -> Stage:
        """What it needs next."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @property
    def left(self) -> Counter[str]:
        """Evaluations to come, by phase."""


C = TypeVar("C", bound=Candidate)


def choose(
    flight: Sequence[C], largest: Callable[[Stage], int], start_by: Callable[[C], float]
) -> tuple[Stage, list[C]]:
    """Choose the next call: a stage, and the images of that stage and one size that share it.

    Prompts are encoded first, so that new images can join those that are being denoised; then what
    is done is decoded, so that it leaves. Otherwise the image that can wait least chooses the
    phase, and all others in that phase go along, those that can wait least before the others:
    scheduling by least laxity. Who waits keeps its place in the order and those who are served
    fall back, so nothing starves.

    Args:
        flight: what is in flight, at least one.
        largest: the largest batch of a stage.
        start_by: when an image has to go on to be done in time; see `due`.
    """
    ordered = sorted(flight, key=start_by)
    head = next(
        (image for stage in ("encode", "decode") for image in ordered if image.stage == stage),
        ordered[0],
    )
    members = [image for image in ordered if (image.stage, image.size) == (head.stage, head.size)]
    return head.stage, members[: largest(head.stage)]


def choose_fullest(flight: Sequence[C], largest: Callable[[Stage], int]) -> tuple[Stage, list[C]]:
    """Choose the call that has the most images, for callers who wait for all of them alone.

    Of calls with equally many it is the one whose first image has the fewest evaluations left, and
    those of its stage that have the fewest go along. So images that began together stay together
    to the end, and those of a rare stage wait until they are a batch, or until nothing else is in
    flight. With `n` stages and a largest batch of `b` there is a whole batch as long as
    `n * (b - 1) + 1` images of one size are in flight.

    Args:
        flight: what is in flight, at least one.
        largest: the largest batch of a stage.
    """
    groups: dict[tuple[Stage, tuple[int, int]], list[C]] = {}
    for image in sorted(flight, key=lambda image: image.left.total()):
        groups.setdefault((image.stage, image.size), []).append(image)
    # `max` takes the first of equals, and groups are in the order of their first images.
    stage, _ = found = max(groups, key=lambda key: min(len(groups[key]), largest(key[0])))
    return stage, groups[found][: largest(stage)]


def due(arrived: float, needed: float, deadline: float | None) -> float:
    """Return the moment by which an image should be done.

    Args:
        arrived: when it was submitted, in seconds.
        needed: how long its evaluations take in the largest batches, in seconds.
        deadline: when it has to be done, if its caller said so.
    """
    fair = arrived + TIGHTNESS * needed
    return fair if deadline is None else min(fair, deadline)


class CallCosts:
    """What calls have taken so far, by stage and batch: running means."""

    MEMORY = 0.9  # weight of the past

    def __init__(self) -> None:
        self._seconds: dict[tuple[Stage, int], float] = {}

    def record(self, stage: Stage, batch: int, seconds: float) -> None:
        """Take a call into account."""
        past = self._seconds.get((stage, batch), seconds)
        self._seconds[stage, batch] = self.MEMORY * past + (1 - self.MEMORY) * seconds

    def expected(self, stage: Stage, batch: int) -> float:
        """Return the seconds that a call should take; 0 for a stage that never ran.

        A batch that never ran is taken to be proportional to the nearest one that did.
        """
        known = [size for found, size in self._seconds if found == stage]
        if not known:
            return 0.0
        nearest = min(known, key=lambda size: abs(size - batch))
        return self._seconds[stage, nearest] * batch / nearest

    def largest(self, stage: Stage, most: int, target: float | None) -> int:
        """Return the largest batch, up to `most`, that should not take longer than `target`."""
        if target is None:
            return most
        return next((b for b in range(most, 1, -1) if self.expected(stage, b) <= target), 1)
