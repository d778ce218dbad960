"""Ends a server whose model process has died.

Triton 2.51 does not start the process of a decoupled Python model again: requests that were in it
are never answered, new ones fail, and the server still calls itself ready. Ending the server lets
whatever runs it, such as Kubernetes, start it anew, and clients learn at once.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# Reads a line that is only written on purpose; the end of the pipe without one is a death.
# SIGKILL does not reach process 1 from within its container. The kernel's own does, which ends who
# has used the processor for longer than a limit; signals that it handles use it up.
_SCRIPT = """
read -r reason && exit
exec 2>/dev/null
kill -TERM "$1"; sleep "$2"; kill -KILL "$1"
[ "$1" = 1 ] || exit
prlimit --pid 1 --cpu=1:1 || exit
while :; do kill -TERM 1; done
"""


class Watchdog:
    """A small process beside the model's, which outlives it."""

    def __init__(self, server: int, grace_seconds: float = 3.0) -> None:
        """Watch over the calling process.

        Args:
            server: process id to end when this process dies without `release`: with SIGTERM, so
                that other models finish, and with SIGKILL
            grace_seconds: later, because the requests that died keep the server waiting.
        """
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "tgate-watchdog", str(server), str(grace_seconds)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def release(self) -> None:
        """End the watch: what follows is no accident."""
        self._process.communicate(b"released\n")


def server_above() -> int | None:
    """Return the process id of the server that started this process, if that is what it was."""
    parent = os.getppid()
    try:
        name = Path(f"/proc/{parent}/comm").read_text().strip()
    except OSError:
        return None
    return parent if name.startswith("tritonserver") else None
