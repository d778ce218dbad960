"""What a call says of its second pass is completed, or refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.runtime.test_request import DYNAMIC, REUSING, manifest, request
from tgate_export.bundle.manifest import Manifest
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.hires import Hires
from tgate_export.runtime.request import Request


def dynamic(**changes: Any) -> Manifest:
    return manifest(size={"height": DYNAMIC, "width": DYNAMIC, "multiple": 8}, **changes)


def hires(of: Manifest | None = None, **options: Any) -> tuple[Request, Hires]:
    made = request(of=of or dynamic(), **options)
    assert made.hires is not None
    return made, made.hires


def test_defaults() -> None:
    made, second = hires(hires=2)
    assert (made.width, made.height) == (32, 32)
    assert second.as_dict() == {
        "width": 64, "height": 64, "strength": 0.7, "steps": 25, "upscaler": "latent",
    }  # fmt: skip
    assert second.values["gate_step"] == round(10 * 17 / 25)
    assert request().hires is None
    assert request().passes == (request(),)


@pytest.mark.parametrize(
    ("asked", "width", "height", "found"),
    [
        (2, 16, 24, (32, 48)),
        (1.7, 32, 16, (48, 24)),  # rounded down to multiples of 8
        ("1.5", 32, 32, (48, 48)),
        ("64x32", 32, 32, (64, 32)),
    ],
)
def test_sides(asked: Any, width: int, height: int, found: tuple[int, int]) -> None:
    _, second = hires(hires=asked, width=width, height=height)
    assert (second.width, second.height) == found


def test_a_given_gate_keeps_its_place_as_the_default_does() -> None:
    """So that what is recorded, where nothing is left out, makes the same picture."""
    usual, by_default = hires(hires=2, hires_strength=0.5, num_inference_steps=12)
    _, given = hires(hires=2, hires_strength=0.5, num_inference_steps=12, gate_step=usual.gate_step)
    assert by_default == given
    assert given.values["gate_step"] == round(usual.gate_step * 6 / 12)
    _, ungated = hires(hires=2, num_inference_steps=12, gate_step=12)
    assert ungated.values["gate_step"] >= 8  # all that run
    _, first = hires(hires=2, hires_strength=0.1, num_inference_steps=12, gate_step=1)
    assert first.values["gate_step"] == 1


def test_the_gate_is_not_before_the_end_of_warm_up() -> None:
    _, second = hires(dynamic(parameters=REUSING), hires=2, hires_strength=0.2)
    assert second.values["gate_step"] == second.values["warm_up"] == 4


def test_passes() -> None:
    made, _ = hires(
        hires=2, hires_strength=0.5, hires_steps=8, seed=3, prompt=["a", "b"],
        latents=np.zeros((2, 4, 16, 16), np.float32), output_type="pil",
    )  # fmt: skip
    first, second = made.passes
    assert (first.hires, first.output_type, first.height) == (None, "latent", 32)
    assert (second.height, second.output_type, second.first_step) == (64, "pil", 4)
    assert second.latents is None
    assert second.noise_offset != first.noise_offset
    assert second.values["gate_step"] == (made.hires and made.hires.values["gate_step"],) * 2
    begun = second.after(np.ones((2, 4, 16, 16), np.float32), 2)
    assert begun.image_latents is not None
    assert begun.image_latents.shape == (2, 4, 32, 32)
    made, _ = hires(hires=2, hires_upscaler="lanczos")
    first, second = made.passes
    assert first.output_type == "np"
    assert second.encodes_image
    begun = second.after(np.ones((1, 32, 32, 3), np.float32), 2)
    assert begun.pictures["image"].shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hires_strength": 0.5}, "hires_strength 0.5 has no effect without hires"),
        ({"hires_upscaler": "latent"}, "hires_upscaler latent has no effect without hires"),
        ({"hires": 1}, "hires must be a factor above 1 and at most 16"),
        ({"hires": 17}, "hires must be a factor above 1"),
        ({"hires": float("nan")}, "hires must be a factor"),
        ({"hires": True}, "hires must be a factor"),
        ({"hires": 10**400}, "hires must be a factor"),
        ({"hires": [2]}, "hires must be a factor"),
        ({"hires": "big"}, 'hires must be a factor .* or a size "WxH", got .big'),
        ({"hires": "32x32"}, "hires 32x32 is not larger than the first picture's 32x32"),
        ({"hires": "64x24"}, "hires 64x24 is not larger than"),
        ({"hires": 1.1}, "hires 32x32 is not larger than"),
        ({"hires": "64x60"}, "its sides must be multiples of 8"),
        ({"hires": 4}, "hires 128x128 does not fit: this bundle was built for widths of 16:32:64"),
        ({"hires": 2, "hires_upscaler": "esrgan"}, "unknown hires_upscaler 'esrgan': choose one"),
        ({"hires": 2, "hires_upscaler": ["lanczos"]}, "unknown hires_upscaler"),
        ({"hires": 2, "hires_upscaler": []}, "unknown hires_upscaler"),
        ({"hires": 2, "hires_strength": 10**400}, "hires_strength must be above 0"),
        ({"hires": 2, "hires_strength": 0}, "hires_strength must be above 0 and at most 1, got 0"),
        ({"hires": 2, "hires_strength": 1.5}, "hires_strength must be above 0"),
        ({"hires": 2, "hires_strength": float("nan")}, "hires_strength must be above 0"),
        ({"hires": 2, "hires_steps": 0}, "hires_steps must be 1 to"),
        ({"hires": 2, "hires_steps": 10**6}, "hires_steps must be 1 to"),
        ({"hires": 2, "hires_steps": 2.5}, "hires_steps must be 1 to"),
        ({"hires": 2, "hires_steps": 1}, "hires_strength 0.7 of 1 steps leaves no step to run"),
        ({"hires": 2, "image": np.zeros((1, 4, 16, 16), np.float32)}, "begin with noise"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        request(of=dynamic(), **options)
    assert "\n" not in str(caught.value)


def test_a_size_that_was_not_built_names_the_one_to_build() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request(of=dynamic(), hires="48x72")
    assert caught.value.worded(on_command_line).endswith(": --size 16x16:32x32:64x72")


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.zeros((3, 4, 16, 16), np.float32), "latents of 3 images for 2 prompts"),
        (np.full((1, 4, 16, 16), np.nan, np.float32), "image hold values that are not finite"),
        (np.zeros((1, 4, 40, 16), np.float32), "height 80 does not fit"),
    ],
)
def test_latents_of_an_image(latents: np.ndarray, message: str) -> None:
    made = request(["a", "b"], of=dynamic(), image=np.ones((1, 4, 16, 24), np.float32))
    assert (made.width, made.height) == (48, 32)
    assert made.image_latents is not None
    assert made.image_latents.shape == (2, 4, 16, 24)
    with pytest.raises(InvalidRequestError, match=message):
        request(["a", "b"], of=dynamic(), image=latents)


@pytest.mark.parametrize(("given", "strength", "first"), [(None, 0.8, 2), (0.35, 0.35, 7)])
def test_latents_without_image_to_image(given: float | None, strength: float, first: int) -> None:
    """A bundle that has no image has no strength either: it is the declared one."""
    latents = np.zeros((1, 4, 16, 16), np.float32)
    made = request(of=dynamic(), image=latents, strength=given, num_inference_steps=10)
    assert "strength" not in dynamic().parameters
    assert (made.value("strength"), made.first_step) == (strength, first)
    # The default gate of 10 of 25 keeps its place among those that run.
    assert made.gate_step == round(10 * (10 - first) / 25)
    with pytest.raises(InvalidRequestError, match="strength must be above 0 and at most 1"):
        request(of=dynamic(), image=latents, strength=2.0)
