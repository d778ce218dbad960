"""Files of weights that engines compute from while they are there."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path

import numpy as np

from tgate_export.common.errors import BundleError


class OpenFile:
    """A file that an engine may read at any time; another of its name is none of its business."""

    def __init__(self, file: Path) -> None:
        self.path = file
        self.name = file.name
        self._handle = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._handle)
        self._state = self._now()

    def check(self) -> None:
        """Refuse to compute from a file that somebody wrote to.

        What was cut off a mapped file ends the process when it is read.

        Raises:
            BundleError: names the file.
        """
        if self._now() != self._state:
            raise BundleError(f"{self.path} was changed while it was in use: load the bundle again")

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._handle)
        return status.st_size, status.st_mtime_ns


class WeightMap(OpenFile):
    """A file of weights in memory, whose pages are read when they are first needed.

    Where a file system has no maps, as some of networks and of containers, it is read.

    Attributes:
        bytes: the whole file [bytes] u8. Whoever writes to it writes to a copy.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._map: mmap.mmap | None = None
        try:
            # OpenVINO takes only writable arrays, and writes to none.
            self._map = mmap.mmap(self._handle, 0, access=mmap.ACCESS_COPY)
        except OSError:
            self.bytes: np.ndarray = np.fromfile(file, dtype=np.uint8)
        else:
            self.bytes = np.frombuffer(self._map, dtype=np.uint8)

    def drop_pages(self) -> None:
        """Take the pages out of memory; what reads one again brings it back."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
