"""A bundle appears whole or not at all, and replaces nothing but a bundle."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.store import MANIFEST, build, content, write
from tgate_export.bundle.store import check_replaceable, replace_bundle
from tgate_export.common.errors import BundleError


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


def test_the_root_is_not_replaced() -> None:
    with pytest.raises(BundleError, match="/ holds something else than a bundle"):
        check_replaceable(Path("/"))
