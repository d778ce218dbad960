"""A server whose model has died is ended, also as process 1 of a container; and the other way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tgate_export.embed.triton.watchdog import Watchdog

# It drains for ever, because requests that died keep it waiting. Its child is the model.
SERVER = textwrap.dedent("""
    import os, signal, sys, time
    from tgate_export.embed.triton.watchdog import Watchdog

    told = []

    def drain(*_):
        if not told:
            print("told to stop", flush=True)
        told.append(1)

    signal.signal(signal.SIGTERM, drain)
    while os.getpid() == 1 and time.process_time() < 0.8:
        pass  # as loading does: most of the second after which it is ended
    print("process", os.getpid(), flush=True)
    if os.fork() == 0:
        watchdog = Watchdog(os.getppid(), grace_seconds=0.2)
        if sys.argv[1] == "released":
            watchdog.release()
        os._exit(137)
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        time.sleep(0.05)
    print("alive", flush=True)
""")
APART = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]


def serve(*command: str) -> tuple[int, list[str], float]:
    """Run a server until it ends; return its status, what it printed, and its seconds."""
    started = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines(), time.monotonic() - started


def test_a_server_is_ended() -> None:
    status, lines, _ = serve(sys.executable, "-c", SERVER, "killed", "30")
    assert status == -signal.SIGKILL
    assert lines[1:] == ["told to stop"]


def test_a_server_is_left_alone() -> None:
    status, lines, _ = serve(sys.executable, "-c", SERVER, "released", "1")
    assert (status, lines[1:]) == (0, ["alive"])


def test_process_1_is_ended() -> None:
    if shutil.which("unshare") is None or subprocess.run([*APART, "true"], check=False).returncode:
        pytest.skip("no namespace of processes can be made here")
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit is not installed")
    status, lines, _ = serve(*APART, sys.executable, "-c", SERVER, "killed", "90")
    assert lines == ["process 1", "told to stop"]
    assert status != 0


# A server whose model hangs: it would go on for ever, whatever becomes of the server.
HANGS = textwrap.dedent("""
    import os, signal, time
    from tgate_export.embed.triton.watchdog import Watchdog

    model = os.fork()
    if model == 0:
        watchdog = Watchdog(os.getppid(), grace_seconds=0.2)
        print(os.getpid(), flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)
""")


def test_a_model_whose_server_was_killed_is_ended() -> None:
    """Even one that takes no notice, and while nobody has waited for the server yet."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert process.stdout is not None
    model = int(process.stdout.readline())
    wait_for(lambda: state(model) == "T")
    time.sleep(1.5)  # longer than the watch takes to look
    assert state(model) == "T"
    process.kill()
    wait_for(lambda: state(model) in "ZX")
    process.wait()
    process.stdout.close()


def state(process: int) -> str:
    """Return the letter of a process's state; X when it is gone."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return "X"
    return stat.rpartition(")")[2].split()[0]


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.05)


def test_release_ends_the_watch() -> None:
    watchdog = Watchdog(os.getpid())
    watchdog.release()
    assert watchdog._process.returncode == 0
