"""What is made once for all tests, also where several processes run them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock


def common_folder(factory: pytest.TempPathFactory) -> Path:
    """Return the temporary folder of this run, whichever process asks."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@contextmanager
def alone(factory: pytest.TempPathFactory, name: str) -> Iterator[None]:
    """Let one process at a time do what has that name."""
    with FileLock(common_folder(factory) / f"{name}.lock"):
        yield


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the shared folder of that name, made by whichever process needs it first."""
    folder = common_folder(factory) / "shared" / name
    with alone(factory, name.replace("/", "-")):
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            make(folder)
    return folder
