"""Content hashes of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tgate_export.bundle.manifest import File

_CHUNK = 1 << 20


def hash_file(path: Path) -> File:
    """Return a file's size and sha256."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return File(sha256=digest.hexdigest(), bytes=size)


def hash_files(root: Path, relatives: Iterable[str]) -> Iterator[tuple[str, File]]:
    """Hash several files below `root` in parallel (hashing releases the interpreter lock)."""
    names = list(relatives)
    with ThreadPoolExecutor() as pool:
        yield from zip(names, pool.map(lambda name: hash_file(root / name), names), strict=True)
