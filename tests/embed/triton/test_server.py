"""What clients of a real server see: HTTP and gRPC, on loopback."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from triton_server import Server

from tests.runtime.batching.test_batcher import mixed
from tgate_export import TGatePipeline
from tgate_export.embed.triton.client import Progress, ServerError, TGateClient

# As in tests/runtime/batching: the same kernels on another batch.
TOLERANCE = 1e-4
PROMPT = "a red circle on a blue background"
RUN: dict[str, Any] = {"steps": 6, "gate_step": 3, "seed": 11}


@pytest.fixture(scope="module")
def client(server: Server) -> TGateClient:
    return TGateClient(server.grpc, "shapes")


def alone(pipeline: TGatePipeline, prompt: str = PROMPT, **options: Any) -> np.ndarray:
    steps = options.pop("steps")
    options = {"output_type": "latent", **options}
    return np.asarray(pipeline(prompt, num_inference_steps=steps, **options).images)


def post(server: Server, path: str, body: bytes) -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://{server.http}{path}", body)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def metric(server: Server, name: str, model: str = "shapes", **labels: str) -> float:
    wanted = {"model": model, **labels}
    return sum(
        value
        for key, value in server.read_metrics().items()
        if key.startswith(name) and all(f'{k}="{v}"' in key for k, v in wanted.items())
    )


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.05)


def test_ready_in_time(server: Server, client: TGateClient) -> None:
    assert client.ready()
    assert server.ready_seconds < 15
    assert not TGateClient(server.grpc, "none").ready()


def test_picture_is_the_runtimes(client: TGateClient, shapes_pipeline: TGatePipeline) -> None:
    result = client.generate(PROMPT, **RUN)
    expected = alone(shapes_pipeline, output_type="np", **RUN)
    assert result.images.dtype == np.uint8
    np.testing.assert_allclose(result.images, np.round(expected * 255), atol=1)
    assert result.seed == RUN["seed"]
    assert set(result.timings["stages"]) == {"encode", "full", "gated", "decode"}
    latents = client.generate(PROMPT, format="latents", **RUN).images
    np.testing.assert_allclose(latents, alone(shapes_pipeline, **RUN), atol=TOLERANCE)


def test_weights_of_words(client: TGateClient, shapes_pipeline: TGatePipeline) -> None:
    prompt, run = "a (red:1.4) circle on [blue]", {**RUN, "prompt_syntax": "a1111"}
    found = client.generate(prompt, format="latents", **run).images
    np.testing.assert_allclose(found, alone(shapes_pipeline, prompt, **run), atol=TOLERANCE)
    assert np.abs(found - alone(shapes_pipeline, prompt, **RUN)).max() > 100 * TOLERANCE
    with pytest.raises(ServerError, match=r"prompt: '\(' at character 1 is not closed"):
        client.generate("(a", **run)


def test_defaults_need_nothing_but_a_prompt(client: TGateClient) -> None:
    first, second = client.generate(PROMPT), client.generate(PROMPT)
    assert first.images.shape == (1, 64, 64, 3)
    assert first.seed != second.seed


def test_files(client: TGateClient) -> None:
    result = client.generate(PROMPT, format="png", num_images=2, **RUN)
    raw = client.generate(PROMPT, num_images=2, **RUN).images
    for file, expected in zip(result.images, raw, strict=True):
        picture = np.asarray(Image.open(io.BytesIO(file)), np.int16)
        assert np.abs(picture - expected).max() <= 1


def test_progress_step_by_step(client: TGateClient) -> None:
    steps: list[Progress] = []
    result = client.generate(
        PROMPT, format="latents", preview=True, on_progress=steps.append, **RUN
    )
    assert [progress.step for progress in steps] == list(range(6))
    assert [progress.phase for progress in steps] == ["full"] * 3 + ["gated"] * 3
    assert {progress.evaluations for progress in steps} == {6}
    assert steps[-1].latents is not None
    np.testing.assert_array_equal(steps[-1].latents, result.images[0])
    assert steps[0].latents is not None
    assert np.abs(steps[0].latents - steps[-1].latents).max() > 0.1


def test_progress_comes_while_it_runs(client: TGateClient) -> None:
    """A run of a second or more: a client that is kept waiting by other work sees it, too."""
    seen: list[float] = []
    client.generate(
        PROMPT, format="latents", steps=50, gate_step=50, num_images=8, seed=1,
        on_progress=lambda _: seen.append(time.monotonic()),
    )  # fmt: skip
    assert len(seen) == 8 * 50  # of every image
    assert seen[-1] - seen[0] > 0.1


def test_64_mixed_requests_at_once(
    server: Server, client: TGateClient, shapes_pipeline: TGatePipeline
) -> None:
    before = metric(server, "tgate_requests_total", outcome="done")
    calls = mixed(64, list(shapes_pipeline.manifest.samplers))
    open_calls = [
        client.start(
            format="latents", steps=call["num_inference_steps"],
            **{name: value for name, value in call.items() if name != "num_inference_steps"},
        )
        for call in calls
    ]  # fmt: skip
    found = [call.result(timeout=300).images for call in open_calls]
    expected = [np.asarray(shapes_pipeline(output_type="latent", **call).images) for call in calls]
    for index, (together, latents) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_allclose(together, latents, atol=TOLERANCE, err_msg=str(calls[index]))
        differences = [np.abs(latents - other).max() for other in expected]
        assert sorted(differences)[1] > 100 * TOLERANCE  # so none can be taken for another
    # At least: what was done before may have been counted later.
    wait_until(lambda: metric(server, "tgate_requests_total", outcome="done") >= before + 64)
    assert metric(server, "tgate_calls_total", stage="full", batch="8") > 0


def test_http(server: Server, client: TGateClient) -> None:
    """What is nothing but asked for is a picture that JSON can hold."""
    body = {"prompt": PROMPT, "id": "request-42", **RUN}
    status, answer = post(server, "/v2/models/shapes/generate", json.dumps(body).encode())
    assert status == 200, answer
    assert len(answer) < 64 * 64 * 3  # raw would be more than three characters a value
    wait_until(lambda: any(event.get("id") == "request-42" for event in server.events()))
    png = base64.b64decode(json.loads(answer)["png"])
    picture = np.asarray(Image.open(io.BytesIO(png)), np.int16)
    assert np.abs(picture - client.generate(PROMPT, **RUN).images[0]).max() <= 1


def test_http_stream(server: Server) -> None:
    body = {"prompt": PROMPT, "format": "base64", "progress": True, **RUN}
    status, answer = post(server, "/v2/models/shapes/generate_stream", json.dumps(body).encode())
    assert status == 200, answer
    events = [json.loads(line[6:]) for line in answer.decode().split("\n\n") if line]
    assert [event["step"] for event in events[:-1]] == list(range(6))
    assert "png" in events[-1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"prompt": "x", "steps": 100000}', "steps must be 1 to 100"),
        (b'{"prompt": "x", "steps": "many"}', "parse"),
        (b'{"prompt": 5}', "parse"),
        (b'{"prompt": "x", "steps": [1, 2]}', "shape|one value"),
        (b"{}", "prompt must be text"),
        (b"", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b'{"prompt": "' + b"x" * 2**20 + b'"}', "prompt has 1048576 bytes"),
        (b'{"prompt": "\xff"}', "UTF-8|JSON|parse"),
        (b'{"prompt": "x", "scheduler": "/etc/passwd"}', "unknown scheduler"),
        (b'{"prompt": "x", "stepz": 5}', "unknown field 'stepz': there are prompt, negative_"),
        (b'{"prompt": "x", "parameters": {"gate-step": 5}}', "unknown field 'gate-step'"),
        (b'{"prompt": "x", "stepz": {"a": 5}}', "stepz"),
    ],
)
def test_malformed_over_http(server: Server, body: bytes, message: str) -> None:
    status, answer = post(server, "/v2/models/shapes/generate", body)
    assert 400 <= status < 600
    assert re.search(message, answer.decode(errors="replace")), answer
    assert server.process.poll() is None


def test_malformed_over_grpc(client: TGateClient, shapes_pipeline: TGatePipeline) -> None:
    """Each is refused, beside a good request that is not disturbed."""
    good = client.start(PROMPT, format="latents", **RUN)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"guidance_scale": [1.0, 2.0]}, "2 values of guidance_scale for 1"),
        ({"latents": np.zeros((1, 3, 8, 8), np.float32)}, "unexpected shape"),
        ({"latents": np.zeros((1, 8, 8, 8), np.float64)}, "unexpected datatype|data-type"),
        ({"latents": np.full((1, 8, 8, 8), np.nan, np.float32)}, "latents hold values that"),
        ({"embeddings": {"prompt_embeds": np.zeros((1, 2, 96), np.float32)}}, "unexpected shape"),
        ({"embeddings": {"no_such_input": np.zeros(1, np.float32)}}, "unexpected|no_such_input"),
        ({"num_images": 10**6}, "1000000 images in a request"),
        ({"width": 63}, "width 63 does not fit"),
        ({"seed": 2**64 - 1, "steps": -5}, "steps must be at least 1"),
        ({"deadline": float("nan")}, "deadline must be above 0 seconds"),
        ({"format": "exe"}, "unknown format"),
    ]
    for options, message in bad:
        with pytest.raises(ServerError, match=message):
            client.generate(PROMPT, timeout=30, **options)
    expected = alone(shapes_pipeline, **RUN)
    np.testing.assert_allclose(good.result(60).images, expected, atol=TOLERANCE)


def test_invalid_utf8_and_raw_bytes(server: Server, client: TGateClient) -> None:
    call = client._send(
        [client._tensor("prompt", np.array([b"\xff\x00\xfe"], np.object_))], "raw", "bad"
    )
    with pytest.raises(ServerError, match="prompt is not UTF-8"):
        call.result(30)


def test_cancelled_call_frees_its_place(server: Server) -> None:
    def cancelled() -> float:
        return metric(server, "tgate_requests_total", "narrow", outcome="cancelled")

    before = cancelled()
    call = TGateClient(server.grpc, "narrow").start("x", steps=100, progress=True)
    next(iter(call))
    call.cancel()
    wait_until(lambda: cancelled() == before + 1)
    wait_until(lambda: metric(server, "tgate_in_flight", "narrow") == 0)


def test_full_queue_is_refused_at_once(server: Server) -> None:
    narrow = TGateClient(server.grpc, "narrow")
    running = [narrow.start("x", steps=100, progress=True) for _ in range(2)]
    next(iter(running[0]))
    wait_until(lambda: metric(server, "tgate_queue_length", "narrow") +
               metric(server, "tgate_in_flight", "narrow") == 2)  # fmt: skip
    started = time.monotonic()
    with pytest.raises(ServerError, match="2 of 2 images are pending, no room for 1 more"):
        narrow.generate("y", timeout=30)
    assert time.monotonic() - started < 1.0
    for call in running:
        call.cancel()
    wait_until(lambda: metric(server, "tgate_in_flight", "narrow") == 0)
    narrow.generate("y", steps=2, timeout=60)


@pytest.mark.parametrize("path", ["generate", "generate_stream"])
def test_full_queue_over_http(server: Server, path: str) -> None:
    """This server answers 400 to whatever a model refuses; newer ones say 503 for this."""
    narrow = TGateClient(server.grpc, "narrow")
    running = narrow.start("x", steps=100, num_images=2, progress=True)
    next(iter(running))
    status, answer = post(server, f"/v2/models/narrow/{path}", b'{"prompt": "y"}')
    assert status == 400
    assert re.search(rb"2 of 2 images are pending, no room for 1 more: try again in about \d+ s",
                     answer), answer  # fmt: skip
    running.cancel()
    wait_until(lambda: metric(server, "tgate_in_flight", "narrow") == 0)


def test_deadlines_are_kept(server: Server) -> None:
    narrow = TGateClient(server.grpc, "narrow")
    started = time.monotonic()
    with pytest.raises(ServerError, match=r"the deadline of 0\.2\d* s has passed"):
        narrow.generate("x", steps=100, deadline=0.2)
    assert time.monotonic() - started < 10.0  # of the 20 that it would take
    narrow.generate("x", steps=2, deadline=60.0)


def test_log_has_requests_and_no_prompts(server: Server, client: TGateClient) -> None:
    result = client.generate("a secret prompt" + " z" * 300, steps=2, request_id="request-77")
    assert "z z z" in result.warnings[0]
    wait_until(lambda: any(event.get("id") == "request-77" for event in server.events()))
    (event,) = [event for event in server.events() if event.get("id") == "request-77"]
    assert (event["event"], event["steps"], event["images"]) == ("request", 2, 1)
    assert "secret" not in server.log.read_text()
    assert "z z z" not in server.log.read_text()
    assert any(event["event"] == "ready" for event in server.events())


def test_listens_on_loopback_alone(server: Server) -> None:
    owned = set()
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            owned.add(str(descriptor.readlink()))
        except OSError:
            continue
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in owned:
                address, _, port = fields[1].rpartition(":")
                # IPv4, or the same in IPv6's notation
                listening.add((address.removeprefix("0000000000000000FFFF0000"), int(port, 16)))
    ports = {int(url.rpartition(":")[2]) for url in (server.http, server.grpc, server.metrics)}
    assert listening == {("0100007F", port) for port in ports}


@pytest.mark.parametrize("name", ["..%2f..%2fetc", "%2e%2e", "shapes%2f..%2fshapes", "nonexistent"])
def test_no_path_out_of_the_repository(server: Server, name: str) -> None:
    assert post(server, f"/v2/repository/models/{name}/load", b"{}")[0] >= 400
    assert post(server, f"/v2/models/{name}/generate", b'{"prompt": "x"}')[0] >= 400
    files = {"parameters": {"file:1/model.py": base64.b64encode(b"x").decode(), "config": "{}"}}
    body = json.dumps(files).encode()
    assert post(server, "/v2/repository/models/shapes/load", body)[0] >= 400
    assert server.get("/v2/models/shapes/ready") == 200
