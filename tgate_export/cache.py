"""Where things are kept that are made again when they are not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return a folder for one kind of thing, which may not be there yet.

    Below `TGATE_EXPORT_CACHE`, else `XDG_CACHE_HOME/tgate-export`, else `~/.cache/tgate-export`.
    Deleting it harms nothing. For a user without a home, as in some containers, it is a folder that
    cannot be made, so that nothing is kept.
    """
    told = os.environ.get("TGATE_EXPORT_CACHE")
    if told:
        return Path(told) / name
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or "~/.cache").expanduser() / "tgate-export" / name
    except RuntimeError:
        return Path(os.devnull) / name


def keep(file: Path, content: bytes) -> None:
    """Write a file of such a folder, whole or not at all; what cannot be written is not kept."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(temporary).replace(file)
