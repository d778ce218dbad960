"""A server of ours in a thread of the tests' process, on a free port of loopback."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tgate_export.serve.app import create_app
from tgate_export.serve.options import ServeOptions
from tgate_export.serve.pool import ModelPool
from tgate_export.serve.server import listen, make_server


class HttpServer:
    """Serves bundles for the block; `pool` is what it serves."""

    def __init__(
        self,
        bundles: Mapping[str, Path],
        options: ServeOptions | None = None,
        backend: str = "onnxruntime:cpu",
    ) -> None:
        options = options or ServeOptions()
        self.pool = ModelPool(bundles, backend, options.batching, options.memory_bytes)
        self._opened = listen("127.0.0.1", 0)
        self.port: int = self._opened.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = make_server(create_app(self.pool, options), options)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._opened]}, daemon=True
        )

    def __enter__(self) -> HttpServer:
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop as SIGTERM does, and wait for it."""
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def send(
        self,
        path: str,
        body: bytes | None = None,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the headers in small letters, and the body of a response."""
        request = urllib.request.Request(self.url + path, body, dict(headers or {}))
        if body is not None:
            request.add_header("Content-Type", kind)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                found, status = response, response.status
                content = response.read()
        except urllib.error.HTTPError as error:
            found, status, content = error, error.code, error.read()
        return status, {name.lower(): value for name, value in found.headers.items()}, content

    def post(self, path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON that a body of JSON is answered with."""
        status, _, content = self.send(path, json.dumps(fields).encode())
        return status, json.loads(content)


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Wait for what another thread brings about."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.01)
