"""JSON files that anyone may have written: read within limits, and in one way only."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

MAX_DEPTH = 64
MAX_DIGITS = 500  # of a whole number
RECORD_BYTES = 4 * 2**20  # of a manifest or the record of a plan set
TABLE_BYTES = 32 * 2**20  # of a sampler table or a tokenizer

# One that does not end goes to the end, so that no quote in it is looked at again.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]")  # as it is, or written out


def read_regular(path: Path, limit: int) -> bytes:
    """Return a file's content, if it is a regular file of at most `limit` bytes.

    Nothing waits: opening a FIFO that nobody writes would, and a device may never end.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError("it is a folder")
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no regular file")
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit >> 20} MiB")
    return content


def parse_json(text: str) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: it is no JSON, nested more than `MAX_DEPTH` deep, has a key twice in an object,
            a number that is not finite or of too many digits, or half a character.
    """
    steps = (1 if bracket in "[{" else -1 for bracket in _BRACKETS.findall(_STRING.sub("", text)))
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    try:
        found = json.loads(
            text, object_pairs_hook=_object, parse_int=_whole, parse_float=_finite,
            parse_constant=_finite,
        )  # fmt: skip
    except RecursionError:  # the caller's own depth counts, too
        raise ValueError("it is nested too deep") from None
    if _SURROGATE.search(text):  # of which two make a character
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text in it is not valid Unicode") from None
    return found


def read_json(path: Path, limit: int) -> Any:
    """Return what a JSON file says; see `read_regular` and `parse_json`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what those take.
    """
    return parse_json(read_regular(path, limit).decode())


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r:.60} is there twice")
    return found


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.40} is not a finite number")
    return number
