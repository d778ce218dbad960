"""Builds that are killed, and disks that are full or cannot be synced, leave nothing behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.store import build
from tgate_export.bundle import store


# Glob characters in a name must not hide its leftovers.
@pytest.mark.parametrize("name", ["tiny", "tiny[v1]", "tiny*"])
def test_leftovers_of_a_killed_build_are_removed(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    script = (
        "import os, sys, pathlib\n"
        "from tgate_export.bundle.store import replace_bundle\n"
        "with replace_bundle(pathlib.Path(sys.argv[1])) as staging:\n"
        "    (staging / 'half').write_text('x')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert f".{name}.building-lock.build" in os.listdir(tmp_path)
    assert len(os.listdir(tmp_path)) == 2
    assert not out.exists()
    (tmp_path / f".{name}.building-abc.old").mkdir()  # killed between the two renames
    (other := tmp_path / ".tinyother.building-abc").mkdir()
    build(out)
    assert sorted(os.listdir(tmp_path)) == sorted([other.name, name])


def test_full_disk_while_syncing_leaves_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        build(out)
    assert os.listdir(out.parent) == []


def test_folders_that_cannot_be_synced(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of network drives and shared folders of virtual machines."""
    real, files = os.fsync, []

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        files.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(store.os, "fsync", fsync)
    build(out)
    assert files
    assert out.is_dir()


# A user namespace may mount a file system of its own: a disk that is really full.
FULL_DISK = """
mount -t tmpfs -o size=1m tmpfs "$1" || exit 77
python -c "
import pathlib, sys
from tgate_export.bundle.store import replace_bundle
try:
    with replace_bundle(pathlib.Path(sys.argv[1]) / 'tiny') as staging:
        (staging / 'weights').write_bytes(bytes(2 << 20))
except OSError as error:
    print(error.errno)
" "$1"
ls -A "$1"
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_disk_that_is_really_full_is_left_empty(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh", str(tmp_path)],
        check=False, capture_output=True, text=True, env={**os.environ, "PATH": path},
    )  # fmt: skip
    if run.returncode == 77 or "unshare:" in run.stderr:
        pytest.skip("this machine mounts no file systems for users")
    assert run.stdout.split() == [str(errno.ENOSPC)], run.stderr
