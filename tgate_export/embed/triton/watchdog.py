"""Ends a server whose model process has died, and a model process whose server has.

Triton 2.51 does not start the process of a decoupled Python model again: requests that were in it
are never answered, new ones fail, and the server still calls itself ready. Ending the server lets
whatever runs it, such as Kubernetes, start it anew, and clients learn at once.

Where a server is killed, its models' processes notice and end, but for one that waits for an answer
of the server at that moment: it would wait for ever, with Python's lock held. The kernel could send
it a signal (PR_SET_PDEATHSIG), but does so when the thread that started it ends. In Triton 2.51
that one stays; a version in which it does not would lose every model as soon as it is loaded.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# $1 is the server, $2 the seconds of grace, $3 the model. Who has lost its parent gets another one.
# Reads a line that is only written on purpose; the end of the pipe without one is a death.
# SIGKILL does not reach process 1 from within its container. The kernel's own does, which ends who
# has used the processor for longer than a limit; signals that it handles use it up.
_SCRIPT = """
exec 2>/dev/null
while sleep 1; do
    parent=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$3/status") || exit
    [ "$parent" = "$1" ] || { kill -KILL "$3" "$$"; exit; }
done &
released=0
read -r reason && released=1
kill "$!"
[ "$released" = 0 ] || exit 0
kill -TERM "$1"; sleep "$2"; kill -KILL "$1"
[ "$1" = 1 ] || exit
prlimit --pid 1 --cpu=1:1 || exit
while :; do kill -TERM 1; done
"""


class Watchdog:
    """A small process beside the model's, which outlives it."""

    def __init__(self, server: int, grace_seconds: float = 3.0) -> None:
        """Watch over the calling process, and over its parent.

        Args:
            server: process id of the parent, to end when this process dies without `release`: with
                SIGTERM, so that other models finish, and with SIGKILL
            grace_seconds: later, because the requests that died keep the server waiting. When the
                parent is gone, this process is killed within about a second.
        """
        ids = str(server), str(grace_seconds), str(os.getpid())
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "tgate-watchdog", *ids],
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
