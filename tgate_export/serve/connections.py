"""Connections over which nothing comes, or nothing goes: they make room for others in time."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

HEAD_SECONDS = 15.0  # from a connection, or the last response on it, to the next request's head
STALL_SECONDS = 60.0  # in which a client takes what it is sent
ACCEPTS = 16  # in a turn of the event loop
_COMING_AND_GOING = 4 * ACCEPTS  # connections that are not counted yet, or not closed yet
_OTHER_FILES = 256  # that a process has open beside its connections


class Connections(ServerState):
    """What a server's connections know of one another.

    Attributes:
        most: open at a time; for one more, the one that asks for nothing for longest goes.
        silent: those that ask for nothing, the longest ones first.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.silent: dict[Protocol, None] = {}


class Protocol(H11Protocol):
    """HTTP as uvicorn has it, but nobody holds a connection without asking or reading."""

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._all = server_state
        self._silence: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; where there are too many connections, one ends."""
        super().connection_made(transport)
        self._note()
        if len(self._all.connections) > self._all.most and self._all.silent:
            oldest = next(iter(self._all.silent))
            del self._all.silent[oldest]
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take what comes, which may be a request."""
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._note()

    def pause_writing(self) -> None:
        """Wait until the client reads, but not for ever."""
        super().pause_writing()
        self._stall = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._heard()
        self._read()

    def _note(self) -> None:
        """Note whether a request is under way."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._heard()
        elif self._silence is None:
            self._all.silent[self] = None
            self._silence = self.loop.call_later(HEAD_SECONDS, self._end)

    def _heard(self) -> None:
        self._all.silent.pop(self, None)
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _read(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _end(self) -> None:
        self.transport.close()  # when what it is to be sent is gone
        self._silence = self.loop.call_later(STALL_SECONDS, self.transport.abort)


def most_connections(wanted: int) -> int:
    """Return how many may be open, by how many files this process may have open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, max(files - _OTHER_FILES, files // 2) - _COMING_AND_GOING))


def allow_files() -> None:
    """Allow as many connections as the system does, not the few that shells begin with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 65536
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), hard))
