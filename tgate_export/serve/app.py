"""The application: routes, errors, what stands before them, and the models' beginning and end."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgate_export.common.errors import TGateError
from tgate_export.serve.a1111 import A1111Routes
from tgate_export.serve.chat import ChatRoutes
from tgate_export.serve.errors import HttpError, answer
from tgate_export.serve.guard import Guard
from tgate_export.serve.metrics import Metrics
from tgate_export.serve.openai import OpenAIRoutes
from tgate_export.serve.options import ServeOptions
from tgate_export.serve.pool import ModelPool

PAGE = Path(__file__).parent / "page"
_log = logging.getLogger("tgate_export.serve")


def create_app(pool: ModelPool, options: ServeOptions | None = None) -> Starlette:
    """Return the application that serves a pool of models; any ASGI server runs it.

    The first model is loaded before the first request, the others when they are first asked for.
    """
    options = options or ServeOptions()
    metrics = Metrics(pool)
    images = OpenAIRoutes(pool, options)

    async def alive(request: Request) -> Response:
        del request
        return _status(pool.alive)

    async def ready(request: Request) -> Response:
        del request
        return _status(pool.alive and not pool.closing)

    async def index(request: Request) -> Response:
        del request
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        async with pool.lend(pool.find(None)):
            pass
        yield
        await pool.close()

    return Starlette(
        routes=[
            Route("/", index),
            Mount("/page", StaticFiles(directory=PAGE)),
            *images.routes(),
            *ChatRoutes(images).routes(),
            *A1111Routes(pool, options).routes(),
            Route("/metrics", metrics.show),
            Route("/healthz", alive),
            Route("/readyz", ready),
        ],
        middleware=[Middleware(_Observer, metrics=metrics), Middleware(Guard, options=options)],
        exception_handlers={
            HTTPException: _http_exception,
            TGateError: answer,
            Exception: answer,  # and its traceback goes to the log
        },
        lifespan=lifespan,
    )


def _status(good: bool) -> Response:
    return JSONResponse({"ok": good}, 200 if good else 503)


async def _http_exception(request: Request, error: Exception) -> Response:
    """Answer what Starlette itself refuses, such as an unknown path."""
    assert isinstance(error, HTTPException)
    words = {404: f"there is no {request.url.path:.80}", 405: f"{request.method} is not for this"}
    message = words.get(error.status_code, error.detail)
    headers = dict(error.headers or {})
    return await answer(request, HttpError(error.status_code, message, headers=headers))


class _Observer:
    """ASGI middleware that counts responses and logs a line of JSON each, without prompts."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = monotonic()
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            seconds = monotonic() - started
            found = scope.get("route")  # its path, for names in paths are anybody's
            route = getattr(found, "path", "other")
            self._metrics.responses.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if route.startswith(("/v1", "/sdapi")):
                line = {"method": scope["method"], "route": route, "status": status,
                        "seconds": round(seconds, 4), **scope.get("tgate", {})}  # fmt: skip
                _log.info(json.dumps(line))
