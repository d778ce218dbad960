"""Write a bundle atomically: a killed build leaves either the old bundle or none."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tgate_export.bundle.integrity import bundle_files, read_manifest
from tgate_export.bundle.manifest import MANIFEST_NAME
from tgate_export.errors import BundleError


@contextlib.contextmanager
def replace_bundle(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `out`, and rename it to `out` when the block succeeds.

    On any error, interruption included, the temporary folder is removed and `out` is as it
    was. What a killed process left behind is removed by the next build of the same bundle.

    Args:
        out: where the bundle is to be; nothing, an empty folder, or an older bundle.
        force: replace an older bundle even when it holds files that no build made.

    Raises:
        BundleError: when `out` holds something else, or another build is writing it.
    """
    check_replaceable(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.building-"
    for leftover in out.parent.glob(f"{prefix}*"):
        if _is_locked(leftover):
            raise BundleError(f"another build is writing {out}: wait for it")
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    retired = staging.with_name(staging.name + ".old")
    try:
        with _locked(staging):
            staging.chmod(0o777 & ~_umask())
            yield staging
            _sync(staging)
            if out.exists():
                out.rename(retired)
            staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def check_replaceable(out: Path, *, force: bool = False) -> None:
    """Refuse to replace anything but nothing, an empty folder, or a bundle.

    Raises:
        BundleError: names what is in the way.
    """
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
    except BundleError:  # a damaged manifest is replaced
        return
    extra = sorted(set(bundle_files(out)) - known)
    if extra:
        raise BundleError(
            f"{out / extra[0]} is in the folder of the bundle but not of it: move it, "
            "or replace everything with --force"
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder that ends with this process at the latest."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_locked(folder: Path) -> bool:
    try:
        with _locked(folder):
            return False
    except BlockingIOError:
        return True


def _sync(folder: Path) -> None:
    """Flush every file to disk, so that a rename never outlives the contents."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
