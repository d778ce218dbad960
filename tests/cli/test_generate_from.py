"""`generate --from`: a picture's file is enough to make it again, or a little differently."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runtime.test_picture_record import WHOLE, saying
from tests.support.command import Result, run

Generate = Callable[..., Result]


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path) -> Generate:
    def call(*options: object, bundle: Path = tiny_bundle, out: str = "again.png") -> Result:
        return run(capsys, "generate", bundle, "--out", tmp_path / out, *options)

    return call


def test_one_of_many_is_made_again(generate: Generate, tmp_path: Path) -> None:
    """With every parameter off its default; names of eleven have two digits."""
    asked = generate(
        "--prompt", "a", "--negative-prompt", "b", "--steps", 4, "--gate-step", 2, "--seed", 7,
        "--scheduler", "euler-a", "--guidance-scale", 4.5, "--guidance-rescale", 0.5,
        "--cache-blend", 0.75, "--guidance-carry", 0.5, "--clip-skip", 1, "--num-images", 11,
        "--json", out="x.png",
    ).json()  # fmt: skip
    assert asked["images"] == [str(tmp_path / f"x-{index:02}.png") for index in range(11)]
    again = generate("--from", tmp_path / "x-09.png", "--json").json()
    assert again["seed"] == 16
    changing = {"seed", "images", "timings"}
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in asked.items() if k not in changing
    }
    # Two kernels of a batch of one may round in other ways: by a level.
    np.testing.assert_allclose(
        pixels(tmp_path / "again.png"), pixels(tmp_path / "x-09.png"), atol=1
    )


def test_what_is_given_is_changed(generate: Generate, tmp_path: Path) -> None:
    generate("--prompt", "a", "--steps", 4, "--gate-step", 1, "--seed", 7, out="x.png")
    changed = generate("--from", tmp_path / "x.png", "--gate-step", 4, "--json").json()
    assert (changed["steps"], changed["gate_step"], changed["seed"]) == (4, 4, 7)
    generate("--prompt", "a", "--steps", 4, "--gate-step", 4, "--seed", 7, out="ungated.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "ungated.png").read_bytes()
    result = generate("--from", tmp_path / "x.png", "--prompt", "b", "--set", "gate_step=1")
    assert result.code == 0
    assert "again.png was there and is replaced" in result.err
    generate("--prompt", "b", "--steps", 4, "--gate-step", 1, "--seed", 7, out="b.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_picture_that_a_run_began_with(
    generate: Generate, image_bundle: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(tmp_path / "begin.png")
    options = ("--image", tmp_path / "begin.png", "--strength", 0.5, "--steps", 4, "--seed", 1)
    generate("--prompt", "a", *options, bundle=image_bundle, out="x.png")
    missing = generate("--from", tmp_path / "x.png", bundle=image_bundle)
    assert (
        "was made from a picture that it does not hold: give it as image again" in missing.error()
    )
    generate("--from", tmp_path / "x.png", *options[:2], bundle=image_bundle)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "x.png").read_bytes()


@pytest.mark.parametrize("upscaler", ["latent-bicubic", "lanczos"])
def test_a_second_pass_is_made_again(
    generate: Generate, hires_bundle: Path, tmp_path: Path, upscaler: str
) -> None:
    """With a gate that was left out, so that the second pass's was, too."""
    asked = generate(
        "--prompt", "a", "--steps", 4, "--seed", 3, "--scheduler", "euler-a", "--hires", 1.5,
        "--hires-strength", 0.6, "--hires-steps", 7, "--hires-upscaler", upscaler, "--json",
        bundle=hires_bundle, out="x.png",
    ).json()  # fmt: skip
    assert asked["hires"] == {
        "width": 24, "height": 24, "strength": 0.6, "steps": 7, "upscaler": upscaler,
    }  # fmt: skip
    assert len(asked["timings"]["steps"]) == 4 + 4
    assert pixels(tmp_path / "x.png").shape == (24, 24, 3)
    generate("--from", tmp_path / "x.png", bundle=hires_bundle)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "x.png").read_bytes()
    changed = generate(
        "--from", tmp_path / "x.png", "--hires", "32x24", "--json", bundle=hires_bundle
    ).json()
    assert changed["hires"] == asked["hires"] | {"width": 32}
    small = generate("--from", tmp_path / "x.png", "--hires", 1, "--json", bundle=hires_bundle)
    assert small.json()["hires"] is None
    generate(
        "--prompt", "a", "--steps", 4, "--seed", 3, "--scheduler", "euler-a",
        bundle=hires_bundle, out="small.png",
    )  # fmt: skip
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "small.png").read_bytes()
    wrong = generate(
        "--from", tmp_path / "x.png", "--hires", 1, "--hires-steps", 2, bundle=hires_bundle
    )
    assert "hires_steps 2 has no effect without hires" in wrong.error()


def test_refusals(generate: Generate, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert "does not say how it was made" in generate("--from", tmp_path / "plain.png").error()
    other = saying(tmp_path / "x.png", json.dumps(WHOLE | {"parameters": {"tint": 0.5}}))
    assert "was made by the bundle 'm' with tint 0.5, which " in generate("--from", other).error()
    (tmp_path / "lines.jsonl").write_text("{}\n")
    both = generate("--from", tmp_path / "x.png", "--prompts", tmp_path / "lines.jsonl")
    assert "--from is for one picture" in both.error()
    assert not (tmp_path / "again.png").exists()


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)
