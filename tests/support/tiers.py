"""Which tests run: `--quick` leaves out all that need something built, by what they ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# What ends so is a fixture that builds, or that compiles the C++ library.
BUILDS = ("bundle", "built", "cold", "cpp_build", "venv")
KEPT = ("graphs", "samplers")


def is_quick(item: pytest.Item) -> bool:
    """Whether a test needs nothing that takes long to make."""
    names: list[str] = getattr(item, "fixturenames", [])
    marked = any(item.get_closest_marker(name) for name in ("slow", "builds"))
    return not marked and not any(name.endswith(BUILDS) for name in names)


def refuse_to_build(*_arguments: object, **_options: object) -> None:
    """Stand for whatever builds in a quick run."""
    pytest.fail("exports graphs: mark it with pytest.mark.builds")


def link_cache(folder: Path) -> None:
    """Let a run's own cache have the graphs and sampler tables of earlier runs.

    They lie in `TGATE_EXPORT_TESTS_CACHE`, unless set in the user's cache, but apart from the
    user's own; nothing is kept where it is empty. Their keys close over our code.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    kept = os.environ.get("TGATE_EXPORT_TESTS_CACHE", f"{base}/tgate-export-tests")
    if not kept:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        target = Path(kept).expanduser().resolve() / name
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
