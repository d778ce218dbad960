"""Write folders atomically: a killed build leaves either the old bundle or none."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tgate_export.bundle.integrity import bundle_files, read_manifest
from tgate_export.bundle.locks import LockedError, locked
from tgate_export.bundle.manifest import MANIFEST_NAME
from tgate_export.bundle.plans import BUILDING
from tgate_export.common.errors import BundleError
from tgate_export.common.hints import Argument

_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)


@contextlib.contextmanager
def replace_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out`, and rename it to `out` when the block succeeds.

    On any error, interruption included, the temporary folder is removed and `out` is as it
    was. What a killed process left behind is removed by the next call for the same folder.

    Raises:
        BundleError: another process is writing it.
    """
    out = Path(os.path.abspath(out))  # "." has no name
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(_lock(out, "build")):
            yield from _replace(out)
    except LockedError:
        raise BundleError(f"another build is writing {out}: wait for it") from None


def _replace(out: Path) -> Iterator[Path]:
    """Do so while no other build of this user's writes there."""
    _remove_leftovers(out)
    staging = Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
    retired = staging.with_name(staging.name + ".old")
    try:
        staging.chmod(0o777 & ~_umask())
        yield staging
        _sync(staging)
        with locked(_lock(out, "swap"), wait=True):
            _swap(staging, out, retired)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


@contextlib.contextmanager
def replace_bundle(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Replace a bundle and nothing else; see `replace_folder`.

    Args:
        out: where the bundle is to be; nothing, an empty folder, or an older bundle.
        force: replace an older bundle even when it is damaged or holds files that no build made.

    Raises:
        BundleError: when `out` holds something else, or another build is writing it.
    """
    check_replaceable(out, force=force)
    with replace_folder(out) as staging:
        yield staging


def remove_leftovers(out: Path) -> None:
    """Remove what killed builds of `out` left behind, if no other is running."""
    out = Path(os.path.abspath(out))
    with contextlib.suppress(LockedError), locked(_lock(out, "build")):
        _remove_leftovers(out)


def _remove_leftovers(out: Path) -> None:
    """Do so while no build of this user's is running: what is of others may be in use."""
    for leftover in out.parent.glob(f"{glob.escape(_prefix(out))}*"):
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(leftover)
            # A FIFO of that name would not only be no leftover: removing its tree opens it.
            mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            if mine and not leftover.name.startswith(_lock(out, "").name):
                shutil.rmtree(leftover, ignore_errors=True)


def check_replaceable(out: Path, *, force: bool = False) -> None:
    """Refuse to replace anything but nothing, an empty folder, or a bundle.

    Raises:
        BundleError: names what is in the way.
    """
    parent = Path(os.path.abspath(out)).parent
    above = next(path for path in (parent, *parent.parents) if path.exists())
    if not above.is_dir():
        raise BundleError(f"{above} is not a folder", "choose another ", Argument("out"))
    if above != parent:
        return
    try:
        with contextlib.ExitStack() as lock:
            # Nobody replaces the root, or anything in a folder that cannot be written.
            if Path(os.path.abspath(out)).name and os.access(parent, os.W_OK):
                # A build that ends puts another folder there.
                lock.enter_context(locked(_lock(out, "swap"), wait=True))
            _check_replaceable(out, force=force)
    except PermissionError as error:
        raise BundleError(
            f"{error.filename} cannot be read", "choose another ", Argument("out")
        ) from None


def _check_replaceable(out: Path, *, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise BundleError(f"{out} exists and is not a folder", "choose another ", Argument("out"))
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST_NAME).is_file():
        raise BundleError(
            f"{out} holds something else than a bundle",
            "choose another ",
            Argument("out"),
            ", or empty it",
        )
    if force:
        return
    try:
        known = read_manifest(out).files.keys()
    except BundleError:  # other programs have files of that name, too
        raise BundleError(
            f"{out} has a {MANIFEST_NAME} that is damaged or of something else than a bundle",
            "choose another ",
            Argument("out"),
            ", or replace everything with ",
            Argument("force", True),
        ) from None
    extra = sorted(set(bundle_files(out)) - known)
    if extra:
        raise BundleError(
            f"{out / extra[0]} is in the folder of the bundle but not of it",
            "move it, or replace everything with ",
            Argument("force", True),
        )


def _prefix(out: Path) -> str:
    return f".{out.name}{BUILDING}"


def _lock(out: Path, purpose: str) -> Path:
    # `mkdtemp` makes no names with a dot.
    return Path(os.path.abspath(out)).with_name(f"{_prefix(out)}lock.{purpose}")


def _swap(staging: Path, out: Path, retired: Path) -> None:
    """Put `staging` in the place of `out`; when that fails, `out` is as it was."""
    try:
        if out.exists():
            out.rename(retired)
        staging.rename(out)
    except BaseException:
        if retired.exists() and not out.exists():
            retired.rename(out)
        raise


def _sync(folder: Path) -> None:
    """Flush files and folders to disk, so that a rename never outlives the contents."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:  # network drives and shared folders refuse it for folders
            if error.errno not in _CANNOT_SYNC:
                raise
        finally:
            os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
