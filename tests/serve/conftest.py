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


@pytest.fixture(scope="session")
def image_bundle(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline built for runs that begin with an image; as in tests/e2e."""
    from tests.support import tiny
    from tests.support.once import made_once
    from tgate_export.build.build import build_bundle

    with tiny.only_samplers("ddim", "euler", "euler-a", "dpm++2m", "pndm"):
        return made_once(
            tmp_path_factory, "bundles/image-to-image-sd15",
            lambda out: build_bundle(str(tiny_pipeline_dir), image_to_image=True, out=out),
        )  # fmt: skip
