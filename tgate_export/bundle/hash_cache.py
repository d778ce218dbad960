"""Hashes of large files that this machine computed before, for as long as nothing touched them.

A file of 3.4 GB takes a core 3 to 5 s to hash, half of what it takes to load it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from tgate_export.bundle.hashing import hash_files
from tgate_export.bundle.manifest import File
from tgate_export.common.user_cache import cache_folder, read_cached, write_cached

LARGE_BYTES = 16 * 2**20
# A write within a file system's resolution of time after another may leave no trace.
_SETTLED_NS = 2 * 10**9

Stamp = tuple[int, int, int, int, int]


class _Hashed(BaseModel):
    stamp: Stamp
    sha256: str


_RECORD = TypeAdapter(dict[str, _Hashed])


def cached_hashes(root: Path, relatives: Iterable[str]) -> Iterator[tuple[str, File]]:
    """Hash files as `hash_files` does, but not a large one twice.

    It is the same file when its inode, size and times are: what git's index goes by. Times that a
    user can set are among them, and one that only the kernel does. Unseen goes what changes none of
    them: a write through a memory map that was open, and written to, when the file was hashed; what
    a failing disk or whoever has the disk below changes behind the kernel's back. `verify` reads
    every file, and so does a runtime whose cache is nowhere: `TGATE_EXPORT_CACHE=/dev/null`.

    Args:
        root: the folder.
        relatives: the files, relative to it.
    """
    file = (
        cache_folder("hashes") / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()}.json"
    )
    record = _read(file)
    now = time.time_ns()
    stamps = {name: stamp_of(root / name) for name in relatives}
    known = {
        name: File(sha256=record[name].sha256, bytes=stamp[2])
        for name, stamp in stamps.items()
        if name in record and record[name].stamp == stamp
    }
    found = dict(hash_files(root, stamps.keys() - known.keys()))
    fresh = {
        name: _Hashed(stamp=stamps[name], sha256=file.sha256)
        for name, file in found.items()
        if file.bytes >= LARGE_BYTES
        and max(stamps[name][3:]) < now - _SETTLED_NS
        and stamp_of(root / name) == stamps[name]
    }
    if fresh:
        all_known = {name: record[name] for name in known} | fresh
        write_cached(file, _RECORD.dump_json(all_known, indent=1))
    for name in stamps:
        yield name, (known | found)[name]


def stamp_of(path: Path) -> Stamp:
    """Return what tells whether anything touched a file: device, inode, size and times."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(file: Path) -> dict[str, _Hashed]:
    with contextlib.suppress(ValueError):  # damaged
        content = read_cached(file)
        if content is not None:
            return _RECORD.validate_json(content)
    return {}
