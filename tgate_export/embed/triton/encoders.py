"""Threads that make pictures into files, one at a time of every request."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

THREADS = 2


class Encoders:
    """Work that is done a piece at a time: who has many pictures keeps nobody with few waiting."""

    def __init__(self) -> None:
        self._works: queue.Queue[Callable[[], bool] | None] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._run, name="tgate-encoder", daemon=True)
            for _ in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, work: Callable[[], bool]) -> None:
        """Call `work`, which raises nothing, until it returns False."""
        self._works.put(work)

    def close(self) -> None:
        """Wait until all is done."""
        self._works.join()
        for _ in self._threads:
            self._works.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (work := self._works.get()) is not None:
            if work():
                self._works.put(work)  # behind what others wait for
            self._works.task_done()
