"""Memory is given back where there is much of it, and nothing is searched where there is not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from tgate_export.common import memory
from tgate_export.common.memory import release_memory, resident_bytes


def test_resident_bytes_are_the_kernels() -> None:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (told,) = (int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    found = resident_bytes()
    assert found is not None
    assert abs(found - 1024 * told) <= 2**20  # what reading them takes


@pytest.fixture
def without_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize(("resident", "collected"), [(2**31, True), (None, True), (2**29, False)])
def test_cycles_go_where_memory_is_scarce(
    resident: int | None, collected: bool, without_collection: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "resident_bytes", lambda: resident)
    left = weakref.ref(Cycle())
    release_memory()
    assert (left() is None) == collected
