"""OpenAI's image API: `/v1/images/generations`, `/v1/images/edits` and `/v1/models`.

Fields, answers, streamed events and errors are those of OpenAI's reference
(https://platform.openai.com/docs/api-reference/images). Beside its fields stand the bundle's
parameters, a negative prompt and a seed; beside its answers, under `tgate`, what was used.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tgate_export.common.errors import InvalidRequestError
from tgate_export.parameters import short_name
from tgate_export.runtime.batching import BatchedOutput
from tgate_export.runtime.picture_file import made_with
from tgate_export.serve import fields
from tgate_export.serve.errors import body as error_body
from tgate_export.serve.errors import described
from tgate_export.serve.fields import Fields
from tgate_export.serve.forms import read_form
from tgate_export.serve.generation import (
    Steps,
    Wanted,
    files,
    in_encoder,
    note,
    submitted,
    unless_gone,
)
from tgate_export.serve.model_card import model_card
from tgate_export.serve.options import ServeOptions
from tgate_export.serve.pool import ModelPool

_log = logging.getLogger("tgate_export.serve")
_KINDS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
# What OpenAI's models are told and these cannot be, without harm to what comes out.
_IGNORED = ("quality", "style", "moderation", "user", "safety_identifier", "input_fidelity")
_KNOWN = (
    "prompt", "negative_prompt", "model", "n", "size", "seed", "response_format", "output_format",
    "output_compression", "background", "stream", "partial_images", "progress", "deadline",
)  # fmt: skip
_MOST_PARTIAL = 64  # OpenAI's is 3


@dataclass(frozen=True)
class Call:
    """A parsed body: what is to be made, and how it is to be sent."""

    wanted: Wanted
    format: str
    as_url: bool
    stream: bool
    partial_images: int
    progress: bool
    event: str  # what streamed events' types begin with


class OpenAIRoutes:
    """The routes, over a pool of models."""

    def __init__(self, pool: ModelPool, options: ServeOptions) -> None:
        self._pool = pool
        self._options = options

    def routes(self) -> list[Route]:
        """Return them for Starlette."""
        return [
            Route("/v1/images/generations", self.generations, methods=["POST"]),
            Route("/v1/images/edits", self.edits, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name}", self.model),
        ]

    async def models(self, request: Request) -> Response:
        """List the models, the default one first."""
        del request
        found = [model_card(model) for model in self._pool.models.values()]
        return JSONResponse({"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        """Describe one model."""
        return JSONResponse(model_card(self._pool.find(request.path_params["name"])))

    async def generations(self, request: Request) -> Response:
        """Generate images from a prompt."""
        found = fields.parse_json(await request.body())
        return await self._answer(request, self.parse(found, "image_generation"))

    async def edits(self, request: Request) -> Response:
        """Generate images that begin with one; for bundles built with image-to-image."""
        found, picture = await read_form(request)
        model = self._pool.find(found.get("model"))
        image = await in_encoder(fields.picture, "image", picture, model.manifest)
        return await self._answer(request, self.parse(found, "image_edit", {"image": image}))

    def parse(
        self, found: Mapping[str, Any], event: str, arguments: Mapping[str, Any] | None = None
    ) -> Call:
        """Read a body's fields.

        Args:
            found: the fields.
            event: what the types of streamed events begin with.
            arguments: of the request, beside those.

        Raises:
            InvalidRequestError: names the field that is wrong, and what it may be.
        """
        taken = Fields(found)
        model = self._pool.find(taken.text("model"))
        prompt = taken.text("prompt")
        if prompt is None:
            raise InvalidRequestError("prompt is missing: say what to show", field="prompt")
        number = taken.take("n", int, 1)
        if not 1 <= number <= self._options.max_images:
            raise InvalidRequestError(
                f"n must be 1 to {self._options.max_images}, got {number}", field="n"
            )
        if taken.choice("background", ("auto", "opaque", "transparent"), "auto") == "transparent":
            raise InvalidRequestError(
                "background transparent cannot be made: leave it out", field="background"
            )
        format_ = taken.choice("output_format", _KINDS, "png")
        quality = taken.take("output_compression", int)
        if quality is not None and not 0 <= quality <= 100:
            raise InvalidRequestError(
                f"output_compression must be 0 to 100, got {quality}", field="output_compression"
            )
        partial = taken.take("partial_images", int, 0)
        if not 0 <= partial <= _MOST_PARTIAL:
            raise InvalidRequestError(
                f"partial_images must be 0 to {_MOST_PARTIAL}, got {partial}",
                field="partial_images",
            )
        width, height = fields.size(taken.text("size", "auto"))
        call = Call(
            Wanted(
                model,
                {
                    "prompt": prompt, "negative_prompt": taken.text("negative_prompt"),
                    "seed": taken.take("seed", int), "num_images_per_prompt": number,
                    "width": width, "height": height,
                    **taken.parameters(model.manifest), **(arguments or {}),
                },
                _KINDS[format_], quality, taken.take("deadline", float),
            ),
            format_,
            taken.choice("response_format", ("b64_json", "url"), "b64_json") == "url",
            taken.take("stream", bool, False), partial, taken.take("progress", bool, False), event,
        )  # fmt: skip
        taken.ignore(*_IGNORED)
        taken.end((*_KNOWN, *map(short_name, model.manifest.parameters)))
        return call

    async def _answer(self, request: Request, call: Call) -> Response:
        if not call.stream:
            return await unless_gone(request, self._whole(request, call))
        shown = [(i + 1) / (call.partial_images + 1) for i in range(call.partial_images)]
        steps = Steps(shown)
        stack = AsyncExitStack()
        on_step = steps.tell if shown or call.progress else None
        future = await unless_gone(
            request, stack.enter_async_context(submitted(self._pool, call.wanted, on_step))
        )
        return _EventStream(_events(request, call, steps, future), stack)

    async def make(self, request: Request, call: Call) -> tuple[BatchedOutput, list[bytes]]:
        """Make what a call asks for, and the files of its images."""
        async with submitted(self._pool, call.wanted) as future:
            output = await future
        note(request, call.wanted, output)
        return output, await files(call.wanted, output)

    async def _whole(self, request: Request, call: Call) -> Response:
        output, contents = await self.make(request, call)
        data = []
        for index, content in enumerate(contents):
            text = base64.b64encode(content).decode()
            image = {"url": data_url(call, text)} if call.as_url else {"b64_json": text}
            data.append({**image, "seed": output.request.seed + index})
        about = _common(call, *_sides(call)) | ours(call, output)
        return JSONResponse({"created": int(time()), "data": data, **about})


def data_url(call: Call, text: str) -> str:
    """Return a picture in base64 as an address."""
    return f"data:image/{call.format};base64,{text}"


class _EventStream(StreamingResponse):
    """Server-sent events; whatever ends them, what they wait for is dropped."""

    def __init__(self, events: AsyncIterator[bytes], stack: AsyncExitStack) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._stack.aclose()


async def _events(
    request: Request, call: Call, steps: Steps, future: asyncio.Future[BatchedOutput]
) -> AsyncIterator[bytes]:
    model = call.wanted.model
    sent: dict[int, int] = {}  # image -> previews of it
    width, height = _sides(call)
    common = _common(call, width, height)
    try:
        async for step in steps.until(future):
            if call.progress:
                yield _event("image_generation.progress", step.numbers())
            if step.latents is None:
                continue
            preview = await in_encoder(
                model.preview.encoded, step.latents, width, height, call.wanted.kind
            )
            if preview is not None:
                index = sent[step.image] = sent.get(step.image, -1) + 1
                about = {
                    "b64_json": preview, "partial_image_index": index, "created_at": int(time()),
                    **common, **step.numbers(),
                }  # fmt: skip
                yield _event(f"{call.event}.partial_image", about)
        output = await future
        note(request, call.wanted, output)
        for index, latents in steps.finished.items():
            await in_encoder(model.preview.learn, latents, output.images[index])
        for index, content in enumerate(await files(call.wanted, output)):
            about = {
                "b64_json": base64.b64encode(content).decode(), "created_at": int(time()),
                **common, "image": index, "seed": output.request.seed + index,
                **ours(call, output),
            }  # fmt: skip
            yield _event(f"{call.event}.completed", about)
    except Exception as error:
        found = described(error)
        if found.status == 500:
            _log.exception("a streamed request failed")
        yield _event("error", error_body(found))


def _event(kind: str, about: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **about})}\n\n".encode()


def _common(call: Call, width: int, height: int) -> dict[str, Any]:
    return {
        "output_format": call.format, "size": f"{width}x{height}", "quality": "auto",
        "background": "opaque",
    }  # fmt: skip


def _sides(call: Call) -> tuple[int, int]:
    """Return width and height of what a call makes."""
    arguments, size = call.wanted.arguments, call.wanted.model.manifest.size
    if (image := arguments.get("image")) is not None:
        width, height = image.size
        return width, height
    return arguments["width"] or size.width.opt, arguments["height"] or size.height.opt


def ours(call: Call, output: BatchedOutput) -> dict[str, Any]:
    """Return what an answer says beside OpenAI's fields."""
    model = call.wanted.model
    return {
        "tgate": {
            "model": model.name,
            "seed": output.request.seed,
            "parameters": made_with(model.manifest, output.request, 0)["parameters"],
            "timings": output.timings(),
            "warnings": list(output.warnings),
        }
    }
