"""The folder of a run: whole files, whole lines, one run at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hostile import full_disk
from tgate_export.bulk.output_folder import (
    Journal,
    WriteError,
    done_lines,
    in_use,
    partial_folder,
    write_file,
)
from tgate_export.bulk.settings import image_file
from tgate_export.common.errors import InvalidRequestError, TGateError


def entry(line: int, size: int = 3) -> dict[str, object]:
    return {"line": line, "file": image_file(line, "PNG"), "bytes": size}


def lines(path: Path) -> list[int]:
    return [json.loads(text)["line"] for text in path.read_text().splitlines()]


def test_a_thousand_files_to_a_folder() -> None:
    assert image_file(7, "PNG") == "images/000/000007.png"
    assert image_file(1000, "JPEG") == "images/001/001000.jpg"
    assert image_file(12_345_678, "WEBP") == "images/12345/12345678.webp"


@pytest.mark.parametrize("torn", [b"", b'{"line": 3', b'{"line": 3, "x": "' + b"y" * 200_000])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "images.jsonl"
    with Journal(path) as journal:
        assert journal.empty
        journal.append(entry(1))
        journal.append(entry(2))
    with path.open("ab") as stream:
        stream.write(torn)
    with Journal(path) as journal:
        assert [found["line"] for _, found in journal.entries()] == [1, 2]
        assert not journal.empty
        journal.append(entry(4))
    assert lines(path) == [1, 2, 4]


def test_only_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "images.jsonl"
    path.write_bytes(b'{"line"')
    with Journal(path) as journal:
        assert journal.empty
    assert path.read_bytes() == b""


def test_a_line_that_no_run_wrote_is_named(tmp_path: Path) -> None:
    path = tmp_path / "images.jsonl"
    for text in ("x", "[]", '{"line": 1}', '{"line": "1", "bytes": 1}'):
        path.write_text(f"{json.dumps(entry(1))}\n{text}\n")
        with Journal(path) as journal, pytest.raises(TGateError, match=r"jsonl:2 is damaged"):
            list(journal.entries())


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "images.jsonl"
    with Journal(path) as journal:
        journal.append(entry(1))
        size = path.stat().st_size
        with full_disk(size + 10), pytest.raises(WriteError, match="File too large"):
            journal.append(entry(2))
        assert path.stat().st_size == size
        journal.append(entry(3))
    assert lines(path) == [1, 3]


def test_what_is_done(tmp_path: Path) -> None:
    """Images that are gone or of another size are made anew, and their lines go."""
    path = tmp_path / "images.jsonl"
    with partial_folder(tmp_path), Journal(path) as journal:
        for line in (1, 2, 3, 3, 9):
            journal.append(entry(line))
        for line in (1, 3, 9):
            write_file(tmp_path, image_file(line, "PNG"), b"png")
        assert list(done_lines(journal, tmp_path, "PNG", 4)) == [0, 1, 0, 1, 0]
        journal.append(entry(2))
        assert lines(path) == [1, 3, 2]
        (tmp_path / image_file(3, "PNG")).write_bytes(b"other")
        assert list(done_lines(journal, tmp_path, "PNG", 4)) == [0, 1, 0, 0, 0]
    assert lines(path) == [1]
    assert sorted(os.listdir(tmp_path)) == ["images", "images.jsonl"]


def test_files_are_whole(tmp_path: Path) -> None:
    with partial_folder(tmp_path):
        write_file(tmp_path, "images/000/1.png", b"old")
        (tmp_path / "partial" / "left").write_bytes(b"by a killed run")
    with partial_folder(tmp_path):
        assert os.listdir(tmp_path / "partial") == []
        with full_disk(10), pytest.raises(WriteError, match=r"cannot write .*1\.png: File too"):
            write_file(tmp_path, "images/000/1.png", b"x" * 100)
        assert os.listdir(tmp_path / "partial") == []
    assert (tmp_path / "images/000/1.png").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["images"]


HOLD = """
import sys, time
from pathlib import Path
from tgate_export.bulk.output_folder import in_use
with in_use(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_run_at_a_time_until_it_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", HOLD, out], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(TGateError, match=f"another run is filling {out}"), in_use(out):
            pass
        assert out.is_dir()
    finally:
        process.kill()
        process.communicate()
    with in_use(out):
        (out / "x").touch()
    assert os.listdir(out) == ["x"]


def test_a_new_folder_that_stays_empty_goes(tmp_path: Path) -> None:
    with in_use(tmp_path / "a" / "new"):
        pass
    (old := tmp_path / "old").mkdir()
    with in_use(old):
        pass
    assert not (tmp_path / "a" / "new").exists()
    assert old.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequestError, match="is no folder"), in_use(tmp_path / "file"):
        pass
    with pytest.raises(TGateError, match="cannot write"), in_use(tmp_path / "file" / "x"):
        pass
