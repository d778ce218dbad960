"""`/v1/chat/completions` for programs that ask for images there, as those written for vLLM-Omni do.

The prompt is the text of the last user message, which may have a picture to begin with; parameters
stand in `extra_body` or beside the messages. The answer's message has the pictures as data URLs.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from time import time
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tgate_export.common.errors import InvalidRequestError
from tgate_export.serve.fields import parse_json
from tgate_export.serve.generation import unless_gone
from tgate_export.serve.openai import Call, OpenAIRoutes, data_url, ours

# What language models are told.
_IGNORED = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "modalities", "stop",
    "frequency_penalty", "presence_penalty",
)  # fmt: skip


class ChatRoutes:
    """The route, over those of images."""

    def __init__(self, images: OpenAIRoutes) -> None:
        self._images = images

    def routes(self) -> list[Route]:
        """Return them for Starlette."""
        return [Route("/v1/chat/completions", self.completions, methods=["POST"])]

    async def completions(self, request: Request) -> Response:
        """Answer the last message with images."""
        call = self._images.parse(_as_images(parse_json(await request.body())), "")
        if call.stream:
            raise InvalidRequestError(
                "a chat is not streamed: ask /v1/images/generations for that", field="stream"
            )
        return await unless_gone(request, self._answer(request, call))

    async def _answer(self, request: Request, call: Call) -> Response:
        output, contents = await self._images.make(request, call)
        content = [
            {
                "type": "image_url",
                "image_url": {"url": data_url(call, base64.b64encode(each).decode())},
            }
            for each in contents
        ]
        return JSONResponse(
            {
                "id": f"chatcmpl-{uuid4().hex}",
                "object": "chat.completion",
                "created": int(time()),
                "model": call.wanted.model.name,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": content},
                        "finish_reason": "stop",
                    }
                ],
                **ours(call, output),
            }
        )


def _as_images(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a chat as those of a generation."""
    fields = {name: value for name, value in found.items() if name not in _IGNORED}
    further = fields.pop("extra_body", None) or {}
    if not isinstance(further, dict):
        raise InvalidRequestError("extra_body must be an object", field="extra_body")
    fields |= further
    prompt, picture = _last(fields.pop("messages", None))
    width, height = fields.pop("width", None), fields.pop("height", None)
    if (width is None) != (height is None):
        raise InvalidRequestError("width and height go together: give both", field="width")
    if width is not None:
        fields["size"] = f"{width}x{height}"
    fields["prompt"] = prompt
    if picture is not None:
        fields["image"] = picture
    return fields


def _last(messages: Any) -> tuple[str, str | None]:
    """Return the text of the last message of a user, and its picture, if it has one."""
    users = [
        message
        for message in (messages if isinstance(messages, list) else ())
        if isinstance(message, dict) and message.get("role") == "user"
    ]
    if not users:
        raise InvalidRequestError("messages must have one of a user", field="messages")
    content = users[-1].get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts: list[str] = []
    pictures: list[str] = []
    for part in parts if isinstance(parts, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        address = part.get("image_url") if kind == "image_url" else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(address, dict) and str(address.get("url", "")).startswith("data:"):
            pictures.append(str(address["url"]))
        else:
            raise InvalidRequestError(
                "a message is made of texts, and of a picture as a data URL", field="messages"
            )
    if not texts or len(pictures) > 1:
        raise InvalidRequestError(
            "the last message must have a text, and one picture at most", field="messages"
        )
    return "\n".join(texts), pictures[0] if pictures else None
