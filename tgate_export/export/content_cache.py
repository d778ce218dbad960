"""Files that take long to make, kept in the user's cache under what they were made from.

An entry is a folder `<key>/` of plain files and `record.json`, which lists them with their hashes.
It appears whole or not at all, is checked whenever it is used, and is removed when it is the one
that was used least recently and all of them take too much space.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue, ValidationError

from tgate_export.bundle.hashing import hash_files
from tgate_export.bundle.manifest import BundleModel, File, Name
from tgate_export.common.copy_file import copy_file
from tgate_export.common.errors import InvalidRequestError
from tgate_export.common.user_cache import cache_folder, mine, read_cached, write_cached

SIZE_VARIABLE = "TGATE_EXPORT_CACHE_SIZE"
DEFAULT_BYTES = 20 * 10**9
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_RECORD = "record.json"
_KEY = re.compile("[0-9a-f]{64}")
_TEMPORARY = ".tmp"


class Record(BundleModel):
    """An entry's `record.json`.

    Attributes:
        key: the entry's own: one that was moved to another key's place is none.
        label: what it is, for people.
        files: by name.
        content: what goes with them.
    """

    key: str
    label: str
    files: dict[Name, File]
    content: JsonValue


@dataclass(frozen=True)
class Entry:
    """What lies in the cache.

    Attributes:
        key: hash of everything that it was made from.
        label: what it is.
        bytes: space that it takes.
        used: when it was used last, in seconds since 1970.
    """

    key: str
    label: str
    bytes: int
    used: float


class ContentCache:
    """The entries of a folder.

    Args:
        folder: made when something is stored.
        most_bytes: space for all entries; 0 stores nothing, and finds nothing.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes

    def load(self, key: str, target: Path) -> Record | None:
        """Copy an entry's files into a folder, and return its record; None where there is none.

        What is checked is the copy. An entry that is damaged, or that somebody else has or could
        have written, is removed where that can be done, and is none.

        Raises:
            OSError: the folder cannot be written.
        """
        if not self.most_bytes or not os.path.lexists(self._path(key)):
            return None
        record = self._record(key)
        if record is None or not self._copy(record, target):
            self._remove(key)
            return None
        with contextlib.suppress(OSError):  # used just now
            os.utime(self._path(key) / _RECORD)
        return record

    def store(
        self, key: str, label: str, folder: Path, files: Mapping[str, File], content: JsonValue
    ) -> None:
        """Store copies of files; nothing where they cannot be written, or take too much space.

        Args:
            key: hash of everything that they were made from.
            label: what they are.
            folder: where they are.
            files: which, by name.
            content: what goes with them.
        """
        record = Record(key=key, label=label, files=dict(files), content=content)
        if sum(file.bytes for file in files.values()) > self.most_bytes or (
            self._record(key) == record  # by another process, or by this one before
        ):
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._temporary(key) as made:
                for name in files:
                    with (folder / name).open("rb") as source:
                        copy_file(source.fileno(), made / name, mode=0o600)
                write_cached(made / _RECORD, record.model_dump_json(indent=1).encode())
                if self._record(key, made) is None:  # a full disk
                    return
                self._remove(key)
                made.rename(self._path(key))
            self.shrink()

    def shrink(self) -> None:
        """Remove entries, those that were used least recently first, until all fit."""
        entries = sorted(self.entries(), key=lambda entry: entry.used)
        total = sum(entry.bytes for entry in entries)
        for entry in entries:
            if total <= self.most_bytes:
                break
            self._remove(entry.key)
            total -= entry.bytes
        self._remove_leftovers()

    def entries(self) -> Iterator[Entry]:
        """Yield what is there."""
        for path in self._below():
            with contextlib.suppress(OSError):
                if _KEY.fullmatch(path.name):
                    found = [entry.stat(follow_symlinks=False) for entry in os.scandir(path)]
                    record = self._record(path.name)
                    used = (path / _RECORD).lstat().st_mtime if record else 0.0
                    label = record.label if record else "damaged"
                    yield Entry(path.name, label, sum(file.st_size for file in found), used)

    def clean(self) -> None:
        """Remove everything that is not being written."""
        for entry in list(self.entries()):
            self._remove(entry.key)
        self._remove_leftovers()

    def _path(self, key: str) -> Path:
        return self.folder / key

    def _below(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return [Path(entry.path) for entry in os.scandir(self.folder)]
        return []

    def _record(self, key: str, path: Path | None = None) -> Record | None:
        content = read_cached((path or self._path(key)) / _RECORD)
        with contextlib.suppress(ValidationError, RecursionError):
            record = Record.model_validate_json(content or b"")
            if record.key == key:
                return record
        return None

    def _copy(self, record: Record, target: Path) -> bool:
        """Copy an entry's files; whether they are what was stored."""
        copied = []
        for name in record.files:
            try:
                source = mine(self._path(record.key) / name)
            except OSError:
                break
            with source:
                copied.append(target / name)
                copy_file(source.fileno(), target / name)
        same = len(copied) == len(record.files) and record.files == dict(
            hash_files(target, record.files)
        )
        if not same:
            for file in copied:
                file.unlink()
        return same

    @contextlib.contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        """Give a folder that is removed at the end, unless it was renamed.

        A lock tells it from what a killed process left.
        """
        made = self.folder / f".{key}.{secrets.token_hex(4)}{_TEMPORARY}"
        made.mkdir(mode=0o700)
        descriptor = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield made
        finally:
            os.close(descriptor)
            shutil.rmtree(made, ignore_errors=True)

    def _remove(self, key: str) -> None:
        """Remove an entry at once for everybody else, and then its files."""
        gone = self.folder / f".{key}.{secrets.token_hex(4)}{_TEMPORARY}"
        with contextlib.suppress(OSError):
            self._path(key).rename(gone)
            _remove_tree(gone)

    def _remove_leftovers(self) -> None:
        """Remove what killed processes left."""
        for path in self._below():
            if not path.name.endswith(_TEMPORARY):
                continue
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove_tree(path)
                finally:
                    os.close(descriptor)


def user_content_cache() -> ContentCache:
    """Return the cache of exported graphs, as large as the user wants it or the disk allows.

    Raises:
        InvalidRequestError: a size that is none.
    """
    folder = cache_folder("graphs")
    asked = os.environ.get(SIZE_VARIABLE)
    if asked:
        found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([KMGT]?)B?", asked.strip().upper())
        if found is None:
            raise InvalidRequestError(
                f"{SIZE_VARIABLE} is {asked!r}: give a size such as 50GB, or 0 for no cache"
            )
        return ContentCache(folder, int(float(found[1]) * _UNITS[found[2]]))
    cache = ContentCache(folder, DEFAULT_BYTES)
    own = sum(entry.bytes for entry in cache.entries())
    above = next(path for path in (folder, *folder.parents) if path.exists())
    cache.most_bytes = min(DEFAULT_BYTES, (shutil.disk_usage(above).free + own) // 10)
    return cache


def _remove_tree(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
