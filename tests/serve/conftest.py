"""A running server of the trained demo pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")


@pytest.fixture(scope="module")
def server(shapes_bundle: Path) -> Iterator[object]:
    from tests.support.http_server import HttpServer

    with HttpServer({"shapes": shapes_bundle}) as found:
        yield found
