"""Images that begin with one, by OpenAI's own client."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serve.test_openai import close, pixels
from tests.support.http_server import HttpServer
from tgate_export import TGatePipeline

openai = pytest.importorskip("openai")

RUN: dict[str, Any] = {"num_inference_steps": 6, "gate_step": 2, "seed": 3, "strength": 0.7}


@pytest.fixture(scope="module")
def editing(image_bundle: Path) -> Iterator[HttpServer]:
    with HttpServer({"tiny": image_bundle}) as found:
        yield found


@pytest.fixture(scope="module")
def client(editing: HttpServer) -> Any:
    return openai.OpenAI(base_url=f"{editing.url}/v1", api_key="any", max_retries=0)


def start(editing: HttpServer, kind: str = "PNG", side: int | None = None) -> bytes:
    side = side or editing.pool.find(None).manifest.size.height.opt
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 255, (side, side, 3), np.uint8))
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def form(run: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in run.items()}


def test_an_edit_is_the_pipelines(
    client: Any, editing: HttpServer, image_bundle: Path, tmp_path: Path
) -> None:
    file = start(editing)
    found = client.images.edit(image=("x.png", file), prompt="a circle", extra_body=form(RUN))
    (tmp_path / "x.png").write_bytes(file)
    pipeline = TGatePipeline.from_bundle(image_bundle, "onnxruntime:cpu")
    expected = pipeline("a circle", image=tmp_path / "x.png", **RUN).images[0]
    assert close(pixels(found.data[0].b64_json), np.asarray(expected).astype(int))
    assert found.tgate["parameters"]["strength"] == 0.7
    # Generations take the picture as base64.
    import base64

    answer = editing.post(
        "/v1/images/generations", prompt="a circle", image=base64.b64encode(file).decode(), **RUN
    )[1]
    assert close(pixels(answer["data"][0]["b64_json"]), np.asarray(expected).astype(int))


def test_an_edit_is_streamed(client: Any, editing: HttpServer) -> None:
    events = client.images.edit(
        image=("x.jpg", start(editing, "JPEG")), prompt="a circle", stream=True, partial_images=2,
        extra_body=form(RUN),
    )  # fmt: skip
    assert [event.type for event in events] == [
        "image_edit.partial_image", "image_edit.partial_image", "image_edit.completed",
    ]  # fmt: skip


def test_what_no_edit_is(client: Any, editing: HttpServer) -> None:
    good = ("x.png", start(editing))
    huge = ("x.png", start(editing, side=512))
    for image, fields, message in (
        (("x.png", b"no picture"), {}, "image image cannot be read"),
        (huge, {}, "is 512x512"),
        (good, {"mask": good}, "mask cannot be used"),
        (good, {"extra_body": {"strength": "2"}}, "strength must be"),
        (good, {"extra_body": {"strength": "much"}}, "strength must be a number"),
        (good, {"extra_body": {"n": "x"}}, "n must be a number"),
        ([good, good], {}, "one image is edited at a time"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            client.images.edit(image=image, prompt="a circle", **fields)
    status, _, _ = editing.send("/v1/images/edits", b"{}")
    assert status == 400


def test_a_bundle_without(server: HttpServer, client: Any, editing: HttpServer) -> None:
    other = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="image") as caught:
        other.images.edit(image=("x.png", start(editing, side=64)), prompt="a circle")
    # How it was built, and where, is nobody's who sends requests.
    assert str(server.pool.find(None).path) not in str(caught.value)
    assert "build_bundle" not in str(caught.value)
