"""Where things are kept that are made again when they are not there."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return a folder for one kind of thing, which may not be there yet.

    Below `TGATE_EXPORT_CACHE`, else `XDG_CACHE_HOME/tgate-export`, else `~/.cache/tgate-export`.
    Deleting it harms nothing.
    """
    told = os.environ.get("TGATE_EXPORT_CACHE")
    if told:
        return Path(told) / name
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "tgate-export" / name
