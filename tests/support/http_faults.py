"""What tests of a server's faults share: sockets, slow engines, the command in a process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.http_server import HttpServer, wait_until
from tgate_export.runtime.batching import Batcher

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


@contextmanager
def start(
    bundle: Path, *options: str, files: int | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command; yield its process and its address when it is ready.

    Args:
        bundle: that it serves.
        options: of the command.
        files: that it may have open.
    """
    command = [sys.executable, "-m", "tgate_export", "serve", str(bundle), "--port", "0"]
    limit = ["prlimit", f"--nofile={files}"] if files else []
    process = subprocess.Popen(
        [*limit, *command, "--backend", "onnxruntime:cpu", *options], stderr=subprocess.PIPE,
        text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        url = next(word for word in line.split() if word.startswith("http://"))
        wait_until(lambda: _ready(url), 60)
        yield process, url
    finally:
        process.kill()
        process.communicate()


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
