"""Images by the chat API, as OpenAI's client and vLLM-Omni's benchmark send it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serve.test_openai import PROMPT, RUN, alone, close, pixels
from tests.support.http_server import HttpServer
from tgate_export import TGatePipeline

CHAT = "/v1/chat/completions"


def test_an_answer_is_the_pipelines(server: HttpServer, shapes_pipeline: TGatePipeline) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
    found = client.chat.completions.create(
        model="shapes", extra_body=RUN,
        messages=[
            {"role": "user", "content": "something else"},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
        ],
    )  # fmt: skip
    ((part),) = found.choices[0].message.content
    head, _, text = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert close(pixels(text), alone(shapes_pipeline, **RUN)[0])


def test_a_benchmarks_request(server: HttpServer, shapes_pipeline: TGatePipeline) -> None:
    side = server.pool.find(None).manifest.size.width.opt
    extra = {"height": side, "width": side, "num_inference_steps": 6, "seed": 11, "gate_step": 3}
    status, answer = server.post(
        CHAT, model="shapes", messages=[{"role": "user", "content": PROMPT}], extra_body=extra
    )
    assert status == 200
    url = answer["choices"][0]["message"]["content"][0]["image_url"]["url"]
    assert close(pixels(url.partition(",")[2]), alone(shapes_pipeline, **RUN)[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "messages must have one of a user"),
        ({"messages": "x"}, "messages must have one of a user"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages must have one of a user"),
        ({"messages": [{"role": "user", "content": None}]}, "must have a text"),
        ({"messages": [{"role": "user", "content": [3]}]}, "made of texts"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "made of texts"),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
            "made of texts",
        ),
        ({"messages": [{"role": "user", "content": "x"}], "stream": True}, "not streamed"),
        ({"messages": [{"role": "user", "content": "x"}], "width": 64}, "go together"),
        ({"messages": [{"role": "user", "content": "x"}], "extra_body": 3}, "must be an object"),
        ({"messages": [{"role": "user", "content": "x"}], "extra_body": {"cfg": 3}}, "unknown"),
    ],
)  # fmt: skip
def test_refused(server: HttpServer, fields: dict[str, Any], message: str) -> None:
    status, answer = server.post(CHAT, **fields)
    assert (status, message in answer["error"]["message"]) == (400, True), answer
