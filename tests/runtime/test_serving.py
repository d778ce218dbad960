"""What servers of all protocols do alike: texts of requests, and words for errors."""

from __future__ import annotations

from concurrent.futures import CancelledError

import pytest

from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.common.hints import Argument, Build
from tgate_export.runtime.serving import MAX_TEXT_BYTES, message_of, read_text


@pytest.mark.parametrize("text", ["", "a red circle", "\N{SNOWMAN}" * 100, "x" * MAX_TEXT_BYTES])
def test_texts_are_read(text: str) -> None:
    assert read_text("prompt", text) == read_text("prompt", text.encode()) == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x" * (MAX_TEXT_BYTES + 1), "prompt has 16385 bytes, at most 16384 are read"),
        ("\N{SNOWMAN}" * 5462, "prompt has 16386 bytes"),  # bytes, not characters
        (b"x" * 2**20, "prompt has 1048576 bytes"),
        (b"\xff\xfe", "prompt is not UTF-8"),
        (b"\xed\xa0\x80", "prompt is not UTF-8"),  # a lone surrogate
        ("\ud800", "prompt is not UTF-8"),  # as JSON's decoder lets it pass
    ],
)
def test_texts_are_refused(value: str | bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as found:
        read_text("prompt", value)
    assert found.value.field == "prompt"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InvalidRequestError("steps must be at least 1"), "steps must be at least 1"),
        (TGateError("too slow", "lower ", Argument("num_inference_steps", 5)),
         "too slow: lower steps"),
        (TGateError("no image", "build it with ", Build({"image_to_image": True})), "no image"),
        (TGateError("two\nlines \x1b[31m"), r"two lines \x1b[31m"),
        (CancelledError(), "the request was stopped"),
        (MemoryError("at 0x7f"), "out of memory: ask for fewer or smaller images"),
        (RuntimeError("/etc/secret"), "RuntimeError: the server's log has the reason"),
        (KeyboardInterrupt("x"), "KeyboardInterrupt: the server's log has the reason"),
    ],
)  # fmt: skip
def test_words_for_a_client(error: BaseException, message: str) -> None:
    assert message_of(error) == message
