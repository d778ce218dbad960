"""The hires fix by A1111's fields, as webuiapi sends them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.test_a1111 import close, refused
from tests.support.http_server import HttpServer
from tgate_export import TGatePipeline
from tgate_export.common.errors import InvalidRequestError
from tgate_export.serve.a1111_hires import second_pass
from tgate_export.serve.fields import Fields

webuiapi = pytest.importorskip("webuiapi")

RUN: dict[str, Any] = {"prompt": "a red circle", "seed": 3, "steps": 5, "sampler_name": "DDIM"}


@pytest.fixture(scope="module")
def served(hires_bundle: Path, tiny_dynamic_bundle: Path) -> Iterator[HttpServer]:
    with HttpServer({"hires": hires_bundle, "bare": tiny_dynamic_bundle}) as found:
        yield found


def test_as_the_pipelines(served: HttpServer, hires_bundle: Path) -> None:
    client = webuiapi.WebUIApi(port=served.port)
    found = client.txt2img(
        **RUN, width=16, height=16, cfg_scale=6, enable_hr=True, hr_scale=1.5,
        denoising_strength=0.6,
        hr_upscaler=webuiapi.HiResUpscaler.Lanczos, hr_second_pass_steps=7,
    )  # fmt: skip
    pipeline = TGatePipeline.from_bundle(hires_bundle, "onnxruntime:cpu")
    call: dict[str, Any] = {
        "prompt": RUN["prompt"], "seed": 3, "num_inference_steps": 5, "scheduler": "ddim",
        "guidance_scale": 6.0, "hires": 1.5, "hires_strength": 0.6, "hires_steps": 12,
    }  # fmt: skip
    (expected,) = pipeline(**call, hires_upscaler="lanczos").images
    (other,) = pipeline(**call, hires_upscaler="latent").images
    assert close(found.image, expected)
    assert not close(found.image, other)
    assert found.info["denoising_strength"] == 0.6
    assert found.info["extra_generation_params"]["Hires upscaler"] == "Lanczos"
    assert "Hires upscale: 1.5, Hires steps: 7" in found.info["infotexts"][0]


def test_what_there_is(served: HttpServer) -> None:
    client = webuiapi.WebUIApi(port=served.port)
    assert [each["name"] for each in client.get_upscalers()] == ["Lanczos"]
    modes = [each["name"] for each in client.get_latent_upscale_modes()]
    assert modes == ["Latent", "Latent (bicubic)", "Latent (nearest)"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hr_scale": 4}, "hr_scale: hires 64x64 does not fit"),
        ({"hr_scale": 1}, "hr_scale: hires must be a factor above 1"),
        ({"hr_upscaler": "R-ESRGAN 4x+"}, "hr_upscaler must be one of Latent, Latent (bicubic)"),
        ({"denoising_strength": 0}, "denoising_strength: hires_strength must be above 0"),
        ({"hr_second_pass_steps": 1000}, "hr_second_pass_steps: hires_steps must be 1 to"),
        ({"hr_resize_x": 32, "hr_resize_y": 16}, "have another shape than 16x16: give one of"),
        ({"hr_prompt": "another"}, "hr_prompt cannot be used here"),
        ({"hr_sampler_name": "Euler"}, "hr_sampler_name cannot be used here"),
        (
            {"override_settings": {"sd_model_checkpoint": "bare"}, "width": 16, "height": 16},
            "built without image-to-image",
        ),
    ],
)
def test_refused(served: HttpServer, fields: dict[str, Any], message: str) -> None:
    assert message in refused(served, "txt2img", RUN | {"enable_hr": True} | fields)


@pytest.mark.parametrize(
    ("fields", "hires"),
    [
        ({}, 2.0),
        ({"hr_scale": 1.5}, 1.5),
        ({"hr_resize_x": 768}, "768x1152"),
        ({"hr_resize_y": 1152}, "768x1152"),
        ({"hr_resize_x": 768, "hr_resize_y": 1152}, "768x1152"),
        ({"hr_resize_x": 770, "hr_scale": 3.0}, "768x1152"),
    ],
)
def test_sizes(fields: dict[str, Any], hires: Any) -> None:
    found = second_pass(Fields(fields), None, (512, 768), 8, 18, 100)
    assert found == {
        "hires": hires, "hires_strength": 0.75, "hires_steps": 24, "hires_upscaler": "latent",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Latent (nearest)", "latent-nearest"])
def test_names_of_upscalers(name: str) -> None:
    asked = Fields({"hr_upscaler": name, "hr_second_pass_steps": 9})
    found = second_pass(asked, 0.5, (64, 64), 8, 20, 100)
    assert found == {
        "hires": 2.0, "hires_strength": 0.5, "hires_steps": 18, "hires_upscaler": "latent-nearest",
    }  # fmt: skip
    with pytest.raises(InvalidRequestError, match="hr_upscaler must be a text"):
        second_pass(Fields({"hr_upscaler": 3}), 0.5, (64, 64), 8, 20, 100)


def test_all_steps_that_are_asked_for_run() -> None:
    """As many as A1111 executes, for every strength: `setup_img2img_steps` of its samplers."""

    def executed(asked: int, strength: float) -> int:
        fields = Fields({"hr_second_pass_steps": asked})
        found = second_pass(fields, strength, (64, 64), 8, 20, 100)
        assert 1 <= found["hires_steps"] <= 100
        return int(found["hires_steps"] * found["hires_strength"])

    for hundredths in range(1, 101):
        for asked in range(1, 101):
            most = int(100 * (strength := hundredths / 100))
            assert executed(asked, strength) == min(asked, most)
    assert executed(0, 0.5) == 20  # the first pass's
    # What is refused later is left alone.
    for asked, strength in ((101, 0.5), (-1, 0.5), (5, 0.0), (5, float("nan")), (5, 1.5)):
        found = second_pass(Fields({"hr_second_pass_steps": asked}), strength, (64, 64), 8, 20, 100)
        assert found["hires_steps"] == asked
    assert second_pass(Fields({}), 5e-324, (64, 64), 8, 20, 100)["hires_steps"] == 100
