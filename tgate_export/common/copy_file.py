"""Copies of large files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def copy_file(source: int, target: Path, mode: int | None = None) -> None:
    """Copy an open file to a new one, without its bytes where the file system can.

    Never a second name of the same file: whoever then writes into one would change the other.

    Args:
        source: descriptor of the file, at its beginning.
        target: which is not there.
        mode: permissions of the copy; those of any new file when not given.

    Raises:
        OSError: it cannot be read or written.
    """
    with target.open("xb") as stream:
        if mode is not None:
            os.fchmod(stream.fileno(), mode)
        try:
            while os.copy_file_range(source, stream.fileno(), 1 << 30):
                pass
        except OSError:
            # Not between these file systems: what was copied so far is where both files are now.
            with os.fdopen(os.dup(source), "rb") as rest:
                shutil.copyfileobj(rest, stream, 1 << 20)
