"""Clients that are broken, slow, rude or gone: all others are answered."""

from __future__ import annotations

import http.client
import io
import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.http_faults import (
    IMAGES,
    LONG,
    SHORT,
    answers,
    ask,
    batcher_of,
    connect,
    head,
    slowly,
    start,
)
from tests.support.http_server import HttpServer, wait_until
from tgate_export.runtime.batching import BatchingOptions
from tgate_export.serve.options import ServeOptions


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "guidance_scale": NaN}', b'{"prompt": "a", "guidance_scale": Infinity}',
        b'{"prompt": "a", "guidance_scale": 1e999}', b'{"prompt": "a", "steps": 1e3}',
        b'{"prompt": {"a": 1}}', b'{"prompt": ["a"]}', b'{"prompt": "a", "n": "1"}',
        b'{"prompt": "a", "n": 99999999999999999999999}', b'{"prompt": "a", "model": 3}',
        b'{"prompt": "a", "seed": 18446744073709551616}', b"[" * 100000,
        b'{"a":' * 100000, b'{"prompt": null}', b'{"prompt": "a", "stream": 1}',
        b'{"prompt": "a", "steps": ' + b"9" * 5000 + b"}", b'{"prompt": "a", "": 1}',
        b'{"prompt": "a", "__class__": 1}', b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "a", "x": {"y": 1, "y": 2}}', b'{"prompt": "a", "user": -Infinity}',
        b'{"prompt": "a", "user": -1e999}', b'{"prompt": "a", "\\udc00": 1}',
        b'{"prompt": "a", "user": "\\ud83d \\ude00"}', b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\xc0\x80"}', '{"prompt": "a"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"prompt": "a"}', b'{"prompt": "a",}', b'{"prompt": "a"} {}',
        b"{'prompt': 'a'}", b'{"prompt": "a\n"}', b'{"prompt": "a\x00"}', b'{"prompt": "a',
        b'{"prompt": "' + b'\\"' * 500000, b'{"prompt": "a", "user": [' + b"0," * 200000 + b"0]}",
        b'{"prompt": "a", "user": ' + b"[" * 65 + b"]" * 65 + b"}", b"]" * 10**6,
        b'{"prompt": "a", "%s": 1, "%s": 1}' % (b"k" * 5000, b"k" * 5000), b'{"prompt": 0x10}',
        b'{"prompt": "a", "n": 01}', b'{"prompt": "a", "deadline": 1e400}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(server: HttpServer, body: bytes) -> None:
    status, _, content = server.send(IMAGES, body or b" ")
    assert status == 400
    error = json.loads(content)["error"]
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    assert len(error["message"]) < 1000
    assert answers(server)


@pytest.mark.parametrize(
    ("headers", "kind", "status"),
    [
        ({}, "text/plain", 415),
        ({}, "application/x-www-form-urlencoded", 415),
        ({"Origin": "http://elsewhere.example"}, "application/json", 403),
        ({"Origin": "null"}, "application/json", 403),
    ],
)
def test_other_sites_pages_generate_nothing(
    server: HttpServer, headers: dict[str, str], kind: str, status: int
) -> None:
    found = server.send(IMAGES, json.dumps(SHORT).encode(), kind, headers)
    assert found[0] == status
    own = {"Origin": server.url}
    assert server.send(IMAGES, json.dumps(SHORT).encode(), headers=own)[0] == 200


def test_unknown_paths_and_methods(server: HttpServer) -> None:
    for path, body, status in (
        ("/v1/images", None, 404), ("/v1/chat", b"{}", 404), (IMAGES, None, 405),
        ("/page/../app.py", None, 404), ("/page/%2e%2e/app.py", None, 404),
        ("/v1/models/x", None, 404),
    ):  # fmt: skip
        found, _, content = server.send(path, body)
        assert (path, found) == (path, status)
        assert "error" in json.loads(content)


@pytest.fixture(scope="module")
def strict(shapes_bundle: Path) -> Iterator[HttpServer]:
    """A server with small limits."""
    options = ServeOptions(
        hosts=frozenset({"127.0.0.1", "localhost"}), max_body_bytes=10000, body_seconds=1.0,
        batching=BatchingOptions(max_pending=2),
    )  # fmt: skip
    with HttpServer({"shapes": shapes_bundle}, options) as found:
        yield found


def test_a_gigabyte_is_refused_unread(strict: HttpServer) -> None:
    with connect(strict) as client:
        client.sendall(head(2**30))
        assert client.recv(4096).startswith(b"HTTP/1.1 413")
    with connect(strict) as client:  # of a length that is not said
        client.sendall(head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
        client.sendall(3 * chunk)
        assert client.recv(4096).startswith(b"HTTP/1.1 413")
    assert answers(strict)


def test_a_body_that_does_not_come(strict: HttpServer) -> None:
    with connect(strict) as client:
        started = time.monotonic()
        client.sendall(head(100) + b"{")
        assert client.recv(4096).startswith(b"HTTP/1.1 408")
        assert 0.5 < time.monotonic() - started < 10
    assert answers(strict)


def test_other_names(strict: HttpServer) -> None:
    assert strict.send("/v1/models", headers={"Host": "rebound.example:80"})[0] == 421
    assert strict.send("/v1/models", headers={"Host": "localhost"})[0] == 200


def test_too_much_is_refused_with_when_to_come_again(strict: HttpServer) -> None:
    batcher = batcher_of(strict)
    with ThreadPoolExecutor(2) as pool, slowly(batcher):
        running = [pool.submit(strict.post, IMAGES, **LONG, deadline=1.5) for _ in range(2)]
        wait_until(lambda: batcher.stats().in_flight == 2)
        status, headers, content = strict.send(IMAGES, json.dumps(SHORT).encode())
        assert status == 429
        assert 1 <= int(headers["retry-after"]) <= 600
        assert json.loads(content)["error"]["code"] == "queue_full"
        # More than ever fits is the caller's fault.
        assert strict.post(IMAGES, **{**SHORT, "n": 3})[0] == 400
        for each in running:
            status, answer = each.result()
            assert (status, answer["error"]["code"]) == (504, "deadline")
    assert answers(strict)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_frees_the_place(server: HttpServer, stream: bool) -> None:
    batcher = batcher_of(server)
    before = batcher.stats().outcomes.get("cancelled", 0)
    body = json.dumps({**LONG, "stream": stream, "progress": stream}).encode()
    with connect(server) as client, slowly(batcher):
        client.sendall(head(len(body)) + body)
        wait_until(lambda: batcher.stats().in_flight == 1)
        if stream:
            assert client.recv(100)
    wait_until(lambda: batcher.stats().in_flight == 0)
    assert batcher.stats().outcomes["cancelled"] == before + 1
    assert answers(server)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("at 0x7f\nin layer 3")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_fails_is_one_requests(
    server: HttpServer,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    stream: bool,
) -> None:
    """It says so in one line, the log has the reason, and who is in other calls is answered."""
    batcher = batcher_of(server)
    real = batcher._runner.run
    log = io.StringIO()
    handler = logging.StreamHandler(log)

    def run(shape: Any, stage: Any, images: Any) -> float:
        if any(image.request.prompts == ("bad",) for image in images):
            raise error
        return real(shape, stage, images)

    monkeypatch.setattr(batcher._runner, "run", run)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    body = json.dumps({**SHORT, "prompt": "bad", "stream": stream}).encode()
    with ThreadPoolExecutor(2) as pool:
        good = [pool.submit(server.post, IMAGES, **{**SHORT, "steps": 30}) for _ in range(2)]
        wait_until(lambda: batcher.stats().in_flight == 2)
        status, _, content = server.send(IMAGES, body)
        assert [each.result()[0] for each in good] == [200, 200]
    assert status == (200 if stream else 500)
    text = content.decode().strip().removeprefix("event: error\ndata: ")
    found = json.loads(text)["error"]
    assert found["type"] == "server_error"
    words = {MemoryError: "out of memory: ask for fewer or smaller images",
             RuntimeError: "RuntimeError: the server's log has the reason"}  # fmt: skip
    assert found["message"] == words[type(error)]
    wait_until(lambda: type(error).__name__ in log.getvalue())
    assert answers(server)


def test_models_make_room_for_one_another(shapes_bundle: Path, tiny_bundle: Path) -> None:
    def size(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    options = ServeOptions(memory_bytes=max(size(shapes_bundle), size(tiny_bundle)))
    with HttpServer({"shapes": shapes_bundle, "tiny": tiny_bundle}, options) as server:

        def loaded() -> list[bool]:
            models = json.loads(server.send("/v1/models")[2])["data"]
            return [model["tgate"]["loaded"] for model in models]

        assert loaded() == [True, False]
        assert server.post(IMAGES, **SHORT, model="tiny")[0] == 200
        assert loaded() == [False, True]
        assert server.post(IMAGES, **SHORT)[0] == 200
        assert loaded() == [True, False]
        # One that is used stays.
        with ThreadPoolExecutor(1) as pool, slowly(batcher_of(server)):
            running = pool.submit(server.post, IMAGES, **LONG, deadline=1.5)
            model = server.pool.find("shapes")
            wait_until(lambda: model.users == 1)
            status, headers, _ = server.send(
                IMAGES, json.dumps({**SHORT, "model": "tiny"}).encode()
            )
            assert (status, headers["retry-after"]) == (503, "5")
            assert running.result()[0] == 504


def test_told_to_stop_it_finishes_what_it_took(shapes_bundle: Path) -> None:
    with start(shapes_bundle) as (process, url), ThreadPoolExecutor(8) as pool:
        host, _, port = url.removeprefix("http://").partition(":")
        kept = http.client.HTTPConnection(host, int(port), timeout=30)
        assert is_healthy(kept)
        running = [pool.submit(ask, url, {**SHORT, "steps": 100}) for _ in range(8)]
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(int(port)))
        assert not all(each.done() for each in running)
        with pytest.raises((OSError, http.client.HTTPException)):
            is_healthy(kept)
        assert [each.result() for each in running] == [200] * 8
        assert process.wait(30) == 0
        assert process.stderr is not None
        *lines, last = process.stderr.read().splitlines()
        assert last == "Stopped."
        # A line a request, without its prompt.
        logged = [json.loads(line) for line in lines if line.startswith("{")]
        assert [entry["status"] for entry in logged] == [200] * 8
        assert not any("circle" in line for line in lines)


def is_healthy(connection: http.client.HTTPConnection) -> bool:
    connection.request("GET", "/healthz")
    return bool(json.loads(connection.getresponse().read())["ok"])


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_told_to_stop_it_does_not_wait_for_ever(shapes_bundle: Path) -> None:
    with (
        start(shapes_bundle, "--stop-seconds", "1") as (process, url),
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(ask, url, {**LONG, "n": 10})
        time.sleep(0.3)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        with suppress(OSError, http.client.HTTPException):  # cut off
            assert running.result() in (500, 503)
        assert process.wait(30) == 0
        assert time.monotonic() - started < 15


def test_a_port_that_is_taken(shapes_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        command = [
            sys.executable,
            "-m",
            "tgate_export",
            "serve",
            str(shapes_bundle),
            "--port",
            port,
        ]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr.startswith(f"error: cannot listen on 127.0.0.1 port {port}: ")
    assert found.stderr.rstrip().endswith(": choose another")


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tgate_export", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_cannot_be_served(tiny_bundle_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    bundle = str(tiny_bundle_copy)
    for arguments, code, message in (
        ([str(tmp_path / "none")], 1, "error: "),
        ([bundle, f"bundle={bundle}"], 2, "are both called bundle: give one as NAME="),
        ([bundle, "--api-key-file", str(tmp_path / "empty")], 2, "holds no key"),
        ([bundle, "--max-pending", "0"], 2, "max_pending must be at least 1"),
        ([bundle, "--host", "no.such.name.invalid"], 1, "cannot listen on no.such.name.invalid"),
    ):
        found = refused(*arguments, "--port", "0")
        assert (found.returncode, message in found.stderr) == (code, True), found.stderr
        assert "Traceback" not in found.stderr
    (weights,) = tiny_bundle_copy.glob("graphs/text_encoder.weights")
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    found = refused(bundle, "--port", "0")
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1].startswith("error: ")
    assert "sha256" in found.stderr
    assert "Traceback" not in found.stderr
