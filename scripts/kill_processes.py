"""The processes that a killed command has started: who they are, and when they are gone."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Sequence

import psutil

ACTOR = "MapBatches"  # in the title of a process of Ray Data
END_SECONDS = 180.0  # that processes have once the command is killed; Ray's agents take 60


def kill_actor(pid: int) -> None:
    """Kill one of the actors of a run."""
    actors = [each for each in below(pid) if ACTOR in title(each)]
    if not actors:
        raise SystemExit(f"no process below {pid} is an actor")
    victim = random.choice(actors)
    print(f"  killed actor {victim.pid} of {len(actors)}", flush=True)
    victim.kill()


def below(pid: int) -> list[psutil.Process]:
    """Return the processes that a process has started, and those that they have."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def title(process: psutil.Process) -> str:
    """Return a process's command line, or what it says instead."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def gone_after(processes: Sequence[psutil.Process]) -> tuple[float, tuple[str, ...]]:
    """Wait until processes end; return the seconds that took, and what still runs then."""
    began, running = time.monotonic(), list(processes)
    while running and time.monotonic() - began < END_SECONDS:
        time.sleep(0.1)
        running = [each for each in running if runs(each)]
    seconds = round(time.monotonic() - began, 1)
    return seconds, tuple(f"process {each.pid} still runs: {title(each):.60}" for each in running)


def runs(process: psutil.Process) -> bool:
    """Return whether a process runs; one that nobody has asked for its exit status does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
