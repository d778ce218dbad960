"""`scripts/triton_server.py` as a person runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import triton_server

from tgate_export.embed.triton.repository import ServingOptions, bundle_of, write_repository


@pytest.fixture
def repository(tiny_bundle: Path, tmp_path: Path) -> Path:
    options = ServingOptions(backend="onnxruntime:cpu")
    write_repository(tiny_bundle, tmp_path / "models", options, name="tiny", copy=True)
    return tmp_path / "models"


@contextmanager
def script(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, triton_server.__file__, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()  # not killed: its server would go on
        process.communicate(timeout=60)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_too(
    venv: Path, repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    http, grpc, metrics = triton_server.free_ports(3)
    log = tmp_path / "server.log"
    with script(
        repository, "--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics,
        "--log", log, "--", "--log-verbose=0",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == f"log: {log}\n"
        ready = process.stdout.readline()
        assert f"HTTP 127.0.0.1:{http}, gRPC 127.0.0.1:{grpc}, " in ready
        (server,) = children(process.pid)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (0, f"stopped by {number.name}\n", "")
    assert triton_server.group_members(server) == []
    assert "Waiting for in-flight requests" in log.read_text()


def test_it_says_why_a_server_is_gone(venv: Path, repository: Path) -> None:
    with script(repository, "--http-port=0", "--grpc-port=0", "--metrics-port=0") as process:
        assert process.stdout is not None
        log = Path(process.stdout.readline().removeprefix("log: ").strip())
        try:
            assert process.stdout.readline().startswith("ready after")
            (server,) = children(process.pid)
            assert len(triton_server.group_members(server)) == 2  # its model's process, too
            os.kill(server, signal.SIGKILL)
            out, error = process.communicate(timeout=60)
            assert (process.returncode, out) == (1, "")
            assert error.startswith("error: tritonserver is gone, it has ended with signal SIGKILL")
            assert error.endswith(f"the log is {log}\n")
            assert "Started HTTPService" in log.read_text()
            assert triton_server.group_members(server) == []
        finally:
            log.unlink()


def test_it_says_why_a_server_does_not_start(venv: Path, repository: Path, tmp_path: Path) -> None:
    (bundle_of(repository / "tiny", "1") / "graphs" / "full.onnx").write_bytes(b"damaged")
    log = tmp_path / "log"
    with script(repository, "--log", log, "--http-port=0") as process:
        out, error = process.communicate(timeout=100)
    assert (process.returncode, out) == (1, f"log: {log}\n")
    assert "error: tritonserver is not ready, it has ended with exit status 1" in error
    assert "full.onnx has 7 bytes" in error
    assert log.is_file()


def test_no_repository(tmp_path: Path) -> None:
    with script(tmp_path / "none") as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "none is not a folder: write one with embed triton" in error
