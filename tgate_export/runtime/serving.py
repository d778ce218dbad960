"""What servers do alike, whatever they speak: read texts of anybody's, and word errors for them."""

from __future__ import annotations

from concurrent.futures import CancelledError

from tgate_export.common.errors import InvalidRequestError, TGateError, printable
from tgate_export.common.hints import Argument, Build, in_python
from tgate_export.parameters import short_name

MAX_TEXT_BYTES = 16384  # of one in a request: encoders read a few hundred tokens


def read_text(name: str, value: str | bytes) -> str:
    """Return a text of a request.

    Args:
        name: of the field, for errors.
        value: UTF-8, or what a decoder that lets lone surrogates pass made of it.

    Raises:
        InvalidRequestError: it is too long, or not UTF-8.
    """
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    if len(raw) > MAX_TEXT_BYTES:
        raise InvalidRequestError(
            f"{name} has {len(raw)} bytes, at most {MAX_TEXT_BYTES} are read", field=name
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{name} is not UTF-8: {error.reason}", field=name) from None


def message_of(error: BaseException) -> str:
    """Return what the client of a server is told of an error, in one line.

    How a bundle is built is not theirs to know, nor is what other libraries say: that is for the
    server's log.
    """
    if isinstance(error, CancelledError):
        return "the request was stopped"
    if isinstance(error, MemoryError):
        return "out of memory: ask for fewer or smaller images"
    if not isinstance(error, TGateError):
        return f"{type(error).__name__}: the server's log has the reason"
    if any(isinstance(part, Build) for part in error.hint):
        return printable(" ".join(error.message.splitlines()))
    return error.worded(
        lambda call: short_name(call.name) if isinstance(call, Argument) else in_python(call)
    )
