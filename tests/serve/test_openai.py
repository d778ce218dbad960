"""What OpenAI's own client sees."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.http_server import HttpServer
from tgate_export import TGatePipeline
from tgate_export.serve.options import ServeOptions

openai = pytest.importorskip("openai")

PROMPT = "a red circle on a blue background"
RUN: dict[str, Any] = {"steps": 6, "gate_step": 3, "seed": 11}


@pytest.fixture(scope="module")
def client(server: HttpServer) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def pixels(text: str) -> np.ndarray:
    """An answer's picture as it is."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def alone(pipeline: TGatePipeline, prompt: str = PROMPT, **options: Any) -> np.ndarray:
    options = dict(options)
    steps = options.pop("steps")
    found = pipeline(prompt, num_inference_steps=steps, **options).images
    return np.stack([np.asarray(image).astype(int) for image in found])


def close(first: np.ndarray, second: np.ndarray) -> bool:
    """Kernels of another batch round in another way, which is seen as one of 255 at most."""
    return first.shape == second.shape and int(np.abs(first - second).max()) <= 1


def test_a_picture_is_the_pipelines(client: Any, shapes_pipeline: TGatePipeline) -> None:
    found = client.images.generate(prompt=PROMPT, extra_body=RUN)
    expected = alone(shapes_pipeline, **RUN)
    assert close(pixels(found.data[0].b64_json), expected[0])
    # A field that were dropped would be seen.
    for field, value in {"seed": 12, "steps": 7, "gate_step": 1, "guidance_scale": 1}.items():
        other = client.images.generate(prompt=PROMPT, extra_body={**RUN, field: value})
        assert not close(pixels(other.data[0].b64_json), expected[0]), field


def test_the_answer_says_what_was_used(client: Any) -> None:
    found = client.images.generate(prompt=PROMPT, n=2, extra_body=RUN)
    assert found.size == "64x64" or found.size.count("x") == 1
    ours = found.tgate
    assert ours["parameters"]["num_inference_steps"] == 6
    assert ours["parameters"]["gate_step"] == 3
    assert ours["timings"]["stages"]["gated"]["calls"] == 6
    assert [each.seed for each in found.data] == [11, 12]
    with Image.open(io.BytesIO(base64.b64decode(found.data[1].b64_json))) as image:
        assert "Seed: 12" in image.text["parameters"]  # type: ignore[attr-defined]


def test_several_images_are_those_of_their_seeds(
    client: Any, shapes_pipeline: TGatePipeline
) -> None:
    found = client.images.generate(prompt=PROMPT, n=3, extra_body=RUN)
    expected = alone(shapes_pipeline, num_images_per_prompt=3, **RUN)
    for image, other in zip(found.data, expected, strict=True):
        assert close(pixels(image.b64_json), other)


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
def test_formats(client: Any, format_: str) -> None:
    found = client.images.generate(
        prompt=PROMPT, output_format=format_, response_format="url", extra_body=RUN
    )
    head, _, text = found.data[0].url.partition(",")
    assert head == f"data:image/{format_};base64"
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert image.format == format_.upper()


def test_many_at_once_are_each_alone(client: Any, shapes_pipeline: TGatePipeline) -> None:
    wanted = [
        {"steps": 4 + i, "gate_step": 1 + i % 5, "seed": i, "guidance_scale": 1.5 + i,
         "scheduler": ["ddim", "euler", "dpm++2m"][i % 3]}
        for i in range(8)
    ]  # fmt: skip
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda run: client.images.generate(prompt=PROMPT, extra_body=run), wanted)
        )
    for run, answer in zip(wanted, found, strict=True):
        assert close(pixels(answer.data[0].b64_json), alone(shapes_pipeline, **run)[0]), run


def test_a_stream_has_previews_and_the_picture(client: Any, shapes_pipeline: TGatePipeline) -> None:
    events = list(
        client.images.generate(
            prompt=PROMPT, stream=True, partial_images=3, extra_body={**RUN, "progress": True}
        )
    )
    kinds = [event.type.partition(".")[2] for event in events]
    assert kinds.count("progress") == 6
    assert kinds.count("partial_image") == 3
    assert kinds[-1] == "completed"
    expected = alone(shapes_pipeline, **RUN)[0]
    assert close(pixels(events[-1].b64_json), expected)
    partial = [event for event in events if event.type.endswith("partial_image")]
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    # Previews come nearer to the picture, and the last is nearer than another prompt's picture is.
    errors = [float(np.abs(pixels(event.b64_json) - expected).mean()) for event in partial]
    other = alone(shapes_pipeline, "a green square on a yellow background", **RUN)[0]
    assert errors[-1] < errors[0]
    assert errors[-1] < 0.5 * float(np.abs(other - expected).mean())
    progress = [event for event in events if event.type.endswith("progress")]
    assert [(event.step, event.phase) for event in progress] == [
        (step, "full" if step < 3 else "gated") for step in range(6)
    ]


def test_a_stream_of_several_images(client: Any) -> None:
    events = list(client.images.generate(prompt=PROMPT, n=2, stream=True, extra_body=RUN))
    assert [(event.type, event.image) for event in events] == [
        ("image_generation.completed", 0), ("image_generation.completed", 1)
    ]  # fmt: skip


def test_a_benchmarks_request(server: HttpServer) -> None:
    """What vLLM-Omni's diffusion_benchmark_serving.py sends with --backend openai."""
    side = server.pool.find(None).manifest.size.width.opt
    fields = {
        "model": "shapes", "prompt": PROMPT, "n": 1, "size": f"{side}x{side}",
        "response_format": "b64_json", "seed": 11, "num_inference_steps": 6,
    }  # fmt: skip
    headers = {"Authorization": "Bearer EMPTY"}
    status, _, content = server.send(
        "/v1/images/generations", json.dumps(fields).encode(), headers=headers
    )
    assert status == 200
    assert pixels(json.loads(content)["data"][0]["b64_json"]).shape == (side, side, 3)


def test_models(client: Any, server: HttpServer) -> None:
    (model,) = client.models.list().data
    assert model.id == "shapes"
    assert client.models.retrieve("shapes").tgate["loaded"] is True
    assert model.tgate["parameters"]["gate_step"]["min"] == 1
    with pytest.raises(openai.NotFoundError, match="unknown model 'other'"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"extra_body": {"steps": 0}}, "steps must be", "steps"),
        ({"extra_body": {"steps": "many"}}, "steps must be a number", "steps"),
        ({"extra_body": {"steps": True}}, "steps must be a whole number", "steps"),
        ({"extra_body": {"steps": [5]}}, "steps must be one value", "steps"),
        ({"extra_body": {"steps": 5, "num_inference_steps": 5}}, "are one parameter", "steps"),
        ({"extra_body": {"gate_step": 0}}, "gate_step", "gate_step"),
        ({"extra_body": {"cfg": 5}}, "unknown field 'cfg'", "cfg"),
        ({"extra_body": {"seed": -1}}, "seed must be", "seed"),
        ({"extra_body": {"seed": 1.5}}, "seed must be a whole number", "seed"),
        ({"extra_body": {"scheduler": "none"}}, "unknown scheduler", "scheduler"),
        ({"extra_body": {"image": "/etc/passwd"}}, "base64|image", "image"),
        ({"extra_body": {"deadline": -1}}, "deadline must be", None),
        ({"n": 0}, "n must be 1 to 10", "n"),
        ({"n": 11}, "n must be 1 to 10", "n"),
        ({"size": "65x65"}, "65", None),
        ({"size": "1024"}, "size must be WxH", "size"),
        ({"output_format": "gif"}, "output_format must be", "output_format"),
        ({"background": "transparent"}, "transparent", "background"),
        ({"prompt": "x" * 20000}, "20000 bytes", "prompt"),
        ({"partial_images": 100, "stream": True}, "partial_images must be", "partial_images"),
    ],
)
def test_refused(client: Any, fields: dict[str, Any], message: str, param: str | None) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.images.generate(**{"prompt": PROMPT, **fields})
    assert caught.value.status_code == 400
    if param:
        assert caught.value.param == param


def test_a_key_is_asked_for(shapes_bundle: Path) -> None:
    options = ServeOptions(api_keys=frozenset({"sesame", "other"}))
    with HttpServer({"shapes": shapes_bundle}, options) as server:
        for key in ("", "sesam", "sesame "):
            status, headers, body = server.send(
                "/v1/models", headers={"Authorization": f"Bearer {key}x"}
            )
            assert status == 401
            assert headers["www-authenticate"] == "Bearer"
            assert json.loads(body)["error"]["code"] == "invalid_api_key"
        assert server.send("/sdapi/v1/options")[0] == 401
        basic = base64.b64encode(b"user:other").decode()
        assert server.send("/v1/models", headers={"Authorization": f"Basic {basic}"})[0] == 200
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sesame")
        assert client.models.list().data
        for path in ("/healthz", "/readyz", "/metrics"):
            assert server.send(path)[0] == 200
