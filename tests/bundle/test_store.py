"""A bundle appears whole or not at all, and replaces nothing but a bundle."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tgate_export.bundle import locks, store
from tgate_export.bundle.store import check_replaceable, remove_leftovers, replace_bundle
from tgate_export.common.errors import BundleError

MANIFEST = "manifest.json"


def write(folder: Path, text: str) -> None:
    """Write something with a readable manifest that lists one file."""
    from tests.bundle.test_manifest import VALID

    (folder / "graphs").mkdir()
    for name in VALID["files"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / MANIFEST).write_text(json.dumps(VALID))


def build(out: Path, text: str = "new", *, force: bool = False) -> None:
    with replace_bundle(out, force=force) as staging:
        assert staging.parent == out.parent
        write(staging, text)


def content(out: Path) -> str:
    return (out / "graphs" / "full.onnx").read_text()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "engines" / "tiny"


def test_new_bundle_appears_with_the_users_permissions(out: Path) -> None:
    with replace_bundle(out) as staging:
        write(staging, "new")
        assert not out.exists()
    assert content(out) == "new"
    assert os.listdir(out.parent) == [out.name]
    (plain := out.parent / "plain").mkdir()
    assert out.stat().st_mode == plain.stat().st_mode


def test_older_bundle_is_replaced_as_a_whole(out: Path) -> None:
    build(out, "old")
    (out / "plans").mkdir()
    (out / "plans" / "stale.plan").write_text("of the old graphs")
    build(out, "new")
    assert content(out) == "new"
    assert not (out / "plans").exists()
    assert os.listdir(out.parent) == [out.name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("older", [False, True])
def test_failure_leaves_what_was_there(out: Path, older: bool, error: type[BaseException]) -> None:
    if older:
        build(out, "old")

    def fail() -> None:
        with replace_bundle(out) as staging:
            write(staging, "half")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(out.parent) == ([out.name] if older else [])
    assert not older or content(out) == "old"


def test_failing_rename_leaves_the_older_bundle(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(out, "old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if Path(target) == out and not self.name.endswith(".old"):
            raise OSError(errno.EIO, "broken disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="broken disk"):
        build(out, "new")
    assert content(out) == "old"
    assert os.listdir(out.parent) == [out.name]


def test_empty_folder_is_used(out: Path) -> None:
    out.mkdir(parents=True)
    build(out)
    assert content(out) == "new"


def test_current_folder_by_its_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "here").mkdir()
    monkeypatch.chdir(folder)
    with replace_bundle(Path()) as staging:
        write(staging, "new")
    assert content(folder) == "new"


@pytest.mark.parametrize("force", [False, True])
def test_foreign_folder_is_refused(out: Path, force: bool) -> None:
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="something else than a bundle"):
        build(out, force=force)
    assert os.listdir(out) == ["thesis.txt"]
    assert os.listdir(out.parent) == [out.name]


@pytest.mark.parametrize("text", ['{"name": "web app", "icons": []}', "{", '{"schema_version": 2}'])
def test_unknown_manifest_is_replaced_with_force_only(out: Path, text: str) -> None:
    out.mkdir(parents=True)
    (out / MANIFEST).write_text(text)
    (out / "index.html").write_text("a web app has a manifest.json, too")
    with pytest.raises(BundleError, match="force=True"):
        build(out)
    assert sorted(os.listdir(out)) == ["index.html", MANIFEST]
    build(out, force=True)
    assert content(out) == "new"


def test_users_file_is_replaced_with_force_only(out: Path) -> None:
    build(out, "old")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt .*force=True"):
        build(out)
    assert content(out) == "old"
    build(out, force=True)
    assert content(out) == "new"
    assert not (out / "notes.txt").exists()


def test_file_and_link_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(BundleError, match="not a folder"):
            check_replaceable(tmp_path / name, force=True)
    with pytest.raises(BundleError, match="not a folder"):
        build(tmp_path / "file" / "below")


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


def test_the_root_is_not_replaced() -> None:
    with pytest.raises(BundleError, match="/ holds something else than a bundle"):
        check_replaceable(Path("/"))


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
