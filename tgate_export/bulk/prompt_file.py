"""Files of prompts: a JSON object a line, all checked before anything is generated."""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tgate_export.bulk.line import Line, parse_line
from tgate_export.bulk.settings import BulkSettings
from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.common.hints import Call
from tgate_export.runtime.images import picture_sides
from tgate_export.runtime.request import Request, make_request
from tgate_export.runtime.run_plan import RunPlans

MAX_LINE_BYTES = 64 * 1024


@dataclass(frozen=True)
class LineIndex:
    """Where the lines of a checked file are: 16 bytes a line, and none of their texts.

    Attributes:
        sha256: of the file.
        numbers: of the lines that have something in them, counted from 1.
        offsets: of those lines, in bytes.
    """

    sha256: str
    numbers: array[int]
    offsets: array[int]


class PromptFile:
    """An open file of prompts."""

    def __init__(self, settings: BulkSettings, manifest: Manifest) -> None:
        """Open it.

        Raises:
            InvalidRequestError: there is no such file, or it is none that can be read again.
        """
        self.path = settings.prompts
        self._settings = settings
        self._manifest = manifest
        try:
            # A FIFO that nobody writes would wait here.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise InvalidRequestError(f"cannot read {self.path}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InvalidRequestError(
                f"{self.path} is no regular file: a run that is resumed reads it again, so write "
                "the prompts to one"
            )
        self._stream = os.fdopen(descriptor, "rb")
        self._stamp = self._now()

    def __enter__(self) -> PromptFile:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stream.close()

    def check(self, bundle: Bundle) -> LineIndex:
        """Check every line as far as that can be done without generating anything.

        Raises:
            InvalidRequestError: names the file, the first line that cannot be used, and why.
        """
        digest = hashlib.sha256()
        numbers, offsets, ids = array("Q"), array("Q"), array("Q")
        checker = _Checker(bundle)
        for number, offset, text in self._lines(digest):
            try:
                line = parse_line(text, number, self._settings, self._manifest)
                checker.check(line)
            except InvalidRequestError as error:
                raise self._at(number, error) from None
            numbers.append(number)
            offsets.append(offset)
            ids.append(_hashed(line))
        self._check_stamp()
        if not numbers:
            raise InvalidRequestError(f"{self.path} has no prompts: write a JSON object a line")
        index = LineIndex(digest.hexdigest(), numbers, offsets)
        self._check_ids(index, ids)
        return index

    def sha256(self) -> str:
        """Return the sha256 of the whole file."""
        self._stream.seek(0)
        return hashlib.file_digest(self._stream, "sha256").hexdigest()

    def line(self, number: int, offset: int) -> Line:
        """Read a line of a file that was checked.

        Raises:
            TGateError: the file was changed since it was opened.
        """
        self._stream.seek(offset)
        text = self._stream.readline(MAX_LINE_BYTES)
        self._check_stamp()
        return parse_line(text, number, self._settings, self._manifest)

    def _lines(self, digest: Any) -> Iterator[tuple[int, int, bytes]]:
        """Yield number, offset and text of the lines that have something in them."""
        self._stream.seek(0)
        number = offset = 0
        while text := self._stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(text) > MAX_LINE_BYTES:
                raise self._at(number, f"it is longer than {MAX_LINE_BYTES // 1024} KiB")
            digest.update(text)
            if text.strip():
                yield number, offset, text
            offset += len(text)

    def _check_ids(self, index: LineIndex, ids: array[int]) -> None:
        """Refuse an id that is there twice: only equal hashes are looked at again."""
        hashes = np.asarray(ids)
        values, counts = np.unique(hashes, return_counts=True)
        for value in values[counts > 1]:
            seen: dict[str, int] = {}
            for place in np.flatnonzero(hashes == value):
                line = self.line(index.numbers[place], index.offsets[place])
                first = seen.setdefault(str(line.id), line.number)
                if first != line.number:
                    raise self._at(line.number, f"the id {str(line.id)!r} is that of line {first}")

    def _at(self, number: int, error: InvalidRequestError | str) -> InvalidRequestError:
        """Return an error that names the line."""
        if isinstance(error, str):
            return InvalidRequestError(f"{self.path}:{number}: {error}")
        hint: tuple[str | Call, ...] = error.hint
        return InvalidRequestError(
            f"{self.path}:{number}: {error.message}", *hint, field=error.field
        )

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._stream.fileno())
        return found.st_size, found.st_mtime_ns

    def _check_stamp(self) -> None:
        if self._now() != self._stamp:
            raise TGateError(
                f"{self.path} was changed while it was in use: begin again with another folder for "
                "the images, or put it back as it was"
            )


class _Checker:
    """Checks lines without decoding their pictures, and step plans that recur once."""

    def __init__(self, bundle: Bundle) -> None:
        self._manifest = bundle.manifest
        self._plans = RunPlans(bundle)
        self._seen: set[tuple[Any, ...]] = set()

    def check(self, line: Line) -> None:
        """Refuse what cannot be generated.

        Raises:
            InvalidRequestError: names the argument and what it may be.
        """
        request = make_request(self._manifest, **without_pictures(self._manifest, line.arguments))
        key = self._key(request)
        if key not in self._seen:
            self._plans.of_passes(request)
            self._seen.add(key)

    def _key(self, request: Request) -> tuple[Any, ...]:
        """Return what a run plan depends on."""
        names = ("num_inference_steps", "scheduler", "strength", *self._manifest.method.parameters)
        values = (request.begins_with_image, *(request.value(name) for name in names))
        hires = request.hires
        return values if hires is None else (*values, hires.upscaler, *hires.values.values())


def check_defaults(settings: BulkSettings, manifest: Manifest) -> None:
    """Refuse what no line could be generated with, before a line is blamed for it.

    Raises:
        InvalidRequestError: names the argument and what it may be.
    """
    defaults = without_pictures(manifest, settings.defaults)
    height = defaults.get("height") or manifest.size.height.opt
    width = defaults.get("width") or manifest.size.width.opt
    needed = {*manifest.pictures, *(["image"] if "strength" in defaults else [])}
    black = dict.fromkeys(needed - defaults.keys(), np.zeros((height, width, 3), np.uint8))
    prompt = {"prompt": ""} if manifest.takes_prompt else {}
    make_request(manifest, **{**prompt, **black, **defaults}, seed=settings.seed)


def without_pictures(manifest: Manifest, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `make_request` with black pictures of the same size.

    Raises:
        InvalidRequestError: a picture that is not there, or that cannot be used.
    """
    largest = manifest.size.height.max, manifest.size.width.max
    return {
        name: np.zeros((*picture_sides(value, largest), 3), np.uint8)
        if isinstance(value, Path)
        else value
        for name, value in arguments.items()
    }


def _hashed(line: Line) -> int:
    digest = hashlib.blake2b(str(line.id).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest())
