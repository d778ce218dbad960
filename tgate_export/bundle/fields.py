"""Types of the fields of a bundle's records."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _inside_bundle(path: str) -> str:
    pure = PurePosixPath(path)
    if not path or "\\" in path or "\0" in path or pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"path {path!r} leaves the bundle")
    if str(pure) != path or not pure.parts:
        raise ValueError(f"path {path!r} is not in its plain form {str(pure)!r}")
    if not path.isprintable():
        raise ValueError(f"path {path!r} has characters that cannot be printed")
    return path


def _plain_name(name: str) -> str:
    # They become names of files, and of what a server or another language calls things.
    if not re.fullmatch(r"(?!\.)[A-Za-z0-9_.+-]{1,64}", name):
        raise ValueError(f"name {name!r} is not a plain name")
    return name


BundlePath = Annotated[str, AfterValidator(_inside_bundle)]
Name = Annotated[str, AfterValidator(_plain_name)]
_LARGEST = 2**31 - 1  # what any language that embeds a bundle counts with
Positive = Annotated[int, Field(gt=0, le=_LARGEST)]
Count = Annotated[int, Field(ge=0, le=_LARGEST)]
MAX_RANK = 8


class BundleModel(BaseModel):
    """What every part of a bundle's records is: frozen, typed strictly."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        serialize_by_alias=True,
        validate_by_name=True,
        validate_by_alias=True,
    )
