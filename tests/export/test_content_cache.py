"""What is kept comes back as it was, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.hostile import full_disk
from tgate_export.bundle.manifest import File
from tgate_export.common.errors import InvalidRequestError
from tgate_export.export import content_cache
from tgate_export.export.content_cache import ContentCache, user_content_cache

KEY, OTHER = "a" * 64, "b" * 64
FILES = {"full.onnx": b"graph", "denoiser.weights": b"w" * 5000}


@pytest.fixture
def cache(tmp_path: Path) -> ContentCache:
    return ContentCache(tmp_path / "cache" / "graphs", 10**6)


def made(cache: ContentCache, files: dict[str, bytes]) -> tuple[Path, dict[str, File]]:
    """Write files beside the cache; where, and their hashes."""
    folder = Path(tempfile.mkdtemp(dir=cache.folder.parents[1]))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder, {
        name: File(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        for name, content in files.items()
    }


def store(cache: ContentCache, key: str = KEY, files: dict[str, bytes] = FILES) -> None:
    cache.store(key, f"label {key[:1]}", *made(cache, files), {"what": ["it", 1]})


def load(cache: ContentCache, key: str = KEY) -> dict[str, bytes] | None:
    """What comes out, which is nothing in part."""
    target = Path(tempfile.mkdtemp(dir=cache.folder.parents[1]))
    record = cache.load(key, target)
    found = {path.name: path.read_bytes() for path in target.iterdir()}
    shutil.rmtree(target)
    assert (record is None) == (found == {})
    return found or None


def test_what_is_kept_comes_back(cache: ContentCache, tmp_path: Path) -> None:
    assert load(cache) is None
    store(cache)
    assert load(cache) == FILES
    assert load(cache, OTHER) is None
    (target := tmp_path / "target").mkdir()
    record = cache.load(KEY, target)
    assert record is not None
    assert record.content == {"what": ["it", 1]}
    assert record.files["full.onnx"].sha256 == hashlib.sha256(b"graph").hexdigest()
    # A copy: a bundle is written into without any harm to the cache.
    with (target / "full.onnx").open("r+b") as file:
        file.write(b"X")
    assert load(cache) == FILES


def test_nobody_else_can_read_or_write_it(cache: ContentCache) -> None:
    store(cache)
    for path in (cache.folder, cache.folder / KEY):
        assert path.stat().st_mode & 0o777 == 0o700
    for path in (cache.folder / KEY).iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def edit_record(**changes: object) -> Callable[[Path], object]:
    def edit(entry: Path) -> None:
        record = json.loads((entry / "record.json").read_text())
        (entry / "record.json").write_text(json.dumps(record | changes))

    return edit


def link_elsewhere(entry: Path) -> None:
    (entry / "full.onnx").rename(entry.parent / "elsewhere")
    (entry / "full.onnx").symlink_to(entry.parent / "elsewhere")


def name_elsewhere(entry: Path) -> None:
    (entry.parent / "secret").write_bytes(b"graph")
    record = json.loads((entry / "record.json").read_text())
    record["files"]["../secret"] = record["files"].pop("full.onnx")
    (entry / "record.json").write_text(json.dumps(record))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda entry: (entry / "full.onnx").write_bytes(b"grapH"),
    "longer": lambda entry: (entry / "full.onnx").write_bytes(b"graph and more"),
    "missing": lambda entry: (entry / "denoiser.weights").unlink(),
    "a pipe": lambda entry: ((entry / "full.onnx").unlink(), os.mkfifo(entry / "full.onnx", 0o600)),
    "a link": link_elsewhere,
    "a name that leads out": name_elsewhere,
    "writable by others": lambda entry: (entry / "full.onnx").chmod(0o666),
    "a record writable by others": lambda entry: (entry / "record.json").chmod(0o622),
    "no record": lambda entry: (entry / "record.json").unlink(),
    "half a record": lambda entry: (entry / "record.json").write_bytes(b'{"key": "'),
    "the record of another": edit_record(key=OTHER),
    "a record with more": edit_record(more=1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_none_and_is_replaced(cache: ContentCache, damage: str) -> None:
    store(cache)
    DAMAGES[damage](cache.folder / KEY)
    assert load(cache) is None
    assert not (cache.folder / KEY).exists()
    store(cache)
    assert load(cache) == FILES


def test_a_damaged_entry_is_replaced_without_being_looked_at(cache: ContentCache) -> None:
    store(cache)
    (cache.folder / KEY / "record.json").write_bytes(b"")
    store(cache)
    assert load(cache) == FILES


def test_what_others_own_is_none(cache: ContentCache, monkeypatch: pytest.MonkeyPatch) -> None:
    store(cache)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert load(cache) is None
    store(cache)
    assert load(cache) == FILES


@pytest.mark.parametrize(
    ("limit", "files"),
    [
        (2, FILES),  # in the first file
        (100, FILES),  # in the second
        (100, {"x": b"x"}),  # in the record
    ],
)
def test_a_full_disk_keeps_nothing(
    cache: ContentCache, limit: int, files: dict[str, bytes]
) -> None:
    folder, hashes = made(cache, files)
    with full_disk(limit):
        cache.store(KEY, "label", folder, hashes, None)
    assert os.listdir(cache.folder) == []


def test_a_full_disk_is_the_bundles(cache: ContentCache, tmp_path: Path) -> None:
    """What cannot be copied out is an error: there is no space to export it either."""
    store(cache)
    (target := tmp_path / "target").mkdir()
    with full_disk(100), pytest.raises(OSError, match="File too large"):
        cache.load(KEY, target)
    assert load(cache) == FILES


def test_an_interruption_leaves_nothing(
    cache: ContentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(content_cache, "write_cached", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store(cache)
    assert os.listdir(cache.folder) == []
    assert load(cache) is None


def test_what_a_killed_process_left_is_removed(cache: ContentCache, tmp_path: Path) -> None:
    """Not what a living one is writing."""
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from tgate_export.export.content_cache import ContentCache
        cache = ContentCache(Path(sys.argv[1]), 10**6)
        cache.folder.mkdir(parents=True)
        with cache._temporary("c" * 64) as made:
            (made / "half").write_bytes(b"half")
            print("writing", flush=True)
            sys.stdin.read()
        """
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, cache.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    store(cache)
    cache.clean()
    (left,) = os.listdir(cache.folder)
    assert left.startswith(f".{'c' * 64}.")
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    store(cache)
    assert os.listdir(cache.folder) == [KEY]


def test_what_was_used_least_recently_goes_first(cache: ContentCache) -> None:
    keys = [letter * 64 for letter in "abc"]
    cache.most_bytes = 3 * 6000
    for age, key in enumerate(keys):
        store(cache, key)
        os.utime(cache.folder / key / "record.json", (1000 + age, 1000 + age))
    assert load(cache, keys[0]) == FILES  # used just now
    store(cache, "d" * 64)
    assert sorted(os.listdir(cache.folder)) == [keys[0], keys[2], "d" * 64]
    assert sum(entry.bytes for entry in cache.entries()) <= cache.most_bytes


def test_what_is_larger_than_the_cache_drives_nothing_out(cache: ContentCache) -> None:
    cache.most_bytes = 7000
    store(cache)
    store(cache, OTHER, {"denoiser.weights": b"w" * 7001})
    assert os.listdir(cache.folder) == [KEY]


def test_no_size_is_no_cache(cache: ContentCache) -> None:
    store(cache)
    cache.most_bytes = 0
    assert load(cache) is None
    store(cache, OTHER)
    assert os.listdir(cache.folder) == [KEY]


@pytest.mark.parametrize("above", [os.devnull, "file"])
def test_a_cache_that_cannot_be_written_is_none(
    cache: ContentCache, tmp_path: Path, above: str
) -> None:
    (tmp_path / "file").touch()
    nowhere = ContentCache(tmp_path / above / "graphs", 10**6)
    nowhere.store(KEY, "label", *made(cache, FILES), None)
    assert nowhere.load(KEY, tmp_path) is None
    assert list(nowhere.entries()) == []
    nowhere.clean()


def test_files_are_copied_where_the_kernel_cannot(
    cache: ContentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As between two file systems; also in the middle of a file."""
    real, calls = os.copy_file_range, iter([3])

    def fail(source: int, target: int, _count: int) -> int:
        for count in calls:
            return real(source, target, count)
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", fail)
    store(cache)
    assert load(cache) == FILES


def test_several_at_once(cache: ContentCache) -> None:
    """Who takes gets all or nothing, whoever keeps and removes at the same time."""
    folder, hashes = made(cache, FILES)
    code = textwrap.dedent(
        """
        import json, sys, tempfile
        from pathlib import Path
        from tgate_export.bundle.manifest import File
        from tgate_export.export.content_cache import ContentCache
        cache, made, key = ContentCache(Path(sys.argv[1]), 10**6), Path(sys.argv[2]), "a" * 64
        files = {name: File(**file) for name, file in json.loads(sys.argv[3]).items()}
        taken = 0
        for turn in range(40):
            with tempfile.TemporaryDirectory() as target:
                record = cache.load(key, Path(target))
                names = {path.name for path in Path(target).iterdir()}
                assert names == (set(files) if record else set())
                taken += record is not None
            if turn % 4 == 0:
                cache.clean()
            cache.store(key, "label", made, files, None)
        print(taken)
        """
    )
    given = json.dumps({name: file.model_dump() for name, file in hashes.items()})
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, cache.folder, folder, given], stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    taken = [int(run.communicate()[0]) for run in runs]
    assert all(count > 0 for count in taken)
    assert set(os.listdir(cache.folder)) <= {KEY}


@pytest.mark.parametrize(
    ("given", "size"), [("0", 0), ("50GB", 5 * 10**10), ("1.5 t", 15 * 10**11), ("700m", 7 * 10**8)]
)
def test_its_size(monkeypatch: pytest.MonkeyPatch, given: str, size: int) -> None:
    monkeypatch.setenv("TGATE_EXPORT_CACHE_SIZE", given)
    assert user_content_cache().most_bytes == size


@pytest.mark.parametrize("given", ["a lot", "-1", "1e9", "inf", "20 GiB", "\u0663"])
def test_a_size_that_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("TGATE_EXPORT_CACHE_SIZE", given)
    with pytest.raises(InvalidRequestError, match=r"give a size such as 50GB, or 0"):
        user_content_cache()


def test_its_size_unless_told(
    cache: ContentCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TGATE_EXPORT_CACHE_SIZE", raising=False)
    monkeypatch.setenv("TGATE_EXPORT_CACHE", str(cache.folder.parent))
    store(cache)
    used = sum(entry.bytes for entry in cache.entries())
    for free, most in ((10**6, (10**6 + used) // 10), (10**12, 20 * 10**9)):
        usage = shutil._ntuple_diskusage(10**13, 0, free)  # type: ignore[attr-defined]
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, usage=usage: usage)
        assert user_content_cache().most_bytes == most
