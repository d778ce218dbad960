"""Where things are kept that are made again when they are not there."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

# A hash, and what a killed process left of one.
_CACHED = re.compile(r"[0-9a-f]{64}\.json|\.[0-9a-f]{64}\.json\.[0-9a-f]{8}\.tmp")


def cache_folder(name: str) -> Path:
    """Return a folder for one kind of thing, which may not be there yet.

    Below `TGATE_EXPORT_CACHE`, else `XDG_CACHE_HOME/tgate-export`, else `~/.cache/tgate-export`.
    Deleting it harms nothing. For a user without a home, as in some containers, it is a folder that
    cannot be made, so that nothing is kept.
    """
    chosen = os.environ.get("TGATE_EXPORT_CACHE")
    if chosen:
        return Path(chosen) / name
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or "~/.cache").expanduser() / "tgate-export" / name
    except RuntimeError:
        return Path(os.devnull) / name


def write_cached(file: Path, content: bytes) -> None:
    """Write a file of a `cache_folder`, whole or not at all, if it can be written."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(file, content, mode=0o600)


def cached_files(name: str) -> list[Path]:
    """Return the files of `cache_folder(name)` that `write_cached` wrote, by their names."""
    with contextlib.suppress(OSError):
        return [file for file in cache_folder(name).iterdir() if _CACHED.fullmatch(file.name)]
    return []


def read_cached(file: Path) -> bytes | None:
    """Read a file of a `cache_folder` that this user alone could have written; None without one."""
    with contextlib.suppress(OSError), mine(file) as stream:
        return stream.read()
    return None


def mine(file: Path) -> BinaryIO:
    """Open a file of a `cache_folder` that this user alone could have written.

    Where others can write to the folder, they can put a file there, but none of this user's: what
    somebody else owns or could have written vouches for nothing.

    Raises:
        OSError: there is no such file.
    """
    stream = os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb")
    found = os.fstat(stream.fileno())
    if found.st_uid == os.geteuid() and not found.st_mode & 0o022 and stat.S_ISREG(found.st_mode):
        return stream
    stream.close()
    raise PermissionError(errno.EPERM, "not this user's alone", str(file))


def write_whole(file: Path, content: bytes) -> None:
    """Write a file of the user's; when that fails, as on a full disk, it is as it was.

    Raises:
        OSError: it cannot be written.
    """
    file = Path(os.path.realpath(file))
    try:
        mode: int | None = stat.S_IMODE(file.stat().st_mode)
    except FileNotFoundError:
        mode = None
    # A device or a pipe is no file that could be replaced, nor one in a folder that is read only.
    if (mode is not None and not file.is_file()) or not os.access(file.parent, os.W_OK):
        file.write_bytes(content)
    else:
        _replace(file, content, mode)


def _replace(file: Path, content: bytes, mode: int | None) -> None:
    """Write beside a file and rename; permissions are those of a new file where `mode` is None."""
    temporary = file.with_name(f".{file.name[:200]}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            if mode is not None:
                os.fchmod(descriptor, mode)
            stream.write(content)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
