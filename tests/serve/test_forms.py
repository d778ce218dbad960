"""Forms as OpenAI's client sends them, read."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tgate_export.common.errors import InvalidRequestError
from tgate_export.parameters import table_entry

pytest.importorskip("starlette")

BOUNDARY = "b"


def form(*fields: tuple[str, str]) -> tuple[dict[str, Any], bytes]:
    from starlette.requests import Request

    from tgate_export.serve.forms import read_form

    parts = [f'name="{name}"\r\n\r\n{value}' for name, value in fields]
    parts.append('name="image"; filename="x.png"\r\nContent-Type: image/png\r\n\r\npicture')
    body = "".join(f"--{BOUNDARY}\r\nContent-Disposition: form-data; {each}\r\n" for each in parts)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": f"{body}--{BOUNDARY}--\r\n".encode()}

    kind = f"multipart/form-data; boundary={BOUNDARY}".encode()
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind)]}
    return asyncio.run(read_form(Request(scope, receive)))


def test_a_list_is_several_fields() -> None:
    from tgate_export.serve.fields import Fields

    found, picture = form(("size", "64x64"), ("original_size[]", "12"), ("original_size[]", "34"))
    assert picture == b"picture"
    assert found == {"size": "64x64", "original_size": ["12", "34"]}
    manifest: Any = SimpleNamespace(parameters={"original_size": table_entry("original_size")})
    assert Fields(found).parameters(manifest) == {"original_size": (12, 34)}


@pytest.mark.parametrize("names", [("x", "x"), ("x", "x[]"), ("x[]", "x")])
def test_one_field_is_given_once(names: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match="is given twice"):
        form(*((name, "1") for name in names))


def test_a_pair_of_words_is_refused() -> None:
    from tgate_export.serve.fields import Fields

    found, _ = form(("original_size[]", "12"), ("original_size[]", "wide"))
    manifest: Any = SimpleNamespace(parameters={"original_size": table_entry("original_size")})
    value = Fields(found).parameters(manifest)["original_size"]
    assert table_entry("original_size").fault(value).startswith("must be two whole numbers")
