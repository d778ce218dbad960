"""How fast a run is, and how long what is left should take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_MEMORY_SECONDS = 60.0
_SAMPLE_SECONDS = 1.0


class Pace:
    """Images a second, of the last minute: images come a batch at a time, and others may differ."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing.

        Args:
            clock: seconds.
        """
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()
        self._last = (0.0, 0)

    def note(self, done: int) -> None:
        """Take into account how many images are done."""
        now = self._clock()
        self._last = now, done
        if not done:  # what came before the first is not how fast they are made
            self._samples.clear()
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append(self._last)
        while len(self._samples) > 2 and now - self._samples[1][0] >= _MEMORY_SECONDS:
            self._samples.popleft()

    @property
    def rate(self) -> float | None:
        """Images a second; None as long as nobody knows."""
        if not self._samples:
            return None
        (began, before), (now, done) = self._samples[0], self._last
        return (done - before) / (now - began) if done > before and now > began else None

    def left(self, images: int) -> float | None:
        """Return the seconds that so many images should take; None as long as nobody knows."""
        return images / self.rate if self.rate else None


def spoken(seconds: float) -> str:
    """Write a time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
