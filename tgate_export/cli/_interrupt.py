"""Lets a second Ctrl-C end the program when a library does not come back to notice the first."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

PATIENCE_SECONDS = 2.0  # for what cleans up after the first


@contextmanager
def second_one_ends() -> Iterator[None]:
    """End the process with 130 after a second SIGINT or SIGTERM, if the block does not end by then.

    Python's own handlers wait until the main thread comes back from whatever library it is in,
    which may be never: a bundle's graphs can loop. Only for the main thread.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    previous = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), name="tgate-interrupt", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(write)  # which ends the thread


def _watch(read: int) -> None:
    stops = 0
    while stops < 2:
        numbers = os.read(read, 64)
        if not numbers:
            os.close(read)
            return
        stops += sum(number in (signal.SIGINT, signal.SIGTERM) for number in numbers)
    until = monotonic() + PATIENCE_SECONDS
    while (left := until - monotonic()) > 0:
        if select.select([read], [], [], left)[0] and not os.read(read, 64):
            os.close(read)  # the block has ended
            return
    os.write(2, b"\x1b[?25h\n" if os.isatty(2) else b"")  # a progress bar hides the cursor
    os.write(2, b"error: interrupted\n")
    os._exit(130)
