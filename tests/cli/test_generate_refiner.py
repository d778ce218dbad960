"""`generate --refiner`: two bundles, one picture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.command import Result, run
from tgate_export import TGatePipeline

Generate = Callable[..., Result]
CALL = ("--prompt", "a red circle", "--seed", 4, "--steps", 10, "--scheduler", "ddim")


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str], sdxl_bundle: Path, tmp_path: Path) -> Generate:
    def call(*options: object, out: str = "x.png") -> Result:
        return run(capsys, "generate", sdxl_bundle, "--out", tmp_path / out, *options)

    return call


def test_as_two_calls(
    generate: Generate, sdxl_bundle: Path, refiner_bundle: Path, tmp_path: Path
) -> None:
    asked = generate(
        *CALL, "--refiner", refiner_bundle, "--refiner-start", 0.5, "--aesthetic-score", 9,
        "--num-images", 2, "--json",
    ).json()  # fmt: skip
    assert asked["refiner"] == {
        "model": "refiner", "start": 0.5, "parameters": {"aesthetic_score": 9.0},
    }  # fmt: skip
    base, refiner = (TGatePipeline.from_bundle(each) for each in (sdxl_bundle, refiner_bundle))
    call = {"seed": 4, "num_inference_steps": 10, "scheduler": "ddim"}
    begun = base(
        "a red circle", num_images_per_prompt=2, denoising_end=0.5, output_type="latent", **call
    )
    expected = refiner(
        ["a red circle"] * 2, image=begun.images, denoising_start=0.5, aesthetic_score=9.0, **call
    )
    for index in range(2):
        found = np.asarray(Image.open(tmp_path / f"x-{index}.png")).astype(int)
        assert np.abs(found - np.asarray(expected.images[index])).max() <= 1
    with Image.open(tmp_path / "x-1.png") as picture:
        text = picture.info["parameters"]
        assert "Refiner: refiner, Refiner switch at: 0.5, Gate step: 2" in text
        assert json.loads(picture.info["tgate-export"])["left_out"] == []


def test_it_is_made_again(generate: Generate, refiner_bundle: Path, tmp_path: Path) -> None:
    options = ("--refiner", refiner_bundle)
    generate(*CALL, *options, "--negative-aesthetic-score", 1)
    said = generate("--from", tmp_path / "x.png", out="again.png").error()
    assert "the picture was refined by 'refiner': name its bundle with --refiner" in said
    generate("--from", tmp_path / "x.png", *options, out="again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "x.png").read_bytes()
    generate("--from", tmp_path / "x.png", *options, "--refiner-start", 0.6, out="other.png")
    assert (tmp_path / "other.png").read_bytes() != (tmp_path / "x.png").read_bytes()


@pytest.fixture
def other(sdxl_bundle: Path, tmp_path: Path) -> Path:
    """A base of other defaults than the refiner's, without image-to-image."""
    folder = Path(shutil.copytree(sdxl_bundle, tmp_path / "other"))
    content = json.loads((folder / "manifest.json").read_text())
    for name, value in {
        "num_inference_steps": 5, "scheduler": "ddim", "guidance_scale": 3.0, "gate_step": 2,
    }.items():  # fmt: skip
        assert content["parameters"][name]["default"] != value
        content["parameters"][name]["default"] = value
    for name in ("image", "strength"):
        del content["parameters"][name]
    del content["graphs"]["vae_encoder"]
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_one_run_has_the_defaults_of_who_begins(
    other: Path, refiner_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*options: object, out: str) -> Result:
        return run(
            capsys, "generate", other, "--refiner", refiner_bundle, "--refiner-start", 0.6,
            "--out", tmp_path / out, *options,
        )  # fmt: skip

    asked = call("--prompt", "a red circle", "--seed", 4, "--json", out="x.png").json()
    assert (asked["scheduler"], asked["steps"], asked["guidance_scale"]) == ("ddim", 5, 3.0)
    assert len(asked["timings"]["steps"]) == 5
    base, refiner = (TGatePipeline.from_bundle(each) for each in (other, refiner_bundle))
    begun = base("a red circle", seed=4, denoising_end=0.6, output_type="latent")
    expected = refiner(
        "a red circle", image=begun.images, denoising_start=0.6, seed=4,
        num_inference_steps=5, scheduler="ddim", guidance_scale=3.0,
    ).images[0]  # fmt: skip
    found = np.asarray(Image.open(tmp_path / "x.png")).astype(int)
    assert np.abs(found - np.asarray(expected)).max() <= 1
    call("--from", tmp_path / "x.png", out="again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "x.png").read_bytes()
    # What the base lacks is refused, and not dropped.
    Image.new("RGB", (16, 16)).save(tmp_path / "begin.png")
    options = ("--prompt", "a", "--image", tmp_path / "begin.png")
    assert "built without image-to-image" in call(*options, out="no.png").error()
    assert (
        "strength 0.5 has no effect" in call(*options[:2], "--strength", 0.5, out="n.png").error()
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--size", 32), "height 32 does not fit: this bundle was built for height 16"),
        (("--refiner-start", 0.9999), "denoising_start 0.9999 of 10 steps leaves no step to run"),
        (("--refiner-start", 0.9, "--scheduler", "pndm"), "denoising_start 0.9 of 10 steps"),
    ],
)
def test_what_the_refiner_cannot_is_found_before_the_base_runs(
    generate: Generate, refiner_bundle: Path, monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...], says: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(TGatePipeline, "_whole", None)
    assert says in generate(*CALL, "--refiner", refiner_bundle, *options).error()


def test_refused(
    generate: Generate, refiner_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--refiner-start is for --refiner" in generate(*CALL, "--refiner-start", 0.5).error()
    assert "is not in the range" in generate(*CALL, "--refiner-start", 1).error()
    (tmp_path / "lines.jsonl").write_text("{}\n")
    lines = generate("--prompts", tmp_path / "lines.jsonl", "--refiner", refiner_bundle)
    assert "--refiner is for --prompt, not for --prompts" in lines.error()
    alone = run(capsys, "generate", refiner_bundle, "--out", tmp_path / "x.png", *CALL)
    assert (
        "a refiner goes on from a picture: give --image, or name it as --refiner" in alone.error()
    )
    assert not (tmp_path / "x.png").exists()
