"""Where things are kept that are made again when they are not there."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from tgate_export.cache import cache_folder


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
