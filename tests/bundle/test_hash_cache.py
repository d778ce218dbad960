"""A large file is hashed once, and again as soon as anything touched it."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tgate_export.bundle import hash_cache, hashing
from tgate_export.bundle.hash_cache import cached_hashes
from tgate_export.bundle.integrity import open_bundle
from tgate_export.bundle.manifest import File
from tgate_export.common.errors import BundleError
from tgate_export.common.user_cache import cache_folder

NAMES = ["small", "large", "larger"]


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hash_cache, "LARGE_BYTES", 1000)
    monkeypatch.setattr(hash_cache, "_SETTLED_NS", 0)
    monkeypatch.setenv("TGATE_EXPORT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read, as they are."""
    names: list[str] = []

    def noted(root: Path, relatives: Iterable[str]) -> Iterator[tuple[str, File]]:
        for name, file in hashing.hash_files(root, relatives):
            names.append(name)
            yield name, file

    monkeypatch.setattr(hash_cache, "hash_files", noted)
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "files"
    root.mkdir()
    for name, size in zip(NAMES, (999, 1000, 5000), strict=True):
        (root / name).write_bytes(os.urandom(size))
    pass_time()
    return root


def pass_time() -> None:
    """Wait until the kernel's clock for files, which ticks every 4 ms, has moved."""
    time.sleep(0.05)


def hashes(root: Path) -> dict[str, str]:
    return {name: file.sha256 for name, file in cached_hashes(root, NAMES)}


def expected(root: Path) -> dict[str, str]:
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in NAMES}


def test_large_files_are_read_once(folder: Path, read: list[str]) -> None:
    assert hashes(folder) == expected(folder)
    assert sorted(read) == sorted(NAMES)
    read.clear()
    assert hashes(folder) == expected(folder)
    assert read == ["small"]


def write_with_old_times(file: Path) -> None:
    status = file.stat()
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_with_old_times(file: Path) -> None:
    status = file.stat()
    other = file.with_name("other")
    other.write_bytes(b"x" * status.st_size)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)


def grow(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"x")


@pytest.mark.parametrize("touch", [write_with_old_times, replace_with_old_times, grow])
def test_a_file_that_was_touched_is_read_again(
    folder: Path, read: list[str], touch: Callable[[Path], None]
) -> None:
    hashes(folder)
    touch(folder / "large")
    pass_time()
    read.clear()
    assert hashes(folder) == expected(folder)
    assert sorted(read) == ["large", "small"]
    read.clear()
    assert hashes(folder) == expected(folder)
    assert read == ["small"]


def test_a_file_that_was_just_written_is_read_again(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_cache, "_SETTLED_NS", 60 * 10**9)
    hashes(folder)
    read.clear()
    hashes(folder)
    assert sorted(read) == sorted(NAMES)


def test_a_file_that_changes_while_it_is_hashed_is_read_again(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = hash_cache.hash_files

    def slow(root: Path, relatives: Iterable[str]) -> Iterator[tuple[str, File]]:
        yield from noted(root, relatives)
        write_with_old_times(folder / "large")

    with monkeypatch.context() as patch:
        patch.setattr(hash_cache, "hash_files", slow)
        hashes(folder)
    read.clear()
    assert hashes(folder) == expected(folder)
    assert "large" in read


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"large": 1}',
        b'{"large": {"stamp": [1, 2], "sha256": ""}}',
    ],
)
def test_a_damaged_record_is_none(folder: Path, read: list[str], damage: bytes) -> None:
    hashes(folder)
    (record,) = cache_folder("hashes").iterdir()
    record.write_bytes(damage)
    read.clear()
    assert hashes(folder) == expected(folder)
    assert sorted(read) == sorted(NAMES)


def test_a_cache_that_cannot_be_written_is_none(
    folder: Path, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TGATE_EXPORT_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        read.clear()
        assert hashes(folder) == expected(folder)
        assert sorted(read) == sorted(NAMES)


def test_a_bundle_that_was_changed_is_refused(tiny_bundle_copy: Path, read: list[str]) -> None:
    weights = tiny_bundle_copy / "graphs" / "denoiser.weights"
    pass_time()
    open_bundle(tiny_bundle_copy, cache_hashes=True)
    read.clear()
    open_bundle(tiny_bundle_copy, cache_hashes=True)
    assert "graphs/denoiser.weights" not in read
    write_with_old_times(weights)
    with pytest.raises(BundleError, match="weights was changed"):
        open_bundle(tiny_bundle_copy, cache_hashes=True)


def test_all_is_read_unless_asked_otherwise(tiny_bundle_copy: Path, read: list[str]) -> None:
    open_bundle(tiny_bundle_copy)
    assert not read
    assert not cache_folder("hashes").exists()


def test_a_record_of_somebody_else_vouches_for_nothing(
    tiny_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others can write to the cache they could vouch for a file that they changed."""
    open_bundle(tiny_bundle_copy, cache_hashes=True)
    (record,) = cache_folder("hashes").iterdir()
    weights = tiny_bundle_copy / "graphs" / "denoiser.weights"
    with weights.open("r+b") as file:
        file.seek(8192)
        file.write(b"EVIL")
    content = json.loads(record.read_text())
    content["graphs/denoiser.weights"]["stamp"] = hash_cache.stamp_of(weights)
    record.write_text(json.dumps(content))
    open_bundle(tiny_bundle_copy, cache_hashes=True)  # what this user says is believed
    record.chmod(0o666)
    with pytest.raises(BundleError, match="was changed after the build"):
        open_bundle(tiny_bundle_copy, cache_hashes=True)


def test_what_no_stamp_shows(tiny_bundle_copy: Path) -> None:
    """A write through a map whose page is dirty already: `verify` sees it, a runtime does not."""
    weights = tiny_bundle_copy / "graphs" / "denoiser.weights"
    with weights.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[4096:4100] = view[4096:4100]
        pass_time()
        open_bundle(tiny_bundle_copy, cache_hashes=True)
        before = hash_cache.stamp_of(weights)
        view[4096:4100] = b"EVIL"
        with pytest.raises(BundleError, match="was changed after the build"):
            open_bundle(tiny_bundle_copy)
        if hash_cache.stamp_of(weights) != before:
            pytest.skip("this file system shows it")
        open_bundle(tiny_bundle_copy, cache_hashes=True)
