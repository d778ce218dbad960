"""A hook of mkdocs (see mkdocs.yml): the site's pages are the repository's, where they lie in it.

mkdocs takes one folder of pages, and README.md, engines/README.md and others lie outside it. They
are added here under their own paths, and every file that a page links to with them, so that one
link serves the repository and the site.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


def pages() -> list[str]:
    """Return the pages, relative to the repository."""
    found = [*ROOT.glob("*.md"), ROOT / "engines" / "README.md", *(ROOT / "docs").rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def linked(page: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to or shows."""
    path = ROOT / page
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        target = (path.parent / link).resolve()
        if "://" not in link and target.is_file() and target.is_relative_to(ROOT):
            yield target.relative_to(ROOT).as_posix()


def on_files(files: Any, config: Any) -> Any:
    """Replace what mkdocs found in its folder of pages."""
    from mkdocs.structure.files import File

    for file in list(files):
        if file.abs_src_path and Path(file.abs_src_path).is_relative_to(config.docs_dir):
            files.remove(file)
    for path in sorted({*pages(), *(file for page in pages() for file in linked(page))}):
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files
