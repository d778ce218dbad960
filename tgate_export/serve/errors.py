"""Errors as HTTP has them: a status, and a body in OpenAI's form, or in A1111's."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.parameters import short_name
from tgate_export.runtime.batching import ClosedError, DeadlineError, QueueFullError
from tgate_export.runtime.serving import message_of


class HttpError(TGateError):
    """A request that is refused, with the status that says so.

    Attributes:
        status: of HTTP.
        code: a word for programs; "" for none.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "",
        field: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, field=field)
        self.status = status
        self.code = code
        self.headers = headers or {}


# Kind of error -> status, code.
_STATUS: tuple[tuple[type[BaseException], int, str], ...] = (
    (InvalidRequestError, 400, "invalid_value"),
    (QueueFullError, 429, "queue_full"),
    (ClosedError, 503, "closing"),
    (DeadlineError, 504, "deadline"),
    (CancelledError, 503, "cancelled"),
)


def described(error: BaseException) -> HttpError:
    """Return what an error is over HTTP; `HttpError.__cause__` is what it was."""
    if isinstance(error, HttpError):
        return error
    status, code = next(
        ((status, code) for kind, status, code in _STATUS if isinstance(error, kind)),
        (500, "internal"),
    )
    field = getattr(error, "field", "")
    found = HttpError(status, message_of(error), code=code, field=field, headers=_wait(error))
    found.__cause__ = error
    return found


def _wait(error: BaseException) -> dict[str, str]:
    return {"Retry-After": str(error.seconds)} if isinstance(error, QueueFullError) else {}


def body(error: HttpError) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    types = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    usual = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "error": {
            "message": str(error),
            "type": types.get(error.status, usual),
            "param": short_name(error.field) if error.field else None,
            "code": error.code or None,
        }
    }


# Parameters -> what A1111 calls them.
_A1111_NAMES = {
    "num_inference_steps": "steps", "guidance_scale": "cfg_scale", "scheduler": "sampler_name",
    "strength": "denoising_strength", "image": "init_images", "model": "sd_model_checkpoint",
    "clip_skip": "CLIP_stop_at_last_layers", "num_images_per_prompt": "batch_size",
    "hires": "hr_scale", "hires_strength": "denoising_strength",
    "hires_steps": "hr_second_pass_steps", "hires_upscaler": "hr_upscaler",
}  # fmt: skip


def a1111_body(error: HttpError) -> dict[str, Any]:
    """Return an error in A1111's form; its clients show `detail`, some `errors`."""
    name, message = _A1111_NAMES.get(error.field, error.field), str(error)
    if name not in message:
        message = f"{name}: {message}"
    kind = type(error.__cause__ or error).__name__
    return {"error": kind, "detail": message, "body": "", "errors": message}


def body_for(path: str, error: HttpError) -> dict[str, Any]:
    """Return an error in the form of the API that a path belongs to."""
    return a1111_body(error) if path.startswith("/sdapi/") else body(error)


async def answer(request: Request, error: Exception) -> JSONResponse:
    """Answer an error; Starlette calls it for whatever a route raises."""
    found = described(error)
    return JSONResponse(body_for(request.url.path, found), found.status, found.headers)
