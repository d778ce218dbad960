"""What a disk lacks, said in a line."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from tgate_export.common.errors import TGateError
from tgate_export.common.hints import Argument


def require_space(folder: Path, needed: int) -> None:
    """Refuse to begin what will not fit.

    Args:
        folder: where a bundle is written, beside its place.
        needed: bytes of its weights.

    Raises:
        TGateError: the disk has too little space.
    """
    free = shutil.disk_usage(folder).free
    if free < needed * 1.02:
        raise TGateError(
            f"the bundle needs {needed / 1e9:.1f} GB and {folder.parent} has "
            f"{free / 1e9:.1f} GB free",
            "free some space, or choose another ",
            Argument("out"),
        )


@contextlib.contextmanager
def readable_disk_errors(out: Path) -> Iterator[None]:
    """Say what to do about a disk that is full or cannot be written.

    Args:
        out: the bundle that the block writes.

    Raises:
        TGateError: for the system's own error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TGateError(
                f"the disk is full: {out.parent} cannot hold the bundle; free some space"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise TGateError(
                f"cannot write {out}: {error.strerror}", "choose another ", Argument("out")
            ) from error
        raise
