"""Runs the application with uvicorn: one process, stopped gently by SIGTERM or Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from tgate_export.common.errors import TGateError
from tgate_export.serve.connections import (
    ACCEPTS,
    HEAD_SECONDS,
    Connections,
    Protocol,
    allow_files,
    most_connections,
)
from tgate_export.serve.options import ServeOptions

_BACKLOG = 2048  # connections that wait to be accepted


def listen(host: str, port: int) -> socket.socket:
    """Open the socket, before anything is loaded.

    Raises:
        TGateError: it cannot be opened.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise TGateError(
            f"cannot listen on {host} port {port}: {error.strerror or error}: choose another"
        ) from error


def serve(app: Starlette, options: ServeOptions, opened: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; what was begun is finished first."""
    allow_files()
    make_server(app, options).run(sockets=[opened])


def make_server(app: Starlette, options: ServeOptions) -> uvicorn.Server:
    """Return the server of an application, for `run(sockets=[...])`."""
    config = uvicorn.Config(
        app,
        loop="asyncio",  # uvloop, where it is installed, accepts a whole backlog at once
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=ACCEPTS,
        timeout_graceful_shutdown=max(1, int(options.stop_seconds)),
        timeout_keep_alive=int(HEAD_SECONDS),
    )
    return _Server(config, most_connections(options.max_connections))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, most_connections: int) -> None:
        super().__init__(config)
        self.server_state = Connections(most_connections)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        for each in sockets or []:
            each.listen(_BACKLOG)  # asyncio has one number for this and for accepts in a turn

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end the server, and be done with them."""
        with super().capture_signals():
            try:
                yield
            finally:
                self._captured_signals.clear()  # a server that was told to stop has not failed
