"""Write folders atomically: a killed build leaves either the old bundle or none."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tgate_export.bundle.integrity import bundle_files, read_manifest
from tgate_export.bundle.manifest import MANIFEST_NAME
from tgate_export.bundle.plans import BUILDING
from tgate_export.errors import BundleError

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
    with contextlib.ExitStack() as lock:
        # Two builds that start at once must not take each other's folder for a leftover.
        with _locked(out.parent, wait=True):
            if _remove_leftovers(out):
                raise BundleError(f"another build is writing {out}: wait for it")
            staging = Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
            lock.enter_context(_locked(staging))
        retired = staging.with_name(staging.name + ".old")
        try:
            staging.chmod(0o777 & ~_umask())
            yield staging
            _sync(staging)
            with _locked(out.parent, wait=True):
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
    with _locked(out.parent, wait=True):
        _remove_leftovers(out)


def _remove_leftovers(out: Path) -> bool:
    """Do so while the folder above is locked; return whether a build is running."""
    leftovers = list(out.parent.glob(f"{glob.escape(_prefix(out))}*"))
    if any(map(_is_locked, leftovers)):
        return True
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)
    return False


def check_replaceable(out: Path, *, force: bool = False) -> None:
    """Refuse to replace anything but nothing, an empty folder, or a bundle.

    Raises:
        BundleError: names what is in the way.
    """
    parent = Path(os.path.abspath(out)).parent
    above = next(path for path in (parent, *parent.parents) if path.exists())
    if not above.is_dir():
        raise BundleError(f"{above} is not a folder: choose another --out")
    if above != parent:
        return
    try:
        with _locked(parent, wait=True):  # a build that ends puts another folder there
            _check_replaceable(out, force=force)
    except PermissionError as error:
        raise BundleError(f"{error.filename} cannot be read: choose another --out") from None


def _check_replaceable(out: Path, *, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise BundleError(f"{out} exists and is not a folder: choose another --out")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST_NAME).is_file():
        raise BundleError(
            f"{out} holds something else than a bundle: choose another --out, or empty it"
        )
    if force:
        return
    try:
        known = read_manifest(out).files.keys()
    except BundleError:  # other programs have files of that name, too
        raise BundleError(
            f"{out} has a {MANIFEST_NAME} that is damaged or of something else than a bundle: "
            "choose another --out, or replace everything with --force"
        ) from None
    extra = sorted(set(bundle_files(out)) - known)
    if extra:
        raise BundleError(
            f"{out / extra[0]} is in the folder of the bundle but not of it: move it, "
            "or replace everything with --force"
        )


def _prefix(out: Path) -> str:
    return f".{out.name}{BUILDING}"


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


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock on a folder that ends with this process at the latest."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _is_locked(folder: Path) -> bool:
    try:
        with _locked(folder):
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:  # that build has just ended
        return False


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
