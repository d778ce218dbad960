"""The folder of a bulk run: images, a line of JSON for each, and what it was made with."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tgate_export.bulk.settings import image_file
from tgate_export.bundle.locks import LockedError, locked
from tgate_export.common.errors import InvalidRequestError, TGateError

IMAGES = "images.jsonl"
FAILURES = "failures.jsonl"
RECORD = "run.json"
PARTIAL = "partial"  # files that are being written
RUNNING = ".running"  # a lock


class WriteError(TGateError):
    """The folder cannot be written: nothing more can be made."""

    def __init__(self, file: Path, error: OSError) -> None:
        super().__init__(
            f"cannot write {file}: {error.strerror or error}: what is done stays, and the same "
            "command goes on from there"
        )


class Journal:
    """A file of a JSON object a line, each of which is there whole or not at all.

    What a killed run left of a last line is dropped when the file is opened.
    """

    def __init__(self, path: Path) -> None:
        """Open it, or make it.

        Raises:
            WriteError: it cannot be written.
        """
        self._path = path
        try:
            self._open()
        except OSError as error:
            raise WriteError(path, error) from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._descriptor)

    @property
    def empty(self) -> bool:
        """Whether it has no line."""
        return self._size == 0

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            WriteError: it cannot be written, and the file is as it was.
        """
        text = (json.dumps(entry) + "\n").encode()
        try:
            written = os.write(self._descriptor, text)
            if written < len(text):  # the disk is full: the next write says so
                os.write(self._descriptor, text[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise WriteError(self._path, error) from None
        self._size += len(text)

    def entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield where each line begins, in bytes, and what it says.

        Raises:
            TGateError: a line that no run wrote.
        """
        offset = 0
        with self._path.open("rb") as stream:
            for number, text in enumerate(stream, start=1):
                try:
                    entry = json.loads(text)
                    usable = isinstance(entry["line"], int) and isinstance(entry["bytes"], int)
                except (ValueError, TypeError, KeyError):
                    usable = False
                if not usable:
                    raise TGateError(
                        f"{self._path}:{number} is damaged: remove the line, and its image is made "
                        "anew"
                    )
                yield offset, entry
                offset += len(text)

    def remove(self, offsets: Collection[int]) -> None:
        """Remove the lines that begin at these offsets; a killed call removes none or all.

        Raises:
            WriteError: the file cannot be written anew, and is as it was.
        """
        other = self._path.parent / PARTIAL / self._path.name
        try:
            with self._path.open("rb") as old, other.open("wb") as new:
                offset = 0
                for text in old:
                    if offset not in offsets:
                        new.write(text)
                    offset += len(text)
            other.replace(self._path)
            os.close(self._descriptor)
            self._open()
        except OSError as error:
            raise WriteError(self._path, error) from None

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._size = self._whole()
        os.ftruncate(self._descriptor, self._size)

    def _whole(self) -> int:
        """Return the length without what comes after the last line feed."""
        size = os.fstat(self._descriptor).st_size
        while size:
            start = max(0, size - 65536)
            end = os.pread(self._descriptor, size - start, start).rfind(b"\n")
            if end >= 0:
                return start + end + 1
            size = start
        return 0


@contextlib.contextmanager
def in_use(out: Path) -> Iterator[None]:
    """Make the folder, and have it to oneself; a new one that stays empty is removed at the end.

    Raises:
        InvalidRequestError: it is no folder.
        TGateError: another run has it.
        WriteError: it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            if out.exists() and not out.is_dir():
                raise InvalidRequestError(f"{out} is no folder: name one for the images")
            if not out.exists():
                out.mkdir(parents=True)
                stack.callback(_remove_empty, out)
            stack.enter_context(locked(out / RUNNING))
        except LockedError:
            raise TGateError(
                f"another run is filling {out}: wait until it is done, or name another folder"
            ) from None
        except OSError as error:
            raise WriteError(out, error) from None
        yield


def _remove_empty(out: Path) -> None:
    with contextlib.suppress(OSError):
        out.rmdir()


@contextlib.contextmanager
def partial_folder(out: Path) -> Iterator[None]:
    """Have an empty folder for files that are being written, without what a killed run left there.

    Raises:
        WriteError: it cannot be made.
    """
    folder = out / PARTIAL
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise WriteError(folder, error) from None
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_file(out: Path, name: str, content: bytes) -> None:
    """Write a file, whole or not at all, within a `partial_folder`.

    Raises:
        WriteError: it cannot be written.
    """
    file = out / name
    temporary = out / PARTIAL / f"{file.name}.{secrets.token_hex(4)}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise WriteError(file, error) from None


def done_lines(journal: Journal, out: Path, kind: str, last: int) -> bytearray:
    """Return, for every number of a line up to the last, whether its image is done.

    Lines of the journal whose images are gone are removed from it, so that those are made anew.

    Raises:
        TGateError: a line of the journal that no run wrote.
        WriteError: the journal cannot be written.
    """
    done = bytearray(last + 1)
    stale = set()
    for offset, entry in journal.entries():
        number, size = entry["line"], entry["bytes"]
        if 0 < number <= last and not done[number] and _has(out / image_file(number, kind), size):
            done[number] = True
        else:
            stale.add(offset)
    if stale:
        journal.remove(stale)
    return done


def _has(file: Path, size: int) -> bool:
    try:
        return file.stat().st_size == size
    except OSError:
        return False
