"""Errors that reach the user as one readable line."""

from __future__ import annotations

from collections.abc import Callable

from tgate_export.common.hints import Call, Hint, in_python, worded


class TGateError(Exception):
    """The command failed, or a check did not hold.

    Attributes:
        message: what is wrong; often with what to do, where that names no call of this package.
        hint: what to do, in parts that every front end words for itself; empty when the message
            says it.
        field: the argument, or the path of the field of a record, that is wrong; "" where none is.
    """

    exit_code = 1

    def __init__(self, message: str, *hint: str | Call, field: str = "") -> None:
        super().__init__(message, *hint)
        self.message = message
        self.hint: Hint = hint
        self.field = field

    def worded(self, words: Callable[[Call], str]) -> str:
        """Return message and hint as one line; `words` writes the calls that the hint names."""
        text = f"{self.message}: {worded(self.hint, words)}" if self.hint else self.message
        # Names of a foreign bundle's files are part of messages, which end in terminals and logs.
        return printable(" ".join(text.splitlines()))

    def __str__(self) -> str:
        return self.worded(in_python)


class InvalidRequestError(TGateError, ValueError):
    """What was asked for makes no sense: an unknown name, a value out of range."""

    exit_code = 2


class ModelError(TGateError):
    """A model cannot be loaded or gated: not a pipeline, no cross-attention, pickled weights."""


class BundleError(TGateError):
    """A bundle is missing, damaged, incomplete, foreign, or from a newer version."""


class VerificationError(TGateError):
    """A measured difference broke its bound; names the graph and the tensor."""


def printable(text: str) -> str:
    """Return a text in which control characters and the like are written as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def ordinary(error: BaseException) -> Exception:
    """Return an error that `except Exception` catches, which a panic of a Rust library is not."""
    if isinstance(error, Exception):
        return error
    caught = TGateError(f"{type(error).__name__}: {first_line(error)}")
    caught.__cause__ = error
    return caught


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, or the error's type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
