"""From a body's fields to a request for the batcher; nothing in a body can name a file."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tgate_export.bundle.manifest import Manifest
from tgate_export.common import json_file
from tgate_export.common.errors import InvalidRequestError
from tgate_export.parameters import Parameter, short_name
from tgate_export.runtime.images import decode_image
from tgate_export.runtime.serving import read_text

if TYPE_CHECKING:
    from PIL import Image

_DATA_URL = re.compile(r"data:[\w/+.-]*;base64,")


_MAX_VALUES = 100_000  # of a body: each takes many times the memory of its text


def parse_json(raw: bytes) -> dict[str, Any]:
    """Read a body of JSON.

    Raises:
        InvalidRequestError: it is none, or no object, or says something in two ways.
    """
    if sum(map(raw.count, b",[]{}")) > _MAX_VALUES:
        raise InvalidRequestError(f"the body has more than {_MAX_VALUES} values")
    try:
        found = json_file.parse_json(raw.decode())
    except ValueError as error:  # of UTF-8 and of JSON
        raise InvalidRequestError(f"the body is no JSON that can be used: {error}") from None
    if not isinstance(found, dict):
        raise InvalidRequestError(f"the body is a JSON {type(found).__name__}, not an object")
    return found


class Fields:
    """The fields of a body, taken one by one; what is left at the end is refused."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._left = {name: value for name, value in fields.items() if value is not None}

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        """Return a field of a type, or the default.

        Raises:
            InvalidRequestError: it is of another type.
        """
        value = self._left.pop(name, None)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise InvalidRequestError(f"{name} is too large", field=name) from None
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            words = {
                str: "a text", int: "a whole number", float: "a number", bool: "true or false",
                list: "a list", dict: "an object",
            }  # fmt: skip
            raise InvalidRequestError(
                f"{name} must be {words.get(kind, kind.__name__)}, got {value!r:.60}", field=name
            )
        return value

    def untyped(self, name: str) -> Any:
        """Return a field of any type; None when there is none."""
        return self._left.pop(name, None)

    def text(self, name: str, default: str | None = None) -> Any:
        """Return a text that is not too long."""
        found = self.take(name, str, default)
        return None if found is None else read_text(name, found)

    def choice(self, name: str, choices: Iterable[str], default: str) -> str:
        """Return one of some words."""
        found = self.take(name, str, default)
        if found not in choices:
            raise InvalidRequestError(
                f"{name} must be one of {', '.join(choices)}, got {found!r:.60}", field=name
            )
        return str(found)

    def refuse_unless(self, inert: Mapping[str, tuple[Any, ...]]) -> None:
        """Take fields that cannot be used, which are there for the values that change nothing.

        Args:
            inert: those values by field.

        Raises:
            InvalidRequestError: one has another value.
        """
        for name, values in inert.items():
            value = self.untyped(name)
            if value is not None and value not in values:
                raise InvalidRequestError(
                    f"{name} cannot be used here: leave it out, or give {json.dumps(values[0])}",
                    field=name,
                )

    def ignore(self, *names: str) -> None:
        """Drop fields that have no effect here."""
        for name in names:
            self._left.pop(name, None)

    def parameters(self, manifest: Manifest) -> dict[str, Any]:
        """Take the bundle's parameters, by their names in Python or on the command line.

        Raises:
            InvalidRequestError: a value of another type, or both names of one.
        """
        found: dict[str, Any] = {}
        for name, entry in manifest.parameters.items():
            for spelled in dict.fromkeys((name, short_name(name))):
                if spelled not in self._left:
                    continue
                if name in found:
                    raise InvalidRequestError(
                        f"{name} and {spelled} are one parameter: give one", field=spelled
                    )
                found[name] = _value(spelled, entry, self._left.pop(spelled), manifest)
        return found

    def end(self, known: Iterable[str]) -> None:
        """Refuse what is left.

        Raises:
            InvalidRequestError: names the first, and what there is.
        """
        if self._left:
            name = min(self._left)
            raise InvalidRequestError(
                f"unknown field {name!r:.60}: there are {', '.join(known)}", field=name
            )


def _value(name: str, entry: Parameter, value: Any, manifest: Manifest) -> Any:
    """Return a parameter's value; whether it is in its range is checked with the others."""
    if entry.type == "image":
        if not isinstance(value, str):
            raise InvalidRequestError(f"{name} must be base64 of a picture file", field=name)
        return from_base64(name, value, manifest)
    if entry.type == "pair":
        if not isinstance(value, list):
            raise InvalidRequestError(f"{name} must be a list of two numbers", field=name)
        return tuple(
            int(each) if isinstance(each, str) and each.isdecimal() else each for each in value
        )
    if isinstance(value, str) and entry.type in ("integer", "number"):  # of a form
        try:
            return int(value) if entry.type == "integer" else float(value)
        except ValueError:
            raise InvalidRequestError(
                f"{name} must be a number, got {value!r:.60}", field=name
            ) from None
    if isinstance(value, list | dict) or (entry.type == "choice" and not isinstance(value, str)):
        raise InvalidRequestError(f"{name} must be one value, got {value!r:.60}", field=name)
    return value


def from_base64(name: str, text: str, manifest: Manifest) -> Image.Image:
    """Decode a picture file in base64, or in a data URL.

    Raises:
        InvalidRequestError: it is none, or larger than the bundle takes.
    """
    return picture(name, decode_base64(name, text), manifest)


def decode_base64(name: str, text: str) -> bytes:
    """Return the bytes of base64, or of a data URL.

    Raises:
        InvalidRequestError: it is neither.
    """
    if match := _DATA_URL.match(text):
        text = text[match.end() :]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError(f"{name} is not base64 of a picture file", field=name) from None


def picture(name: str, content: bytes, manifest: Manifest) -> Image.Image:
    """Decode a picture file's bytes.

    Raises:
        InvalidRequestError: it is none, or larger than the bundle takes.
    """
    return decode_image(content, name, (manifest.size.height.max, manifest.size.width.max))


def size(text: str, name: str = "size") -> tuple[int | None, int | None]:
    """Read `WxH` or "auto" as width and height."""
    if text == "auto":
        return None, None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise InvalidRequestError(f'{name} must be WxH or "auto", got {text!r:.60}', field=name)
    return int(match[1]), int(match[2])
