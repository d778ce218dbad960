"""Clients that are broken, slow, rude or gone: all others are answered."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.support.http_server import HttpServer, wait_until
from tgate_export.runtime.batching import Batcher, BatchingOptions
from tgate_export.serve import server as server_module
from tgate_export.serve.options import ServeOptions

PROMPT = "a red circle on a blue background"
IMAGES = "/v1/images/generations"
SHORT: dict[str, Any] = {"prompt": PROMPT, "steps": 2, "seed": 1}
LONG: dict[str, Any] = {"prompt": PROMPT, "steps": 100, "gate_step": 100}


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def head(length: int | str, kind: str = "application/json") -> bytes:
    return (
        f"POST {IMAGES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def answers(server: HttpServer) -> bool:
    return server.post(IMAGES, **SHORT)[0] == 200


def batcher_of(server: HttpServer, name: str | None = None) -> Batcher:
    batcher = server.pool.find(name).batcher
    assert batcher is not None
    return batcher


@contextmanager
def slowly(batcher: Batcher) -> Iterator[None]:
    """Let every call take longer, so that a hundred steps last for seconds on any machine."""
    run = batcher._runner.run

    def slow(*arguments: Any) -> float:
        time.sleep(0.03)
        return run(*arguments)

    with mock.patch.object(batcher._runner, "run", slow):
        yield


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
        b'{"prompt": "a", "__class__": 1}',
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


def test_silent_connections_are_closed(
    shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_HEAD_SECONDS", 1.0)
    with HttpServer({"shapes": shapes_bundle}) as server:
        with connect(server) as silent, connect(server) as slow:
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
            assert silent.recv(100) == b""
            assert slow.recv(100) == b""
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        kept.request("GET", "/healthz")
        kept.getresponse().read()
        time.sleep(0.2)
        kept.request("GET", "/healthz")  # within the time: the connection is used again
        assert kept.getresponse().read()


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


def test_a_reader_that_reads_nothing(server: HttpServer) -> None:
    fields = {**LONG, "stream": True, "progress": True, "partial_images": 64}
    body = json.dumps(fields).encode()
    batcher = batcher_of(server)
    with connect(server) as client, slowly(batcher):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(head(len(body)) + body)
        wait_until(lambda: batcher.stats().in_flight == 1)
        assert all(answers(server) for _ in range(3))


def test_connections_that_come_and_go(server: HttpServer) -> None:
    for _ in range(1000):
        connect(server).close()
    assert answers(server)


def test_memory_that_runs_out_is_one_requests(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = batcher_of(server)
    real = batcher._runner.run

    def run(*arguments: Any) -> float:
        monkeypatch.setattr(batcher._runner, "run", real)
        raise MemoryError

    monkeypatch.setattr(batcher._runner, "run", run)
    status, answer = server.post(IMAGES, **SHORT)
    assert (status, answer["error"]["type"]) == (500, "server_error")
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


def start(bundle: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """Run the command; return its process and its address."""
    command = [sys.executable, "-m", "tgate_export", "serve", str(bundle), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--backend", "onnxruntime:cpu", *options], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert process.stderr is not None
    line = process.stderr.readline()
    url = next(word for word in line.split() if word.startswith("http://"))
    wait_until(lambda: _ready(url), 60)
    return process, url


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def ask(url: str, fields: dict[str, Any]) -> int:
    request = urllib.request.Request(url + IMAGES, json.dumps(fields).encode())
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_told_to_stop_it_finishes_what_it_took(shapes_bundle: Path) -> None:
    process, url = start(shapes_bundle)
    try:
        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(ask, url, {**SHORT, "steps": 100}) for _ in range(4)]
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert [each.result() for each in running] == [200] * 4
        assert process.wait(30) == 0
        assert process.stderr is not None
        *lines, last = process.stderr.read().splitlines()
        assert last == "Stopped."
        # A line a request, without its prompt.
        logged = [json.loads(line) for line in lines if line.startswith("{")]
        assert [entry["status"] for entry in logged] == [200] * 4
        assert not any("circle" in line for line in lines)
    finally:
        process.kill()


def test_told_to_stop_it_does_not_wait_for_ever(shapes_bundle: Path) -> None:
    process, url = start(shapes_bundle, "--stop-seconds", "1")
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(ask, url, {**LONG, "n": 10})
            time.sleep(0.3)
            started = time.monotonic()
            process.send_signal(signal.SIGINT)
            with suppress(OSError, http.client.HTTPException):  # cut off
                assert running.result() in (500, 503)
            assert process.wait(30) == 0
            assert time.monotonic() - started < 15
    finally:
        process.kill()


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
