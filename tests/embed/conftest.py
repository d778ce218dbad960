"""The C++ library, compiled once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cpp_driver import CppBuild, Driver, compile_library
from tests.support.once import alone


@pytest.fixture(scope="session")
def cpp_build(tmp_path_factory: pytest.TempPathFactory) -> CppBuild:
    with alone(tmp_path_factory, "cpp"):
        return compile_library()


@pytest.fixture(scope="session")
def driver(cpp_build: CppBuild) -> Iterator[Driver]:
    process = Driver(cpp_build.driver)
    yield process
    process.close()
