"""Open a bundle and check that its files are the ones that were built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tgate_export.bundle.bystanders import is_bystander
from tgate_export.bundle.hash_cache import Stamp, cached_hashes, stamp_of
from tgate_export.bundle.hashing import hash_file, hash_files
from tgate_export.bundle.manifest import MANIFEST_NAME, Manifest
from tgate_export.bundle.manifest_reader import parse_manifest
from tgate_export.bundle.plans import PLANS_FOLDER, check_plan_sets
from tgate_export.common.errors import BundleError
from tgate_export.common.hints import Build
from tgate_export.common.json_file import RECORD_BYTES, read_regular

# Derived from the bundle's own files, and recorded by themselves.
DERIVED_FOLDERS = (PLANS_FOLDER,)


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and its manifest.

    Attributes:
        path: the folder.
        manifest: what it says.
        stamps: those of its files when it was opened, where it was; see `reading`.
    """

    path: Path
    manifest: Manifest
    stamps: dict[str, Stamp] = field(default_factory=dict, compare=False, repr=False)

    def file(self, relative: str) -> Path:
        """Return the path of one of the bundle's files."""
        return self.path / relative

    @contextmanager
    def reading(self, *files: str | None) -> Iterator[None]:
        """Read files long after they were checked: only those that were.

        One that was touched since is hashed again, so that a bundle may be copied over by itself.

        Args:
            files: what the block reads; relative, None for nothing.

        Raises:
            BundleError: one is another, before the block or after it.
        """
        names = [name for name in files if name is not None and name in self.stamps]
        for name in names:
            self.stamps[name] = self._same(name)
        yield
        for name in names:
            self.stamps[name] = self._same(name)

    def _same(self, name: str) -> Stamp:
        path = self.file(name)
        try:
            stamp = stamp_of(path)
            if stamp == self.stamps[name] or hash_file(path) == self.manifest.files[name]:
                return stamp
            reason = "was changed"
        except OSError as error:
            reason = f"is gone ({error.strerror})"
        raise BundleError(f"{path} {reason} while the bundle was in use: load the bundle again")


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the bundle at `path`, without looking at its other files.

    Raises:
        BundleError: when there is no bundle, or its manifest cannot be read.
    """
    manifest = path / MANIFEST_NAME
    try:
        text = read_regular(manifest, RECORD_BYTES).decode()
    except (FileNotFoundError, NotADirectoryError):
        why = f"it has no {MANIFEST_NAME}" if path.exists() else "no such folder"
        raise BundleError(
            f"{path} is not a bundle: {why}", "make one with `", Build(), "`"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read {manifest}: {error}: build the bundle again") from None
    return parse_manifest(text, manifest)


def open_bundle(
    path: str | Path, *, check_hashes: bool = True, cache_hashes: bool = False
) -> Bundle:
    """Open a bundle after checking that every file is present, of the right size and content.

    Args:
        path: the bundle's folder.
        check_hashes: also compare contents with the manifest's sha256 (about 1 s a GB).
        cache_hashes: do not read a large file for it that this machine has hashed before and that
            was not touched since; see `cached_hashes`.

    Raises:
        BundleError: names the first file that is missing, extra, or changed.
    """
    manifest = read_manifest(Path(path))
    # What is loaded later is of this folder, wherever the process and a link to it go meanwhile.
    bundle = Bundle(Path(path).resolve(), manifest)
    check_files(bundle, check_hashes=check_hashes, cache_hashes=cache_hashes)
    check_plan_sets(
        bundle.path, bundle.manifest, check_hashes=check_hashes, cache_hashes=cache_hashes
    )
    return bundle


def check_files(bundle: Bundle, *, check_hashes: bool, cache_hashes: bool = False) -> None:
    """Compare a bundle's folder with its manifest; see `open_bundle`."""
    files = bundle.manifest.files
    root = bundle.path.resolve()
    for relative, expected in files.items():
        path = bundle.file(relative)
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:  # a link to itself
            raise BundleError(f"{path} cannot be read ({error}): build the bundle again") from None
        if not real.is_relative_to(root):
            raise BundleError(
                f"{path} is a link that leaves the bundle, as in the hub's cache: copy the folder "
                "with `cp -rL`, or download it with --local-dir"
            )
        if not real.is_file():
            raise BundleError(f"{path} is missing: build the bundle again")
        bundle.stamps[relative] = stamp_of(path)
        size = path.stat().st_size
        if size != expected.bytes:
            raise BundleError(
                f"{path} has {size} bytes, {expected.bytes} were built: build the bundle again"
            )
    extra = sorted(
        file for file in set(bundle_files(bundle.path)) - files.keys() if not is_bystander(file)
    )
    if extra:
        raise BundleError(
            f"{bundle.file(extra[0])} does not belong to the bundle: move it elsewhere"
        )
    if check_hashes:
        hashes = cached_hashes if cache_hashes else hash_files
        for relative, found in hashes(bundle.path, files):
            if found.sha256 != files[relative].sha256:
                raise BundleError(
                    f"{bundle.file(relative)} was changed after the build "
                    "(its sha256 differs): build the bundle again"
                )


def bundle_files(path: Path) -> Iterator[str]:
    """List a bundle folder's files, relative, without its manifest and derived folders."""
    for file in path.rglob("*"):
        relative = file.relative_to(path)
        own = relative.parts[0] in DERIVED_FOLDERS or relative.as_posix() == MANIFEST_NAME
        # Not only files: a FIFO or a device would hang or feed whoever reads the folder.
        if (file.is_symlink() or not file.is_dir()) and not own:
            yield relative.as_posix()
