"""Progress of a TensorRT build, and a clean end when it is interrupted."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tgate_export.common.progress import Progress

_TICKS = 1000


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class PhaseTree:
    """TensorRT's nested build phases as one fraction that never falls."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._shown = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase of so many steps, within a step of `parent`."""
        self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, done: int) -> None:
        """Count a phase's finished steps."""
        if name in self._phases:
            self._phases[name].done = done

    def finish(self, name: str) -> None:
        """End a phase."""
        self._phases.pop(name, None)

    def fraction(self) -> float:
        """Return how much is done, 0 to 1."""
        roots = [name for name, phase in self._phases.items() if phase.parent is None]
        now = max((self._fraction(name) for name in roots), default=self._shown)
        self._shown = max(self._shown, min(now, 1.0))
        return self._shown

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        inner = max(
            (self._fraction(n) for n, child in self._phases.items() if child.parent == name),
            default=0.0,
        )
        return (min(phase.done, phase.steps - 1) + inner) / phase.steps


def build_monitor(trt: Any, progress: Progress, stopped: Callable[[], bool]) -> Any:
    """Return an `IProgressMonitor` that reports to `progress`, and ends the build when `stopped`.

    Its methods are called from C++ that must not see an exception.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._tree = PhaseTree()
            self._lock = threading.Lock()  # phases may run in threads

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._tree.start(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock:
                self._tree.step(name, step + 1)
                progress.advance(int(self._tree.fraction() * _TICKS), _TICKS)
            return not stopped()

        def phase_finish(self, name: str) -> None:
            with self._lock:
                self._tree.finish(name)

    return Monitor()


@contextlib.contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C and SIGTERM within the block; gives what tells whether one has come.

    At the end of the block the signal takes its usual effect. One that is ignored, as Ctrl-C is in
    a background job, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []
    usual = {
        number: signal.signal(number, lambda number, _frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
