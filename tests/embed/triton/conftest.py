"""A real `tritonserver` on a generated repository; skipped where it cannot be installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.embed.triton.slow import slow_down
from tests.support.once import alone
from tgate_export.embed.triton.repository import ServingOptions, write_repository

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
from triton_server import Server, group_members, server_venv


@pytest.fixture(scope="session")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment of the nvidia-pytriton wheel."""
    try:
        with alone(tmp_path_factory, "server"):
            return server_venv()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def repository(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle twice: with defaults as `shapes`; as `narrow` with a short queue, and slow.

    100 steps of `narrow` take 20 s at least, so that a test sees what happens to a run in time.
    """
    folder = tmp_path_factory.mktemp("models")
    write_repository(shapes_bundle, folder, ServingOptions(backend="onnxruntime:cpu"))
    narrow = ServingOptions(backend="onnxruntime:cpu", max_batch=1, max_pending=2)
    slow_down(write_repository(shapes_bundle, folder, narrow, name="narrow"), 0.2)
    return folder


@pytest.fixture(scope="session")
def server(venv: Path, repository: Path) -> Iterator[Server]:
    """The server, ready; shared."""
    with Server(repository, venv=venv) as server:
        server.ready()
        assert group_members(server.process.pid) != [server.process.pid]  # its models, too
        yield server
        assert server.stop() == 0
        assert group_members(server.process.pid) == []
