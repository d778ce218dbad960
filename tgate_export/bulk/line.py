"""A line of a file of prompts: what it may say, and the call that it stands for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgate_export.bulk.settings import BulkSettings
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.common.hints import Argument
from tgate_export.common.json_file import parse_json
from tgate_export.parameters import HIRES, PARAMETERS, short_name

MAX_ID = 200  # characters
# What a line may have besides parameters, and of which type.
_TEXTS = ("prompt", "negative_prompt")
_WHOLE = ("seed", "width", "height")


@dataclass(frozen=True)
class Line:
    """What one image is made of.

    Attributes:
        number: of the line, from 1.
        id: its own, or the number where it has none.
        arguments: of `make_request`.
    """

    number: int
    id: str | int
    arguments: Mapping[str, Any]


def parse_line(text: bytes, number: int, settings: BulkSettings, manifest: Manifest) -> Line:
    """Read a line, and complete it with what the run has for all.

    Values are checked as far as `make_request` leaves that to Python's types.

    Raises:
        InvalidRequestError: says what is wrong, but not where.
    """
    try:
        entry = parse_json(text.decode())
    except ValueError as error:
        raise InvalidRequestError(f"it is no JSON: {error}") from None
    if not isinstance(entry, dict):
        raise InvalidRequestError('it is no JSON object, such as {"prompt": "a red circle"}')
    identity = _id(entry.pop("id", None), number)
    own = _arguments(entry, manifest)
    for name, value in own.items():
        if _is_picture(name, manifest):
            own[name] = _picture(name, value, settings.image_folder)
    seed = {"seed": (settings.seed + number) % 2**64}
    arguments = {**seed, **settings.defaults, **own}
    if manifest.takes_prompt and "prompt" not in arguments:
        raise InvalidRequestError("prompt is missing: what to show", field="prompt")
    return Line(number, identity, arguments)


def _id(value: Any, number: int) -> str | int:
    if value is None:
        return number
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidRequestError(f"id must be a text or a whole number, got {value!r}", field="id")
    if not 0 < len(str(value)) <= MAX_ID:
        raise InvalidRequestError(f"id must have 1 to {MAX_ID} characters", field="id")
    return value


def _arguments(entry: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Return a line's values by the names that Python has; null is as if it were not there."""
    names = dict.fromkeys((*_TEXTS, *_WHOLE, *HIRES, *PARAMETERS, *manifest.parameters))
    by_name = {short_name(name): name for name in names} | {name: name for name in names}
    found: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in by_name:
            raise InvalidRequestError(_unknown(key, manifest), field=key)
        name = by_name[key]
        if name in found:
            raise InvalidRequestError(
                f"{short_name(name)} and {name} are the same: give one", field=name
            )
        if value is not None:
            _check_type(name, value)
            found[name] = value
    return found


def _unknown(key: str, manifest: Manifest) -> str:
    known = [*_TEXTS, *_WHOLE, *HIRES, "id", *map(short_name, manifest.parameters)]
    near = difflib.get_close_matches(key, known, n=1)
    meant = f"did you mean {near[0]}? There" if near else "there"
    return f"unknown key {key!r}: {meant} are {', '.join(known)}"


def _check_type(name: str, value: Any) -> None:
    if name in _TEXTS and not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be a text, got {value!r}", field=name)
    if name in _WHOLE and (isinstance(value, bool) or not isinstance(value, int)):
        raise InvalidRequestError(f"{name} must be a whole number, got {value!r}", field=name)


def _is_picture(name: str, manifest: Manifest) -> bool:
    entry = manifest.parameters.get(name) or PARAMETERS.get(name)
    return entry is not None and entry.type == "image"


def _picture(name: str, value: Any, folder: Path) -> Path:
    """Return the file that a line names, which is in the folder of pictures.

    Who wrote the prompts need not be who runs them: they name no other files.
    """
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be the name of a file, got {value!r}", field=name)
    try:
        path = (folder / value).resolve()
    except (OSError, RuntimeError, ValueError):  # a link to itself, a zero byte
        raise InvalidRequestError(f"{name} {value!r} is no file", field=name) from None
    if not path.is_relative_to(folder.resolve()):
        raise InvalidRequestError(
            f"{name} {value!r} is not in the folder {folder}", "name its folder with ",
            Argument("image_folder"), field=name,
        )  # fmt: skip
    return path
