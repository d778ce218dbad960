"""A bundle with real TensorRT-RTX plans, for a GPU that is not there."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.common.progress import Progress
from tgate_export.compile.compile import compile_plans, prepare
from tgate_export.compile.request import PlanRequest


def request_for(*sm: str, **changes: object) -> PlanRequest:
    return PlanRequest("tensorrt-rtx", sm or ("8.9",), **changes)  # type: ignore[arg-type]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal: in a background job, which tests may be, it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_plans(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with plans for SM 8.9; shared, so not to be changed."""
    out = tmp_path_factory.mktemp("plans") / "tiny"
    bundle = open_bundle(shutil.copytree(tiny_bundle, out))
    compile_plans(bundle, prepare(request_for(), bundle.manifest.batch), Progress())
    return out


@pytest.fixture
def tiny_plans_copy(tiny_plans: Path, tmp_path: Path) -> Bundle:
    """A bundle with plans of the test's own, to change."""
    return open_bundle(shutil.copytree(tiny_plans, tmp_path / "bundle"))
