"""A made-up scalar and a made-up picture, declared by a family alone, run everywhere.

They stand for what is to come (the scale and the image of a ControlNet, say): the family's module
reads them, and a line each says where they come from. No front end, runtime or check knows them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from tests.oracle import hooked_diffusers
from tests.support.once import made_once
from tgate_export import TGatePipeline
from tgate_export.build.build import build_bundle
from tgate_export.bundle.origins import FromImage, FromParameter
from tgate_export.cli import main
from tgate_export.common.errors import InvalidRequestError
from tgate_export.families import registry
from tgate_export.methods.conditioning import Condition, Conditioning
from tgate_export.parameters import Parameter
from tgate_export.runtime.batching import Batcher

TINT = Parameter(type="number", default=0.5, min=-2, max=2, per="prompt", help="How much of it.")
PICTURE = Parameter(type="image", per="prompt", help="What tints the sample.")
SIDE, DOWNSCALE = 16, 2
RUN: dict[str, Any] = {"num_inference_steps": 4, "seed": 3, "scheduler": "ddim"}
PROMPTS = ["a red circle", "a square"]
PIXELS = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
TINTS = [1.5, -0.75]


def tinted(sample: Any, tint: Any, picture: Any) -> Any:
    """The oracle of the made-up condition, and the module: a line of PyTorch."""
    grey = picture.permute(0, 3, 1, 2).mean(dim=1, keepdim=True)
    return sample + tint[:, None, None, None] * avg_pool2d(grey, DOWNSCALE)


def with_made_up_conditions(conditioning: Conditioning) -> Conditioning:
    def predict(unet: Any, sample: Any, timestep: Any, values: Mapping[str, Any]) -> Any:
        sample = tinted(sample, values["tint"], values["picture"])
        return conditioning.predict(unet, sample, timestep, values)

    image = FromImage(image="picture", range=(-1.0, 1.0), layout="BHWC")
    return replace(
        conditioning,
        conditions=(
            *conditioning.conditions,
            Condition("tint", (), gated=True, origin=FromParameter(parameter="tint")),
            Condition("picture", ("height", "width", 3), gated=True, origin=image),
        ),
        predict=predict,
    )


@pytest.fixture(scope="module")
def made_up() -> Iterator[None]:
    family = registry.FAMILIES["stable-diffusion"]
    changed = replace(
        family,
        conditioning=lambda source: with_made_up_conditions(family.conditioning(source)),
        parameters=lambda _source: {"tint": TINT, "picture": PICTURE},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.FAMILIES, "stable-diffusion", changed)
        # What is patched is in no key.
        patch.setenv("TGATE_EXPORT_CACHE_SIZE", "0")
        yield


@pytest.fixture(scope="module")
def bundle(
    made_up: None, tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Built once, also for the tests in C++; its graphs are compared with PyTorch."""
    return made_once(
        tmp_path_factory, "bundles/made-up",
        lambda out: build_bundle(str(tiny_pipeline_dir), out=out),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(plain_sessions: None, bundle: Path) -> TGatePipeline:
    return TGatePipeline.from_bundle(bundle, "onnxruntime:cpu")


@pytest.fixture(scope="module")
def gated(pipeline: TGatePipeline) -> np.ndarray:
    """Latents of both prompts, in Python."""
    return run(pipeline, gate_step=2)


def run(pipeline: TGatePipeline, **options: Any) -> np.ndarray:
    found = pipeline(
        PROMPTS, parameters={"tint": TINTS, "picture": list(PIXELS)}, output_type="latent",
        **RUN, **options,
    )  # fmt: skip
    return np.asarray(found.images)


def test_verified(bundle: Path, made_up: None) -> None:
    from tgate_export.build.verify_bundle import verify_bundle

    found = verify_bundle(bundle)
    assert all(difference.holds for difference in found.differences)
    assert found.trajectories


def test_ungated_as_diffusers(pipeline: TGatePipeline, tiny_pipeline_dir: Path) -> None:
    latents = np.random.default_rng(1).standard_normal((2, 4, 8, 8), dtype=np.float32)
    found = run(pipeline, gate_step=4, latents=latents, guidance_scale=3.0)
    pipe = hooked_diffusers.load(tiny_pipeline_dir)
    tint = torch.tensor(TINTS * 2)  # both halves of guidance
    picture = torch.from_numpy(PIXELS.astype(np.float32) / 255 * 2 - 1).repeat(2, 1, 1, 1)
    handle = pipe.unet.register_forward_pre_hook(
        lambda _unet, args: (tinted(args[0], tint, picture), *args[1:])
    )
    try:
        expected = pipe(
            PROMPTS, latents=torch.from_numpy(latents), output_type="latent", guidance_scale=3.0,
            num_inference_steps=RUN["num_inference_steps"],
        ).images.numpy()  # fmt: skip
    finally:
        handle.remove()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_it_changes_what_comes_out(pipeline: TGatePipeline, gated: np.ndarray) -> None:
    other = run(pipeline, gate_step=2)
    np.testing.assert_array_equal(other, gated)
    plain = pipeline(
        PROMPTS, parameters={"tint": 0, "picture": PIXELS[0]}, output_type="latent", gate_step=2,
        **RUN,
    )  # fmt: skip
    assert np.abs(np.asarray(plain.images) - gated).max() > 0.1


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, "picture is missing"),
        ({"picture": PIXELS[0], "tint": 3}, "tint must be -2 to 2, got 3"),
        ({"picture": PIXELS[0], "tint": "much"}, "tint must be a number, got 'much'"),
        ({"picture": PIXELS[0], "tint": [1, 1, 1]}, "3 values of tint for 2 prompts"),
        ({"picture": PIXELS[0, 1:]}, "the picture is 16x15"),
        ({"picture": PIXELS[0], "shade": 3}, "unknown parameter 'shade'"),
    ],
)
def test_refusals(pipeline: TGatePipeline, parameters: dict[str, Any], reason: str) -> None:
    options = {"height": SIDE, "width": SIDE}
    with pytest.raises(InvalidRequestError, match=reason):
        pipeline(PROMPTS, parameters=parameters, **RUN, **options)


def test_batcher(bundle: Path, gated: np.ndarray) -> None:
    """Requests of one picture and one scalar each share calls."""
    with Batcher.from_bundle(bundle, "onnxruntime:cpu") as batcher:
        futures = [
            batcher.submit(
                batcher.request(
                    prompt, picture=pixels, tint=tint, output_type="latent", gate_step=2,
                    latents=start[None], **RUN,
                )
            )
            for prompt, pixels, tint, start in zip(
                PROMPTS, PIXELS, TINTS, starting_latents(), strict=True
            )
        ]  # fmt: skip
        found = np.concatenate([np.asarray(future.result().images) for future in futures])
    # Batches of another size are computed by other kernels.
    np.testing.assert_allclose(found, gated, atol=1e-4)


def starting_latents() -> np.ndarray:
    """What the seed gives the images of a call of two."""
    from tgate_export.runtime.noise import standard_normal

    return np.stack([standard_normal((4, 8, 8), RUN["seed"], image) for image in range(2)])


def test_command_line(bundle: Path, pipeline: TGatePipeline, tmp_path: Path, capsys: Any) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "picture.png")
    arguments = [
        "generate", bundle, "--prompt", PROMPTS[0], "--set", f"tint={TINTS[0]}",
        "--set", f"picture={tmp_path / 'picture.png'}", "--steps", 4, "--gate-step", 2,
        "--seed", 3, "--scheduler", "ddim", "--backend", "onnxruntime:cpu",
        "--out", tmp_path / "x.png", "--json",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="0"):
        main([str(argument) for argument in arguments])
    assert json.loads(capsys.readouterr().out)["tint"] == TINTS[0]
    expected = pipeline(
        PROMPTS[0], parameters={"tint": TINTS[0], "picture": PIXELS[0]}, gate_step=2, **RUN
    )
    with Image.open(tmp_path / "x.png") as written:
        found = np.asarray(written, np.int16)
    assert np.abs(found - np.asarray(expected.images[0], np.int16)).max() <= 1


def test_triton(bundle: Path, gated: np.ndarray, tmp_path: Path) -> None:
    """The served model declares them as inputs, and reads them."""
    from tgate_export.bundle.integrity import read_manifest
    from tgate_export.embed.triton.interface import inputs
    from tgate_export.embed.triton.parsing import parse
    from tgate_export.embed.triton.repository import write_repository

    model = write_repository(bundle, tmp_path, name="made-up")
    config = (model / "config.pbtxt").read_text(encoding="utf-8")
    assert '"tint"' in config
    assert '"picture"' in config
    manifest = read_manifest(bundle)
    ports = {port.name: port for port in inputs(manifest)}
    assert (ports["tint"].type, ports["tint"].dims) == ("FP32", (-1,))
    assert (ports["picture"].type, ports["picture"].dims) == ("UINT8", (-1, -1, -1, 3))
    tensors = {
        "prompt": np.array([prompt.encode() for prompt in PROMPTS], dtype=np.object_),
        "tint": np.array(TINTS, np.float32), "picture": PIXELS,
        "steps": np.array([4], np.int32), "gate_step": np.array([2], np.int32),
        "seed": np.array([3], np.uint64),
        "scheduler": np.array([b"ddim"], dtype=np.object_),
        "format": np.array([b"latents"], dtype=np.object_),
    }  # fmt: skip
    call = parse(manifest, tensors, max_images=2)
    with Batcher.from_bundle(bundle, "onnxruntime:cpu") as batcher:
        found = np.asarray(batcher.submit(call.request).result().images)
    np.testing.assert_allclose(found, gated, atol=1e-4)
