"""The C++ library, compiled once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.embed.driver import CppBuild, Driver, compile_library
from tgate_export.runtime.backends.onnxruntime import OnnxRuntimeBackend


@pytest.fixture(scope="package", autouse=True)
def _plain_sessions() -> Iterator[None]:
    """Let Python run graphs as they are, as C++ does: other kernels round in other ways."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            OnnxRuntimeBackend, "_for_cpu", lambda _self, _graph, path, _options: str(path)
        )
        yield


@pytest.fixture(scope="session")
def cpp_build() -> CppBuild:
    return compile_library()


@pytest.fixture(scope="session")
def driver(cpp_build: CppBuild) -> Iterator[Driver]:
    process = Driver(cpp_build.driver)
    yield process
    process.close()
