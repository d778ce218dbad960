"""`generate`: pictures on disk, and one clear line for everything that cannot be done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundle.test_integrity import SEEN_BY_SIZE, Damage, change_byte
from tests.conftest import CPU_BACKENDS
from tests.support.command import Result, run
from tests.support.hostile import full_disk
from tgate_export.bundle.integrity import read_manifest
from tgate_export.runtime.tokenizer import PromptTokenizer

Generate = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where pictures go."""
    (path := tmp_path / "pictures").mkdir()
    return path


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, folder: Path) -> Generate:
    """Generate a picture with the tiny bundle; later options override earlier ones."""

    def call(*options: object, bundle: Path = tiny_bundle, prompt: str = "a circle") -> Result:
        return run(
            capsys, "generate", bundle, "--prompt", prompt, "--out", folder / "x.png",
            "--steps", 2, "--seed", 3, *options,
        )  # fmt: skip

    return call


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_picture_and_report(generate: Generate, folder: Path) -> None:
    report = generate("--json", "--steps", 4, "--gate-step", 3, "--scheduler", "euler").json()
    assert report.keys() == {
        "images", "backend", "backend_reason", "device_memory", "seed", "steps", "gate_step",
        "sp_interval", "fi_interval", "warm_up",
        "guidance_scale", "guidance_rescale", "cache_blend", "guidance_carry", "clip_skip",
        "prompt_syntax", "scheduler", "width", "height", "hires", "refiner", "timings",
    }  # fmt: skip
    assert report["images"] == [str(folder / "x.png")]
    assert (report["steps"], report["gate_step"], report["seed"]) == (4, 3, 3)
    assert (report["scheduler"], report["width"], report["height"]) == ("euler", 16, 16)
    timings = report["timings"]
    assert [step["phase"] for step in timings["steps"]] == ["full"] * 3 + ["gated"]
    assert timings["phases"]["full"]["evaluations"] == 3
    assert 0 < timings["outside_engines_s"] < timings["total_s"]
    assert pixels(folder / "x.png").shape == (16, 16, 3)


def test_readable_report_and_repeatable_picture(generate: Generate, folder: Path) -> None:
    result = generate()
    assert result.code == 0
    assert result.out == ""
    chosen, line = result.err.splitlines()
    assert chosen.startswith(tuple(f"Backend {name}: " for name in CPU_BACKENDS))
    assert ": the fastest that works here" in chosen
    assert "1 full steps" in line
    assert "1 gated steps" in line
    first = pixels(folder / "x.png")
    generate()
    assert np.array_equal(first, pixels(folder / "x.png"))
    generate("--seed", 4)
    assert not np.array_equal(first, pixels(folder / "x.png"))


def test_several_pictures_differ(generate: Generate, folder: Path) -> None:
    # Ten are more than the bundle's batch of eight.
    report = generate("--num-images", 10, "--json").json()
    assert report["images"] == [str(folder / f"x-{index}.png") for index in range(10)]
    assert len({pixels(folder / f"x-{index}.png").tobytes() for index in range(10)}) == 10


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--steps", 0], "steps must be at least 1, got 0"),
        (["--steps", 101], "steps must be 1 to 100, got 101"),
        (["--steps", "x"], "not a valid integer"),
        (["--gate-step", 0], "gate_step must be at least 1, got 0"),
        (["--gate-step", -1], "gate_step must be at least 1, got -1"),
        (["--sp-interval", 0], "sp_interval must be at least 1, got 0: 1 computes"),
        (["--fi-interval", -3], "fi_interval must be at least 1, got -3: 1 computes"),
        (["--warm-up", -1], "warm_up must be at least 0, got -1"),
        (["--gate-step", 1, "--warm-up", 2], "give a gate_step of at least 2, or a warm_up of at"),
        (["--scheduler", "huen"], "unknown scheduler 'huen': this bundle has ddim, euler"),
        (["--num-images", 0], "num_images must be at least 1, got 0"),
        (["--guidance-scale", "nan"], "finite"),
        (["--seed", -1], "seed must be"),
        (["--size", "15x16"], "width 15 does not fit: this bundle was built for width 16"),
        (["--size", "16x32"], "height 32 does not fit"),
        (["--size", "16x"], "is not a whole number"),
        (["--backend", "abacus"], "unknown backend 'abacus'"),
        (["--weight-streaming-budget", -1], "is not in the range x>=0"),
        (
            ["--backend", "onnxruntime", "--no-cuda-graphs"],
            "--no-cuda-graphs is for auto, tensorrt, tensorrt-rtx and onnxruntime:cuda",
        ),
        (
            ["--backend", "onnxruntime:cuda", "--weight-streaming-budget", 1],
            "--weight-streaming-budget is for auto, tensorrt and tensorrt-rtx",
        ),
        (
            ["--backend", "onnxruntime", "--precision", "fp32"],
            "onnxruntime does not take precision fp32: --precision fp32 is for auto and openvino",
        ),
        (["--precision", "int8"], "'int8' is not one of 'fp32', 'bf16'"),
        (["--out", "x.gif"], "must end in .png"),
        (["--out", "nowhere/x.png"], "the folder nowhere does not exist"),
    ],
)
def test_option_out_of_range(
    generate: Generate, folder: Path, options: list[object], reason: str
) -> None:
    result = generate(*options)
    assert reason in result.error()
    assert result.code == 2
    assert os.listdir(folder) == []


def test_intervals_of_version_2(generate: Generate, reuse_bundle: Path) -> None:
    """The bundle's own intervals are the default, and a shorter run keeps it possible."""
    report = generate("--json", "--steps", 12, bundle=reuse_bundle).json()
    assert (report["gate_step"], report["warm_up"]) == (5, 2)
    assert (report["sp_interval"], report["fi_interval"]) == (5, 2)
    assert report["timings"]["phases"].keys() == {"full", "full_reuse", "gated", "gated_reuse"}
    phases = [step["phase"] for step in report["timings"]["steps"]]
    assert phases == [
        "full", "full", "full", "full_reuse", "full", "gated_reuse", "gated", "gated_reuse",
        "gated", "gated_reuse", "gated", "gated_reuse",
    ]  # fmt: skip
    assert generate("--json", "--steps", 2, bundle=reuse_bundle).json()["gate_step"] == 2
    report = generate("--json", "--steps", 4, "--gate-step", 1, bundle=reuse_bundle).json()
    assert report["warm_up"] == 1
    line = generate("--steps", 12, bundle=reuse_bundle).err
    assert "1 full reuse steps" in line
    assert "4 gated reuse steps" in line


def test_missing_graph_says_how_to_build_it(
    generate: Generate, folder: Path, tiny_bundle: Path, tiny_pipeline_dir: Path
) -> None:
    command = (
        f"tgate-export build --model {tiny_pipeline_dir} --weights pretrained --precision fp32 "
        "--size 16x16 --gate-step 10"
    )
    gating = ["--steps", 10, "--gate-step", 5]
    message = generate(*gating, "--sp-interval", 3).error()
    assert "sp_interval 3: this bundle was built without the graphs" in message
    assert message.endswith(
        f"{command} --sp-interval 3 --fi-interval 1 --warm-up 0 "
        f"--cache-blend 0.5 --guidance-carry 0.0 --out {tiny_bundle}"
    )
    result = generate(*gating, "--sp-interval", 3, "--fi-interval", 2)
    assert "sp_interval 3 and fi_interval 2: " in result.error()
    assert "--sp-interval 3 --fi-interval 2" in result.error()
    assert result.code == 2
    assert os.listdir(folder) == []
    # A run that never gets to reuse anything needs no graph for it.
    assert generate("--steps", 2, "--gate-step", 2, "--sp-interval", 3).code == 0


def test_prompt_of_undecodable_bytes(generate: Generate, folder: Path) -> None:
    assert "prompt must be text" in generate(prompt="\udcff").error()
    assert os.listdir(folder) == []


def test_picture_that_cannot_be_written(generate: Generate, folder: Path) -> None:
    (folder / "x.png").mkdir()
    result = generate()
    assert "cannot write" in result.error()
    assert result.code == 1


def test_missing_bundle(generate: Generate, folder: Path, tmp_path: Path) -> None:
    assert "no such folder" in generate(bundle=tmp_path / "nothing").error()
    assert os.listdir(folder) == []


@pytest.mark.parametrize(("damage", "reason"), [*SEEN_BY_SIZE, (change_byte, "sha256 differs")])
def test_damaged_bundle(
    generate: Generate, folder: Path, tiny_bundle_copy: Path, damage: Damage, reason: str
) -> None:
    damage(tiny_bundle_copy)
    result = generate(bundle=tiny_bundle_copy)
    assert reason in result.error()
    assert result.code == 1
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema_version": 3}, "update tgate-export"),
        ({"files": {}}, "used but not listed"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_changed_manifest(
    generate: Generate, tiny_bundle_copy: Path, changes: dict[str, object], reason: str
) -> None:
    path = tiny_bundle_copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert reason in generate(bundle=tiny_bundle_copy).error()


# The tiny tokenizer spells in bytes: a word of letters is as many tokens, and 77 - 2 fit.
def test_long_prompt_is_cut_as_by_diffusers(
    generate: Generate, folder: Path, tiny_bundle: Path, tiny_pipeline_dir: Path
) -> None:
    from transformers import CLIPTokenizer

    fits, cut = "f" * 74 + " x", "left [/b] out [red]"
    result = generate(prompt=f"{fits} {cut}")
    assert result.code == 0
    warning, _backend, _report = result.err.splitlines()
    assert warning.startswith("warning: the prompt is longer than the 77 tokens")
    shown = warning.split("left out: ")[1]
    assert shown.replace(" ", "") == repr(cut.replace(" ", ""))
    before = pixels(folder / "x.png")
    assert "warning" not in generate(prompt=fits).err
    assert np.array_equal(before, pixels(folder / "x.png"))

    spec = read_manifest(tiny_bundle).tokenizers["input_ids"]
    with pytest.warns(UserWarning, match="left out"):
        found, _ = PromptTokenizer(tiny_bundle / spec.file, spec)([f"{fits} {cut}"])
    expected = CLIPTokenizer.from_pretrained(tiny_pipeline_dir / "tokenizer")(
        f"{fits} {cut}", padding="max_length", max_length=77, truncation=True, return_tensors="np"
    ).input_ids
    assert np.array_equal(found, expected)


def test_a_full_disk_leaves_the_old_picture(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    (out := tmp_path / "x.png").write_bytes(b"old")
    with full_disk():
        result = run(
            capsys, "generate", tiny_bundle, "--prompt", "a", "--steps", 1, "--out", out,
            "--backend", "onnxruntime:cpu",
        )  # fmt: skip
    assert f"cannot write {out}: File too large" in result.error()
    assert out.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.png"]
