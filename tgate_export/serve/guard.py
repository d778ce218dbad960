"""What stands before every route: names, keys, sizes and times of bodies, origins."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgate_export.serve.errors import HttpError, body_for
from tgate_export.serve.options import ServeOptions

_OPEN = ("/v1/", "/sdapi/")  # with a key, where there are keys
_JSON_ROUTES = ("/v1/images/generations", "/v1/chat/", "/sdapi/")
_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data: blob:; "
     b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)  # fmt: skip


_SMALL_BYTES = 64 * 1024  # of a body, for which there is always room
_BODIES = 16  # of the largest size, that there is room for at a time
_LINGER_SECONDS = 5.0


class Guard:
    """ASGI middleware; refuses before a body is read."""

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self._app = app
        self._options = options
        self._requests = 0  # that are being answered
        self._room = _Room(_BODIES * options.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = _Body(receive, self._options, self._room)
        started = closes = False

        async def send_guarded(message: Message) -> None:
            nonlocal started, closes
            if message["type"] == "http.response.start":
                started = True
                closes = (b"connection", b"close") in message["headers"]
                message["headers"] = [*message["headers"], *_HEADERS]
            elif closes and not body.whole and not message.get("more_body", False):
                # Closed at once, it would take the answer from who is still sending.
                await send({**message, "more_body": True})
                await _discard(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        self._requests += 1
        try:
            self._check_busy(scope["path"])
            self._check_host(headers)
            self._check_origin(headers)
            self._check_key(scope["path"], headers)
            self._check_body(scope, headers)
            await self._app(scope, body.receive, send_guarded)
        except HttpError as error:
            if started:
                raise
            await _refuse(scope["path"], error, send_guarded)
        finally:
            self._requests -= 1
            body.forget()

    def _check_busy(self, path: str) -> None:
        most = self._options.max_requests
        if self._requests > most and path.startswith(_OPEN):
            raise HttpError(
                503, f"the server is answering {most} requests: try again later", code="busy",
                headers={"Retry-After": "5"},
            )  # fmt: skip

    def _check_host(self, headers: Headers) -> None:
        if not self._options.hosts:
            return
        name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if name not in self._options.hosts:
            raise HttpError(
                421,
                f"this server is not called {name!r:.80} but "
                f"{', '.join(sorted(self._options.hosts))}",
                code="unknown_host",
            )

    def _check_origin(self, headers: Headers) -> None:
        """Refuse pages of other sites: a browser sends their forms unasked."""
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            raise HttpError(403, f"pages of {origin:.80} may not use this server", code="origin")

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self._options.api_keys or not path.startswith(_OPEN):
            return
        found = _key(headers.get("authorization", ""))
        if not any(hmac.compare_digest(found, key.encode()) for key in self._options.api_keys):
            raise HttpError(
                401,
                "this server wants an API key: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_body(self, scope: Scope, headers: Headers) -> None:
        most = self._options.max_body_bytes
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise _too_large(most)
        if scope["method"] == "POST" and scope["path"].startswith(_JSON_ROUTES):
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            has_body = length not in ("", "0") or "transfer-encoding" in headers
            if has_body and kind != "application/json":
                raise HttpError(
                    415, f"the body is {kind or 'of no type'}, not application/json", code="type"
                )


def _key(authorization: str) -> bytes:
    """Return the key that a header holds: a bearer's, or the password of A1111's clients."""
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value.encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _too_large(most: int) -> HttpError:
    return HttpError(
        413,
        f"the body is larger than {most} bytes, the most that this server reads",
        code="too_large",
        headers={"Connection": "close"},
    )


@dataclass
class _Room:
    """Memory for the bodies of all requests.

    Attributes:
        left: bytes; below 0 for small bodies.
    """

    left: int


class _Body:
    """A request's body, which ends in time and below a size.

    Attributes:
        whole: whether all of it has come.
    """

    def __init__(self, receive: Receive, options: ServeOptions, room: _Room) -> None:
        self._receive = receive
        self._options = options
        self._room = room
        self._bytes = 0
        self._until: float | None = None
        self.whole = False

    async def receive(self) -> Message:
        """Return the next message; after the body that is the client's going away."""
        if self.whole:
            return await self._receive()
        clock, seconds = asyncio.get_running_loop().time, self._options.body_seconds
        self._until = self._until or clock() + seconds
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise HttpError(
                408, f"the body did not come within {seconds:g} s", code="too_slow",
                headers={"Connection": "close"},
            ) from None  # fmt: skip
        self._take(len(message.get("body", b"")))
        self.whole = not message.get("more_body", False)
        return message

    def _take(self, size: int) -> None:
        self._bytes += size
        self._room.left -= size
        if self._bytes > self._options.max_body_bytes:
            raise _too_large(self._options.max_body_bytes)
        if self._room.left < 0 and self._bytes > _SMALL_BYTES:
            raise HttpError(
                503, "there is no room for a body of this size now: try again later", code="busy",
                headers={"Retry-After": "5", "Connection": "close"},
            )  # fmt: skip

    def forget(self) -> None:
        """Make room: the request is answered."""
        self._room.left += self._bytes
        self._bytes = 0


async def _discard(receive: Receive) -> None:
    """Read what is still sent, for a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass


async def _refuse(path: str, error: HttpError, send: Send) -> None:
    content = json.dumps(body_for(path, error)).encode()
    named: Sequence[tuple[bytes, bytes]] = [
        (name.lower().encode(), value.encode()) for name, value in error.headers.items()
    ]
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(content)).encode()),
                *named,
            ],
        }
    )
    await send({"type": "http.response.body", "body": content})
