"""`tgate_generate` has the options, the exit codes and the report of `tgate-export generate`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.command import run
from tests.support.cpp_driver import CppBuild
from tgate_export.bundle.integrity import read_manifest

pytestmark = pytest.mark.usefixtures("plain_sessions")

Done = subprocess.CompletedProcess[str]
Generate = Callable[..., Done]


@pytest.fixture
def generate(cpp_build: CppBuild, tiny_bundle: Path, tmp_path: Path) -> Generate:
    def call(*options: object, bundle: Path = tiny_bundle, **environment: str) -> Done:
        command = [cpp_build.generate, bundle, "--out", tmp_path / "x.png", *options]
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False,
            env={**os.environ, **environment},
        )  # fmt: skip

    return call


OPTIONS = ("--prompt", "a circle", "--steps", 3, "--seed", 3, "--backend", "onnxruntime:cpu")


def test_picture_and_report_are_those_of_the_python_command(
    generate: Generate, capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    options = [
        *OPTIONS, "--negative-prompt", "a [cross]", "--gate-step", 2, "--scheduler", "euler",
        "--prompt-syntax", "a1111",
        "--guidance-scale", 4.5, "--guidance-rescale", 0.5, "--clip-skip", 1, "--num-images", 2,
        "--backend", "onnxruntime:cpu", "--json",
    ]  # fmt: skip
    theirs = run(capsys, "generate", tiny_bundle, *options, "--out", tmp_path / "python.png").json()
    done = generate(*options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report.keys() == theirs.keys()
    assert list(report) == list(theirs)
    for key in report.keys() - {"images", "backend_reason", "timings"}:
        assert report[key] == theirs[key]
    assert report["timings"].keys() == theirs["timings"].keys()
    phases, expected = (
        [(name, entry["evaluations"]) for name, entry in each["timings"]["phases"].items()]
        for each in (report, theirs)
    )
    assert phases == expected == [("full", 2), ("gated", 1)]
    for index, file in enumerate(report["images"]):
        assert file == str(tmp_path / f"x-{index}.png")
        mine, other = (
            np.asarray(Image.open(f)).astype(int) for f in (file, theirs["images"][index])
        )
        assert np.abs(mine - other).max() <= 1


def test_parameters_by_name(
    generate: Generate, capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    options = [
        *OPTIONS, "--json", "--set", "gate_step=2", "--set", "guidance_scale=4.5",
        "--set", "scheduler=euler",
    ]  # fmt: skip
    theirs = run(capsys, "generate", tiny_bundle, *options, "--out", tmp_path / "python.png").json()
    done = generate(*options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for key in report.keys() - {"images", "backend_reason", "timings"}:
        assert report[key] == theirs[key]
    assert (report["gate_step"], report["scheduler"]) == (2, "euler")


def test_without_json_stdout_is_empty(generate: Generate, tmp_path: Path) -> None:
    done = generate(*OPTIONS)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"Wrote {tmp_path / 'x.png'} (seed 3, onnxruntime:cpu)" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--gate-step", "0"],
        ["--steps", "0"],
        ["--scheduler", "magic"],
        ["--seed", "-1"],
        ["--num-images", "0"],
        ["--sp-interval", "3", "--steps", "9", "--gate-step", "8"],
        ["--clip-skip", "9"],
        ["--guidance-rescale", "2"],
        ["--size", "18x16"],
        ["--prompt", b"\xff".decode(errors="surrogateescape")],
        ["--prompt-syntax", "a1111", "--prompt", "a (b"],
        ["--out", "nowhere/x.png"],
    ],
)
def test_usage_errors_are_those_of_the_python_command(
    generate: Generate, capsys: pytest.CaptureFixture[str], tiny_bundle: Path, options: list[str]
) -> None:
    theirs = run(capsys, "generate", tiny_bundle, *map(str, OPTIONS), *options)
    done = generate(*OPTIONS, *options)
    assert (theirs.code, done.returncode, done.stdout) == (2, 2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == theirs.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--steps", "many"], "--steps 'many' is not a number"),
        (["--steps", "99999999999"], "--steps '99999999999' is not a number"),
        (["--guidance-scale", "nan"], "guidance_scale must be a finite number, got nan"),
        (["--guidance-scale", "-1e39"], "guidance_scale must be a finite number"),
        (["--size", "16x"], "--size '' is not a number"),
        (["--backend", "magic"], "unknown backend 'magic': choose one of auto, "),
        (["--out", "x.jpg"], "--out x.jpg must end in .png"),
        (["--image", "x.png"], "tgate_generate begins with noise alone: image-to-image is in"),
        (["--set", "gate_step"], "--set gate_step has no value: give NAME=VALUE"),
        (["--set", "tint=1"], "--set tint: this bundle has num_inference_steps, "),
        (["--set", "gate_step=2.5"], "--set gate_step '2.5' is not a number"),
        (["--set", "gate_step=0"], "gate_step must be at least 1, got 0"),
        (["--gate-step", "2", "--set", "gate_step=2"], "gate_step is set twice"),
        (["--prompt-syntax", "comfy"], "prompt_syntax must be one of plain, a1111, got 'comfy'"),
        (["--surprise"], "no such option, or one without its value: --surprise"),
        (["--prompt"], "no such option, or one without its value: --prompt"),
        (["second"], "give one BUNDLE"),
    ],
)
def test_other_usage_errors(generate: Generate, options: list[str], reason: str) -> None:
    done = generate(*OPTIONS, *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {reason}")


def test_a_prompt_is_needed(generate: Generate) -> None:
    assert generate().stderr == "error: missing option '--prompt'; see --help\n"


def test_help_names_every_option(generate: Generate) -> None:
    done = generate("--help")
    assert done.returncode == 0
    assert "--guidance-rescale" in done.stdout


def test_a_damaged_bundle_and_a_missing_one(
    generate: Generate, tiny_bundle_copy: Path, tmp_path: Path
) -> None:
    (tiny_bundle_copy / read_manifest(tiny_bundle_copy).graph("full").file).unlink()
    for bundle in (tiny_bundle_copy, tmp_path / "nothing"):
        done = generate(*OPTIONS, bundle=bundle)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        ("/nowhere/libonnxruntime.so", "onnxruntime cannot be loaded (/nowhere/"),
        ("libm.so.6", "the library is not onnxruntime's"),
    ],
)
def test_a_library_that_is_not_there(generate: Generate, library: str, reason: str) -> None:
    done = generate(*OPTIONS, TGATE_ONNXRUNTIME=library)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: {reason}")
    assert "set TGATE_ONNXRUNTIME" in done.stderr


def test_a_backend_that_was_not_compiled(generate: Generate) -> None:
    done = generate(*OPTIONS, "--backend", "tensorrt-rtx")
    assert done.returncode == 1
    assert done.stderr.startswith("error: this program was compiled without tensorrt-rtx")


def test_a_picture_that_cannot_be_written(generate: Generate, tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    done = generate(*OPTIONS)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot write {tmp_path / 'x.png'}: ")


def test_interrupted_between_steps(cpp_build: CppBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [cpp_build.generate, tiny_bundle, "--prompt", "x", "--num-images", "4000", "--out",
         tmp_path / "x.png"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "error: interrupted\n")
    assert not list(tmp_path.glob("*.png"))
