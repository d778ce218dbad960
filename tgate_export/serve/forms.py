"""Forms with a picture in them, as OpenAI's edits are sent."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from tgate_export.common.errors import InvalidRequestError


async def read_form(request: Request) -> tuple[dict[str, Any], bytes]:
    """Return a form's fields, and its picture's file; fields called `NAME[]` are a list.

    Raises:
        InvalidRequestError: it is no form, has another file or none, or a field twice.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InvalidRequestError(
            "an edit is sent as multipart/form-data, with the image as a file"
        )
    picture: bytes | None = None
    found: dict[str, Any] = {}
    async with request.form(max_files=2, max_fields=64) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name.removesuffix("[]") != "image":
                    raise InvalidRequestError(
                        f"{name} cannot be used: this server begins with an image and reads no "
                        "other file",
                        field=name,
                    )
                if picture is not None:
                    raise InvalidRequestError("one image is edited at a time", field="image")
                picture = await value.read()
            elif name.endswith("[]") and isinstance(
                values := found.setdefault(name.removesuffix("[]"), []), list
            ):
                values.append(value)
            elif name.removesuffix("[]") in found:
                raise InvalidRequestError(f"{name} is given twice", field=name)
            else:
                found[name] = _typed(name, value)
    if picture is None:
        raise InvalidRequestError("image is missing: send a picture file", field="image")
    return found, picture


def _typed(name: str, text: str) -> Any:
    """Return a form's text as JSON would have it, for fields that are no texts."""
    if name in ("stream", "progress") and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if name in ("n", "seed", "partial_images", "output_compression", "deadline"):
        try:
            return float(text) if name == "deadline" else int(text)
        except ValueError:
            raise InvalidRequestError(
                f"{name} must be a number, got {text!r:.60}", field=name
            ) from None
    return text
