"""What may meet the product: bundles that were changed and listed anew, and full disks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tgate_export.bundle.manifest import MANIFEST_NAME


def relist(bundle: Path, edit: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
    """Edit a bundle's manifest, then list the files that are there with their hashes.

    Anyone who makes a bundle can: nothing signs it.
    """
    path = bundle / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    edit(manifest)
    manifest["files"] = {
        name: {
            "sha256": hashlib.sha256((bundle / name).read_bytes()).hexdigest(),
            "bytes": (bundle / name).stat().st_size,
        }
        for name in manifest["files"]
    }
    path.write_text(json.dumps(manifest))


@contextlib.contextmanager
def full_disk(limit: int = 100) -> Iterator[None]:
    """Every file that grows beyond a few bytes fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
