"""Locks beside what is written, that nobody but the user who writes it can hold.

A lock is an empty folder of a name that says what it is for. Nobody else can open it, as anybody
can the folder above, and a program that holds *that* would hold up every build below it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

# A file system without locks, or a folder that cannot be written: nothing excludes anything there.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_SAY_AFTER_SECONDS = 1.0
_POLL_SECONDS = 0.02
_MOST_NAMES = 100


class LockedError(Exception):
    """Another process of this user holds the lock."""


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock that ends with this process at the latest; its folder is removed at the end.

    What others put in its place, be it a lock of theirs, a file or a FIFO, is passed over: the lock
    then has another name.

    Args:
        path: where its folder is made.
        wait: until nobody holds it; says so when that takes long.

    Raises:
        LockedError: it is held, and `wait` is false.
        OSError: the folder above cannot be written.
    """
    started, said = time.monotonic(), False
    while True:
        own, descriptor = _open(path)
        try:
            _lock(descriptor)
            # Whoever held it removed its folder at the end: then this is a lock on nothing.
            if _is(own, descriptor):
                break
        except BlockingIOError:
            if not wait:
                os.close(descriptor)
                raise LockedError from None
            if not said and time.monotonic() - started > _SAY_AFTER_SECONDS:
                said = True
                warnings.warn(f"waiting for another build, which holds {own}", stacklevel=3)
            time.sleep(_POLL_SECONDS)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            own.rmdir()
        os.close(descriptor)


def _open(path: Path) -> tuple[Path, int]:
    """Make and open the first folder of that name, or of it with a number, that is this user's."""
    number = 0
    while number < _MOST_NAMES:
        own, made = path.with_name(path.name + (f".{number}" if number else "")), False
        with contextlib.suppress(FileExistsError):
            own.mkdir(mode=0o700)
            made = True
        try:
            descriptor = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # whoever held it has just removed it
            continue
        except OSError:
            number += 1
            continue
        # Some file systems say of every file that it is one user's.
        if made or os.fstat(descriptor).st_uid == os.geteuid():
            return own, descriptor
        os.close(descriptor)
        number += 1
    raise OSError(errno.EEXIST, "too many locks of other users: remove them", str(path))


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _is(path: Path, descriptor: int) -> bool:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))
