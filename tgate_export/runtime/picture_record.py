"""How a picture was made, read from its file: to make it again, or a little differently."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tgate_export.common.errors import InvalidRequestError
from tgate_export.common.json_file import parse_json, read_regular

_MOST_BYTES = 256 * 2**20  # of a PNG file, or of a video in one
RECORD = "tgate-export"  # the text of a PNG that `picture_file` writes


@dataclass(frozen=True)
class PictureRecord:
    """What `made_with` wrote.

    Attributes:
        model: the name of the bundle that made it.
        prompt: None for a video.
        negative_prompt: None without one.
        seed: that makes it alone.
        width: pixels.
        height: pixels.
        parameters: of the run, by their Python names.
        pictures: parameters whose pictures the file does not hold.
        hires: arguments of its second pass, if it had one, by their Python names.
        refiner: who ended the run, if another bundle did; see `Refined`.
    """

    model: str
    prompt: str | None
    negative_prompt: str | None
    seed: int
    width: int
    height: int
    parameters: Mapping[str, Any]
    pictures: tuple[str, ...]
    hires: Mapping[str, Any] = field(default_factory=dict)
    refiner: Mapping[str, Any] = field(default_factory=dict)


def read_record(path: Path) -> PictureRecord:
    """Read how a PNG of this package was made.

    Args:
        path: of a run, a bulk run, a server or Triton.

    Raises:
        InvalidRequestError: it is no such file; arrays made it, which no file holds.
    """
    try:
        text = _text(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequestError(f"cannot read {path}: {reason}", field="from") from None
    if text is None:
        raise InvalidRequestError(
            f"{path} does not say how it was made: only PNG files of tgate-export do, and programs "
            "that write them anew often drop it",
            field="from",
        )
    try:
        record, arrays = _checked(parse_json(text))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InvalidRequestError(
            f"what {path} says of how it was made is damaged: {reason}", field="from"
        ) from None
    if arrays:
        raise InvalidRequestError(
            f"{path} cannot be made again from its file: it was made from {', '.join(arrays)}, "
            "which it does not hold",
            field="from",
        )
    return record


def _text(path: Path) -> str | None:
    """Return the record's text; None for a file without one."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(read_regular(path, _MOST_BYTES)), formats=["PNG"]) as image:
            image.load()  # texts may come after the pixels
            found = getattr(image, "text", {}).get(RECORD)
    except UnidentifiedImageError:
        return None
    except (SyntaxError, Image.DecompressionBombError) as error:  # as Pillow calls a damaged PNG
        raise ValueError(str(error)) from None
    return None if found is None else str(found)


def _checked(found: Any) -> tuple[PictureRecord, list[str]]:
    """Return a record, and the arrays that it lacks.

    Raises:
        KeyError: something is missing.
        TypeError: something is of another type.
    """
    if not isinstance(found, dict):
        raise TypeError("it is no JSON object")
    whole = {name: _typed(found, name, int) for name in ("seed", "width", "height")}
    left_out = [str(name) for name in _typed(found, "left_out", list)]
    arrays = [name for name in left_out if name.endswith("_embeds") or name == "latents"]
    parameters = {
        str(name): tuple(value) if isinstance(value, list) else value
        for name, value in _typed(found, "parameters", dict).items()
        if value is not None
    }
    record = PictureRecord(
        model=_typed(found, "model", str),
        prompt=_typed(found, "prompt", str, none=True),
        negative_prompt=_typed(found, "negative_prompt", str, none=True),
        parameters=parameters,
        pictures=tuple(name for name in left_out if name not in arrays),
        hires=_hires(_typed(found, "hires", dict)) if "hires" in found else {},
        refiner=_refiner(_typed(found, "refiner", dict)) if "refiner" in found else {},
        **whole,
    )
    return record, arrays


def _hires(found: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a second pass; who uses them checks them further.

    Raises:
        KeyError: something is missing.
        TypeError: something is of another type.
    """
    return {
        "hires": f"{_typed(found, 'width', int)}x{_typed(found, 'height', int)}",
        "hires_strength": _typed(found, "strength", float),
        "hires_steps": _typed(found, "steps", int),
        "hires_upscaler": _typed(found, "upscaler", str),
    }


def _refiner(found: dict[str, Any]) -> dict[str, Any]:
    """Return who ended a run.

    Raises:
        KeyError: something is missing.
        TypeError: something is of another type.
    """
    kinds = {"model": str, "start": float, "parameters": dict}
    return {name: _typed(found, name, kind) for name, kind in kinds.items()}


def _typed(found: dict[str, Any], name: str, kind: type, *, none: bool = False) -> Any:
    value = found[name]
    if not (none and value is None) and (not isinstance(value, kind) or isinstance(value, bool)):
        raise TypeError(f"{name} is no {kind.__name__}")
    return value
