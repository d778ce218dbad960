"""Bundles that were changed and listed anew, as anyone can who makes one: nothing signs them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tgate_export.bundle.manifest import MANIFEST_NAME


def relist(bundle: Path, edit: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
    """Edit a bundle's manifest, then list the files that are there with their hashes."""
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
