"""How many processors this process may use: fewer than there are, in most containers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def quota() -> int | None:
    """Return the processors of a CPU quota, rounded down to whole ones; None without one.

    Threads beyond it only make the kernel stop all of them for the rest of every period. A quota
    is that of control groups: version 2's `cpu.max`, version 1's `cpu.cfs_quota_us`, of this
    process's group or of one above it. Nothing is rounded below 1.
    """
    limits = [limit for limit in _limits() if limit < processors()]
    return max(1, int(min(limits))) if limits else None


def processors() -> int:
    """Return the processors that threads of this process are allowed to run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _limits() -> Iterator[float]:
    """Yield the processors of every quota that holds here."""
    for line in _read(_GROUPS).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            for folder in _folders(_MOUNT, group):
                yield from _limit(*_read(folder / "cpu.max").split())
        elif "cpu" in controllers.split(","):
            for name in ("cpu", controllers):
                for folder in _folders(_MOUNT / name, group):
                    files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                    yield from _limit(*(_read(folder / file).strip() for file in files))


def _folders(mount: Path, group: str) -> Iterator[Path]:
    """Yield the folder of a group and of all above; in a container only the topmost is there."""
    path = PurePosixPath("/", group)
    for part in (path, *path.parents):
        yield mount / part.relative_to("/")


def _limit(quota: str = "max", period: str = "", *_: str) -> Iterator[float]:
    if quota.isdecimal() and period.isdecimal() and int(period) and int(quota):
        yield int(quota) / int(period)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
