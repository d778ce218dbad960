"""Files that others put into folders: nobody reads them, and they harm nobody."""

from __future__ import annotations

from pathlib import PurePosixPath

# Of file managers, in any folder.
_ANYWHERE = {".DS_Store", "Thumbs.db", "desktop.ini"}
# Of hubs and of version control, in the bundle's own; of folders, all that is below.
_ON_TOP = {"README.md", "LICENSE", "LICENSE.md", ".gitattributes", ".gitignore", ".git", ".cache"}


def is_bystander(relative: str) -> bool:
    """Whether a file of that name, relative to a bundle, may lie in it without being listed."""
    path = PurePosixPath(relative)
    return path.name in _ANYWHERE or path.parts[0] in _ON_TOP
