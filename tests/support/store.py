"""Something that `replace_bundle` takes for a bundle."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.manifest import VALID
from tgate_export.bundle.store import replace_bundle

MANIFEST = "manifest.json"


def write(folder: Path, text: str) -> None:
    """Write something with a readable manifest that lists one file."""
    (folder / "graphs").mkdir()
    for name in VALID["files"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / MANIFEST).write_text(json.dumps(VALID))


def build(out: Path, text: str = "new", *, force: bool = False) -> None:
    with replace_bundle(out, force=force) as staging:
        assert staging.parent == out.parent
        write(staging, text)


def content(out: Path) -> str:
    return (out / "graphs" / "full.onnx").read_text()
