"""A killed bulk run loses nothing and makes nothing twice: scripts/kill_bulk.py, briefly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import kill_bulk
import kill_processes

COUNT = 60
OPTIONS = ("--backend", "onnxruntime:cpu")


def folder(path: Path, count: int = 3) -> Path:
    """A folder as a run leaves it."""
    (path / "images").mkdir(parents=True)
    lines = []
    for line in range(1, count + 1):
        (path / "images" / f"{line}.png").write_bytes(bytes([line]))
        name = f"images/{line}.png"
        lines.append({"line": line, "file": name, "sha256": kill_bulk.hashes(path)[name]})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "images.jsonl").write_text(text)
    return path


def test_damage_is_seen(tmp_path: Path) -> None:
    good = folder(tmp_path / "good")
    out = folder(tmp_path / "out")
    assert kill_bulk.differences(good, out, 3) == []
    lines = (out / "images.jsonl").read_text()
    (out / "images.jsonl").write_text(lines + lines.splitlines()[0] + "\n")
    assert kill_bulk.problems(out) == ("line 1 is twice in images.jsonl",)
    (out / "images.jsonl").write_text(lines + '{"line"')
    assert kill_bulk.listed(out)[1]
    assert "images.jsonl has 3 lines" in kill_bulk.differences(good, out, 3)[0]
    (out / "images.jsonl").write_text(lines)
    (out / "images" / "2.png").write_bytes(b"other")
    (out / "left").touch()
    assert kill_bulk.differences(good, out, 3) == [
        "line 2 is without the file that it names", "1 of 3 files differ: images/2.png",
        "left behind: left",
    ]  # fmt: skip


STARTS_ANOTHER = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print("ready", flush=True)
sys.stdin.read()
"""


def test_processes_that_stay_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS_ANOTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    (child,) = kill_processes.below(process.pid)
    monkeypatch.setattr(kill_processes, "END_SECONDS", 0.3)
    seconds, names = kill_processes.gone_after([child])
    assert seconds >= 0.3
    assert len(names) == 1
    assert names[0].startswith(f"process {child.pid} still runs: {sys.executable}")
    process.kill()  # whose end ends its child
    process.communicate()
    monkeypatch.setattr(kill_processes, "END_SECONDS", 60.0)
    assert kill_processes.gone_after([child])[1] == ()
    assert not kill_processes.runs(child)


def test_two_kills(tiny_bundle: Path, tmp_path: Path) -> None:
    """Each when so many more images have a line."""
    prompts, good, out = tmp_path / "x.jsonl", tmp_path / "good", tmp_path / "out"
    kill_bulk.write_prompts(prompts, COUNT, most_steps=40)
    kill_bulk.finish(tiny_bundle, prompts, good, OPTIONS)
    done = 0
    for more in (7, 20):
        least = done + more
        kill = kill_bulk.kill_once(
            tiny_bundle, prompts, out, lambda _, at=least: len(kill_bulk.listed(out)[0]) >= at,
            OPTIONS,
        )  # fmt: skip
        assert not kill.ended
        assert kill.problems == ()
        assert least <= kill.after < COUNT
        done = kill.after
    kill_bulk.finish(tiny_bundle, prompts, out, OPTIONS)
    assert kill_bulk.differences(good, out, COUNT) == []
