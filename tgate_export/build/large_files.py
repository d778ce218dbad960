"""Files of weights, read without copies and hashed while they are written."""

from __future__ import annotations

import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tgate_export.bundle.manifest import File
from tgate_export.common.errors import BundleError


class MappedFile:
    """The bytes of a file, without copies of them.

    Args:
        path: the file; that of a bundle is never written again.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._mapping = path, None
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size:
                self._mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._mapping or b"", np.uint8)

    def read(self, offset: int, length: int) -> NDArray[np.uint8]:
        """Return bytes [length]."""
        data = self._bytes[offset : offset + length]
        if len(data) < length:
            raise BundleError(f"{self._path} ends before {offset + length}: build the bundle again")
        return data

    def forget(self, offset: int, length: int) -> None:
        """Let bytes take no memory until they are read again."""
        begin = offset - offset % mmap.PAGESIZE
        if self._mapping is not None and length:
            self._mapping.madvise(mmap.MADV_DONTNEED, begin, offset + length - begin)


class HashedFile(AbstractContextManager["HashedFile"]):
    """A new file that another thread hashes while it is written.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._stream = path.open("xb", buffering=0)
        self._digest, self._bytes = hashlib.sha256(), 0
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Write data, which has to stay as it is."""
        view = memoryview(data).cast("B")
        if self._last is not None:  # no more than one is waiting
            self._last.result()
        self._last = self._pool.submit(self._digest.update, view)
        done = 0
        while done < len(view):
            done += self._stream.write(view[done:])
        self._bytes += done

    def flush(self) -> None:
        """Do nothing: what was written can be read."""

    def hashed(self) -> File:
        """Return the hash of what was written."""
        if self._last is not None:
            self._last.result()
        return File(sha256=self._digest.hexdigest(), bytes=self._bytes)

    def close(self) -> None:
        """Finish the file."""
        self._pool.shutdown()
        self._stream.close()

    def __exit__(self, *_: object) -> None:
        self.close()
