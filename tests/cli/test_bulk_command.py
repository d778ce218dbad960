"""`generate --prompts`: what a user types, and what is said of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Result, run
from tgate_export.bulk import worker

Generate = Callable[..., Result]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Three lines."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"a {index}"}) + "\n" for index in range(3)))
    return path


@pytest.fixture
def generate(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, prompts: Path, tmp_path: Path
) -> Generate:
    def call(*options: object, out: Path | None = tmp_path / "out") -> Result:
        given = ["--out", out] if out else []
        return run(
            capsys, "generate", tiny_bundle, "--prompts", prompts, "--steps", 2, "--backend",
            "onnxruntime:cpu", *given, *options,
        )  # fmt: skip

    return call


def seeds(out: Path) -> dict[int, int]:
    found = map(json.loads, (out / "images.jsonl").read_text().splitlines())
    return {entry["line"]: entry["seed"] for entry in found}


def test_a_report_for_programs(generate: Generate, tmp_path: Path) -> None:
    report = generate("--json").json()
    assert report.pop("seconds") > 0
    assert report == {
        "out": str(tmp_path / "out"), "images": 3, "made": 3, "failed": 0,
        "with_a_part_of_the_prompt_left_out": 0, "backend": "onnxruntime:cpu",
        "manifest": str(tmp_path / "out" / "images.jsonl"), "failures": None,
    }  # fmt: skip
    assert seeds(tmp_path / "out") == {1: 1, 2: 2, 3: 3}
    again = generate("--json").json()
    assert (again["images"], again["made"]) == (3, 0)


def test_a_report_for_people(generate: Generate, tmp_path: Path) -> None:
    result = generate("--seed", 10)
    assert (result.code, result.out) == (0, "")
    (line,) = result.err.splitlines()
    assert line.startswith(f"3 images in {tmp_path / 'out'} (onnxruntime:cpu, ")
    assert line.endswith("; images.jsonl there says how each was made")
    assert seeds(tmp_path / "out") == {1: 11, 2: 12, 3: 13}
    assert generate("--seed", 10).err.startswith("3 of 3 images are there already\n0 images in ")
    assert "seed 10, now 0: give the same to go on there" in generate().error()


def test_lines_that_fail(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bytes:
        raise OSError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "encode_picture", fail)
        result = generate()
        failures = tmp_path / "out" / "failures.jsonl"
        assert result.code == 1
        assert result.error() == (
            f"error: 3 of 3 lines failed: {failures} says why, and the same command tries them "
            "again"
        )
        result = generate("--json")
        assert result.code == 1
        assert json.loads(result.out)["failures"] == str(failures)
    assert generate().code == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--prompt", "a"], "give either --prompt or --prompts, not both"),
        (["--num-images", 2], "--num-images is for --prompt: with --prompts a line makes an image"),
        (["--ray-actors", 2], "--ray-actors is for --ray"),
        (["--format", "gif"], "--format gif: a picture can be png, jpeg, webp"),
        (["--max-batch", 0], "0 is not in the range"),
        (["--image-folder", "none"], "'none' does not exist"),
        (["--steps", 0], "error: steps must be at least 1, got 0"),
        (["--scheduler", "x"], "error: unknown scheduler 'x'"),
        (["--backend", "abacus"], "unknown backend 'abacus'"),
        (["--set", "nothing=1"], "--set nothing: this bundle has"),
        (["--seed", -1], "seed must be 0 to"),
    ],
)
def test_what_makes_no_sense(
    generate: Generate, tmp_path: Path, options: list[object], reason: str
) -> None:
    result = generate(*options)
    assert reason in result.error()
    assert result.code == 2
    assert not (tmp_path / "out").exists()


def test_out_is_needed(generate: Generate) -> None:
    assert "--out is missing: the folder" in generate(out=None).error()


@pytest.mark.parametrize(
    "option", [["--format", "png"], ["--max-batch", 1], ["--image-folder", "."], ["--ray"]]
)
def test_what_is_for_prompts_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: list[object]
) -> None:
    result = run(capsys, "generate", tmp_path, "--prompt", "a", *option)
    assert f"{option[0]} is for --prompts FILE" in result.error()


def test_a_line_is_named(generate: Generate, prompts: Path, tmp_path: Path) -> None:
    prompts.write_text('{"prompt": "a"}\n{"prompt": "a", "image": "/etc/passwd"}\n')
    result = generate()
    assert result.code == 2
    assert f"{prompts}:2: image '/etc/passwd' is not in the folder {tmp_path}" in result.error()
    assert result.error().endswith("name its folder with --image-folder")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_stop_says_how_to_go_on(
    tiny_bundle: Path, prompts: Path, tmp_path: Path, number: signal.Signals
) -> None:
    prompts.write_text("".join('{"prompt": "a", "steps": 50}\n' for _ in range(3000)))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tgate_export", "generate", tiny_bundle, "--prompts", prompts,
         "--out", out, "--backend", "onnxruntime:cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not (out / "images.jsonl").exists() or not (out / "images.jsonl").stat().st_size:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(number)
        printed, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, printed) == ({2: 130, 15: 143}[number], "")
    done, *_ = said.splitlines()
    assert "of 3,000 images are done: the same command goes on from there" in done
    count = len((out / "images.jsonl").read_text().splitlines())
    assert done.startswith(f"{count:,} ")
    assert sorted(os.listdir(out)) == ["images", "images.jsonl", "run.json"]
