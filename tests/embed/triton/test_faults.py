"""Accidents: a server that is told to stop, a model that is killed, a bundle that is replaced."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from triton_server import Server, group_members

from tests.embed.triton.slow import slow_down
from tgate_export import TGatePipeline
from tgate_export.bundle.store import replace_folder
from tgate_export.embed.triton.client import ServerError, TGateClient
from tgate_export.embed.triton.repository import ServingOptions, bundle_of, write_repository

OPTIONS = ServingOptions(backend="onnxruntime:cpu")


@pytest.fixture
def repository(tiny_bundle: Path, tmp_path: Path) -> Path:
    write_repository(tiny_bundle, tmp_path / "models", OPTIONS, name="tiny")
    return tmp_path / "models"


def test_sigterm_finishes_what_runs_and_refuses_more(venv: Path, repository: Path) -> None:
    slow_down(repository / "tiny", 0.05)  # so that all of them run when it is told to stop
    with Server(repository, venv=venv) as server:
        server.ready()
        client = TGateClient(server.grpc, "tiny")
        calls = [client.start("x", steps=40, seed=seed, progress=True) for seed in range(12)]
        for call in calls:
            next(iter(call))
        server.process.send_signal(signal.SIGTERM)
        while "Waiting for in-flight requests" not in server.log.read_text():
            time.sleep(0.01)
        with contextlib.suppress(ServerError):  # or nothing listens any more
            client.generate("y", steps=100, timeout=30)
            pytest.fail("a server that stops took a request")
        assert [call.result(60).seed for call in calls] == list(range(12))
        assert server.process.wait(30) == 0
        assert any(event.get("event") == "closed" for event in server.events())


def test_killed_model_ends_the_server_and_a_new_one_starts(venv: Path, repository: Path) -> None:
    slow_down(repository / "tiny", 0.05)
    with Server(repository, venv=venv) as server:
        server.ready()
        client = TGateClient(server.grpc, "tiny")
        call = client.start("x", steps=100, progress=True)
        next(iter(call))
        (model,) = server.stub_pids()
        started = time.monotonic()
        os.kill(model, signal.SIGKILL)
        with pytest.raises(ServerError):  # not a silence for ever
            call.result(20)
        assert server.process.wait(20) != 0
        assert time.monotonic() - started < 10
    with Server(repository, venv=venv) as server:
        server.ready()
        assert TGateClient(server.grpc, "tiny").generate("x", steps=2, seed=1).seed == 1


def test_killed_server_ends_its_models(venv: Path, repository: Path) -> None:
    """Also one that hangs, as a model that waits for the server's answer does: here it is stopped.

    Nobody but the watchdog ends it before this test's block does.
    """
    with Server(repository, venv=venv) as server:
        server.ready()
        (model,) = server.stub_pids()
        os.kill(model, signal.SIGSTOP)
        server.process.kill()
        server.process.wait(20)
        until = time.monotonic() + 20
        while model in group_members(server.process.pid):
            assert time.monotonic() < until, "the model outlived its server"
            time.sleep(0.05)


def test_bundle_replaced_on_disk(
    venv: Path, repository: Path, reuse_bundle: Path, tiny_bundle: Path
) -> None:
    """A running server goes on with what it loaded; a new one takes the new bundle."""
    expected = np.asarray(
        TGatePipeline.from_bundle(tiny_bundle, OPTIONS.backend)(
            "x", num_inference_steps=5, scheduler="unipc", seed=1, output_type="latent", gate_step=2
        ).images
    )
    served = bundle_of(repository / "tiny", "1")
    run = {"steps": 5, "seed": 1, "gate_step": 2, "format": "latents", "scheduler": "unipc"}
    with Server(repository, venv=venv) as server:
        server.ready()
        client = TGateClient(server.grpc, "tiny")
        with replace_folder(served) as staging:
            shutil.copytree(reuse_bundle, staging, dirs_exist_ok=True)
        found = client.generate("x", **run).images
        np.testing.assert_allclose(found, expected, atol=1e-4)
        shutil.rmtree(served)
        found = client.generate("x", **run).images
        np.testing.assert_allclose(found, expected, atol=1e-4)
    shutil.copytree(reuse_bundle, served)
    (served / "graphs" / "full.onnx").write_bytes(b"damaged")
    with Server(repository, venv=venv) as server:
        with pytest.raises(RuntimeError, match="tritonserver is not ready"):
            server.ready(30)
        assert "full.onnx has 7 bytes" in server.log.read_text()
