"""`tgate-export cache`: what is there, and that it can be gone."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.support.command import run
from tgate_export.bundle.manifest import File
from tgate_export.common.user_cache import cache_folder, write_cached
from tgate_export.export.content_cache import user_content_cache

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two units, a sampler table, a hash, and a file that is nobody's business."""
    monkeypatch.setenv("TGATE_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TGATE_EXPORT_CACHE_SIZE", "1MB")
    for index, label in enumerate(["tiny denoiser fp32 16x16", "tiny vae_decoder fp32 16x16"]):
        (file := tmp_path / "x").write_bytes(content := bytes(1000 * (index + 1)))
        hashed = File(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        key = str(index) * 64
        user_content_cache().store(key, label, tmp_path, {"x": hashed}, None)
        os.utime(cache_folder("graphs") / key / "record.json", (10**9 + index,) * 2)
        assert file.exists()
    write_cached(cache_folder("samplers") / f"{'a' * 64}.json", b"table")
    write_cached(cache_folder("hashes") / f"{'b' * 64}.json", b"hash")
    (cache_folder("samplers") / "mine.json").write_text("not the cache's")
    return tmp_path / "cache"


def test_list(capsys: Capture, cache: Path) -> None:
    lines = run(capsys, "cache", "list").out.splitlines()
    assert [line.rpartition("  ")[2] for line in lines[:4]] == [
        "tiny vae_decoder fp32 16x16", "tiny denoiser fp32 16x16", "sampler tables",
        "hashes of large files",
    ]  # fmt: skip
    assert lines[4].endswith(f"in {cache}; graphs may take 1.0 MB")


def test_list_as_json(capsys: Capture, cache: Path) -> None:
    found = json.loads(run(capsys, "cache", "list", "--json").out)
    assert found["folder"] == str(cache)
    assert [entry["label"] for entry in found["graphs"]] == [
        "tiny vae_decoder fp32 16x16", "tiny denoiser fp32 16x16",
    ]  # fmt: skip
    assert found["graphs"][0]["used"] == "2001-09-09T01:46:41+00:00"
    files = [path for path in cache.rglob("*") if path.is_file() and path.name != "mine.json"]
    assert found["bytes"] == sum(path.stat().st_size for path in files)
    assert found["samplers_bytes"] == len(b"table")
    assert found["most_graph_bytes"] == 10**6


def test_clean(capsys: Capture, cache: Path) -> None:
    files = [path for path in cache.rglob("*") if path.is_file() and path.name != "mine.json"]
    size = sum(path.stat().st_size for path in files)
    found = json.loads(run(capsys, "cache", "clean", "--json").out)
    assert found == {"folder": str(cache), "freed_bytes": size}
    assert [path for path in cache.rglob("*") if path.is_file()] == [
        cache / "samplers" / "mine.json"
    ]
    assert run(capsys, "cache", "clean").err.startswith("Freed 0.0 MB in ")


def test_a_size_that_is_none(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGATE_EXPORT_CACHE_SIZE", "much")
    result = run(capsys, "cache", "list")
    assert result.code == 2
    assert "TGATE_EXPORT_CACHE_SIZE is 'much': give a size" in result.err
