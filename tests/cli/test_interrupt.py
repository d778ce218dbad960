"""Ctrl-C ends a command, also one that is in a library which does not come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# A library that computes for hours; Python's handlers run when it returns.
STUCK = """
    import hashlib
    import tgate_export.cli as cli

    def stuck(*_, **__):
        print("stuck", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**31 - 1)

    cli.cli.main = stuck
    cli.main([])
"""
# One that ends when it is told to, and takes its time.
TIDY = """
    import time
    import tgate_export.cli as cli

    def tidy(*_, **__):
        print("tidy", flush=True)
        try:
            time.sleep(60)
        finally:
            time.sleep(0.5)
            print("tidied", flush=True)

    cli.cli.main = tidy
    cli.main([])
"""


def as_in_a_terminal() -> None:
    """Undo what a shell does to a run in its background, which ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(code: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=as_in_a_terminal,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_one_ends_a_library(number: signal.Signals) -> None:
    with running(STUCK) as process:
        process.send_signal(number)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(number)
        out, error = process.communicate(timeout=20)
    assert (process.returncode, out, error) == (130, "", "error: interrupted\n")


def test_what_cleans_up_may() -> None:
    with running(TIDY) as process:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert process.returncode not in (0, None)
    assert out == "tidied\n"


def test_nothing_is_left_behind() -> None:
    import tgate_export.cli as cli

    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(SystemExit):
            cli.main(["--version"])
    until = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) > files:
        assert time.monotonic() < until, "a pipe is left open"
        time.sleep(0.01)
    assert signal.set_wakeup_fd(-1) == -1
