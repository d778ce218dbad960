"""Runs the application with uvicorn: one process, stopped gently by SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from tgate_export.common.errors import TGateError
from tgate_export.serve.options import ServeOptions

_HEAD_SECONDS = 15.0  # from a connection, or the last response on it, to the next request's head


def listen(host: str, port: int) -> socket.socket:
    """Open the socket, before anything is loaded.

    Raises:
        TGateError: it cannot be opened.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise TGateError(
            f"cannot listen on {host} port {port}: {error.strerror or error}: choose another"
        ) from error


def serve(app: Starlette, options: ServeOptions, opened: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; what was begun is finished first."""
    _allow_files()
    make_server(app, options).run(sockets=[opened])


def make_server(app: Starlette, options: ServeOptions) -> uvicorn.Server:
    """Return the server of an application, for `run(sockets=[...])`."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=options.max_connections,
        timeout_graceful_shutdown=max(1, int(options.stop_seconds)),
        timeout_keep_alive=int(_HEAD_SECONDS),
    )
    return _Server(config)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end the server, and be done with them."""
        with super().capture_signals():
            try:
                yield
            finally:
                self._captured_signals.clear()  # a server that was told to stop has not failed


class _Protocol(H11Protocol):
    """HTTP as uvicorn has it, but nobody holds a connection without asking for something."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_head()

    def _expect_head(self) -> None:
        self.loop.call_later(_HEAD_SECONDS, self._end_if_silent, self.cycle)

    def _end_if_silent(self, last: Any) -> None:
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()


def _allow_files() -> None:
    """Allow as many connections as the system does, not the few that shells begin with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 65536
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), hard))
