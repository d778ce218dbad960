"""What to install, in words that work wherever they are printed."""

from __future__ import annotations

import re
import shlex
from importlib import metadata


def pip_install(*extras: str) -> str:
    """Return the command that installs what extras of this package name.

    The requirements themselves are written out: the package may come from a folder or a wheel
    that no index has, and then `pip install 'tgate-export[...]'` finds nothing.

    Args:
        extras: keys of `[project.optional-dependencies]`.
    """
    try:
        requirements = metadata.requires("tgate-export") or []
    except metadata.PackageNotFoundError:  # run from its folder
        return f"install what its pyproject.toml names under {' and '.join(extras)}"
    named = []
    for requirement in requirements:
        text, _, marker = requirement.partition(";")
        extra = re.search(r"""extra\s*==\s*["']([^"']+)["']""", marker)
        if extra and extra[1] in extras:
            named.append(shlex.quote(text.strip()))
    return f"pip install {' '.join(named)}"
