"""Where things are kept that are made again when they are not there."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from tests.support.hostile import full_disk
from tgate_export.common.user_cache import cache_folder, read_cached, write_cached, write_whole


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGATE_EXPORT_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder("c") == Path("/a/c")
    monkeypatch.delenv("TGATE_EXPORT_CACHE")
    assert cache_folder("c") == Path("/b/tgate-export/c")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/d")
    assert cache_folder("c") == Path("/d/.cache/tgate-export/c")


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> object:
        raise KeyError(uid)

    for name in ("TGATE_EXPORT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(NotADirectoryError):
        cache_folder("c").mkdir(parents=True)


def test_what_is_kept_on_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "x" / "y.json"
    write_cached(file, b"old")
    with full_disk():
        write_cached(file, b"x" * 5000)
    assert file.read_bytes() == b"old"
    assert os.listdir(file.parent) == ["y.json"]


def test_what_is_kept_is_for_nobody_else(tmp_path: Path) -> None:
    write_cached(tmp_path / "x" / "y.json", b"mine")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "x" / "y.json").stat().st_mode & 0o777 == 0o600
    assert read_cached(tmp_path / "x" / "y.json") == b"mine"


def test_what_others_wrote_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cached(file := tmp_path / "y.json", b"mine")
    file.chmod(0o666)  # whoever could write it may have
    assert read_cached(file) is None
    file.chmod(0o600)
    (tmp_path / "link").symlink_to(file)
    assert read_cached(tmp_path / "link") is None
    os.mkfifo(tmp_path / "pipe", 0o600)  # reading it would wait for somebody to write
    assert read_cached(tmp_path / "pipe") is None
    assert read_cached(tmp_path / "nothing") is None
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert read_cached(file) is None


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    write_whole(file, b"a")
    (plain := tmp_path / "plain").touch()
    assert file.stat().st_mode == plain.stat().st_mode
    file.chmod(0o640)
    (link := tmp_path / "link.png").symlink_to(file)
    write_whole(link, b"b")
    assert link.is_symlink()
    assert file.read_bytes() == b"b"
    assert file.stat().st_mode & 0o777 == 0o640
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_whole(file, b"x" * 5000)
    assert file.read_bytes() == b"b"
    assert sorted(os.listdir(tmp_path)) == ["link.png", "plain", "x.png"]
    write_whole(Path(os.devnull), b"x")
