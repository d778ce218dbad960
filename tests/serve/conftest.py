"""A running server of the trained demo pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")


@pytest.fixture(scope="module")
def server(shapes_bundle: Path) -> Iterator[object]:
    from tests.support.http_server import HttpServer

    with HttpServer({"shapes": shapes_bundle}) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from tests.support.chromium import chromium

    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1280, "height": 860})
    yield opened
    opened.close()
