"""Builds of one bundle at once, and what others put in place of their locks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.store import build, content, write
from tgate_export.bundle import locks, store
from tgate_export.bundle.store import check_replaceable, remove_leftovers, replace_bundle
from tgate_export.common.errors import BundleError


def test_second_build_at_once_is_refused(out: Path) -> None:
    with replace_bundle(out) as staging:
        with pytest.raises(BundleError, match="another build"):
            build(out)
        assert staging.is_dir()
        write(staging, "first")
    assert content(out) == "first"
    build(out, "later")
    assert content(out) == "later"


def test_builds_that_start_at_once_never_harm_each_other(out: Path) -> None:
    done: list[str] = []
    failures: list[BaseException] = []

    def run(index: int) -> None:
        try:
            build(out, str(index))
            done.append(str(index))
        except BundleError as error:
            if "another build" not in str(error):
                failures.append(error)
        except BaseException as error:
            failures.append(error)

    for _ in range(10):
        threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert content(out) in done
        assert os.listdir(out.parent) == [out.name]


def test_what_is_there_is_not_looked_at_while_it_is_replaced(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its two renames there is none, and the old one is about to be removed."""
    build(out, "old")
    swap, swapping, done = store._swap, threading.Event(), threading.Event()

    def slow(staging: Path, target: Path, retired: Path) -> None:
        target.rename(retired)
        swapping.set()
        assert not done.wait(0.3)
        swap(staging, target, retired)

    monkeypatch.setattr(store, "_swap", slow)
    building = threading.Thread(target=build, args=(out,))
    building.start()
    assert swapping.wait(10)
    check_replaceable(out)
    assert content(out) == "new"
    done.set()
    building.join()


def test_the_old_bundle_of_a_running_build_is_no_leftover(out: Path) -> None:
    with replace_bundle(out) as staging:
        retired = staging.with_name(f"{staging.name}.old")
        retired.mkdir()
        remove_leftovers(out)
        assert retired.is_dir()
        write(staging, "new")
    assert os.listdir(out.parent) == [out.name]


HOLD = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Another process holds a folder, as any that can read it may."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield
        holder.communicate()


@pytest.mark.timeout(60)
def test_a_lock_on_the_folder_above_stops_nobody(out: Path) -> None:
    out.parent.mkdir()
    with held(out.parent):
        build(out)
    assert content(out) == "new"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("purpose", ["build", "swap"])
@pytest.mark.parametrize("kind", ["fifo", "file", "link", "folder"])
def test_what_others_put_in_place_of_a_lock(
    out: Path, monkeypatch: pytest.MonkeyPatch, purpose: str, kind: str
) -> None:
    build(out, "old")
    lock = out.parent / f".{out.name}.building-lock.{purpose}"
    if kind == "fifo":
        os.mkfifo(lock)
    elif kind == "file":
        lock.touch()
    elif kind == "link":
        lock.symlink_to(out.parent)
    else:  # another user's, who holds it
        lock.mkdir()
        fstat = os.fstat

        def foreign(descriptor: int) -> os.stat_result:
            found = fstat(descriptor)
            if os.path.samestat(found, lock.stat()):
                return os.stat_result([*found[:4], os.geteuid() + 1, *found[5:10]])
            return found

        monkeypatch.setattr(locks.os, "fstat", foreign)
    with held(lock) if kind == "folder" else contextlib.nullcontext():
        build(out, "new")
    assert content(out) == "new"
    assert sorted(os.listdir(out.parent)) == sorted([lock.name, out.name])


@pytest.mark.timeout(60)
def test_a_pipe_in_place_of_a_leftover(out: Path) -> None:
    out.parent.mkdir()
    os.mkfifo(out.parent / f".{out.name}.building-abc")
    build(out)
    assert content(out) == "new"


def test_waiting_says_so(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_SAY_AFTER_SECONDS", 0.05)
    build(out, "old")
    swap = out.parent / f".{out.name}.building-lock.swap"
    with locks.locked(swap):
        building = threading.Thread(target=build, args=(out,))
        building.start()
        with pytest.warns(UserWarning, match=r"waiting for another build, which holds .*swap"):
            building.join(0.5)
    building.join()
    assert content(out) == "new"


def test_two_never_hold_a_lock(tmp_path: Path) -> None:
    """Whoever leaves removes the folder that the next has opened already."""
    inside, most = 0, []

    def run() -> None:
        nonlocal inside
        for _ in range(30):
            with locks.locked(tmp_path / "lock", wait=True):
                inside += 1
                most.append(inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 120
    assert os.listdir(tmp_path) == []
