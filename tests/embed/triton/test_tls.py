"""A real server that wants TLS, and certificates that are right and wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from triton_server import Server

from tests.support.certificates import Authority
from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.embed.triton.client import ServerError, TGateClient
from tgate_export.embed.triton.repository import ServingOptions, write_repository
from tgate_export.embed.triton.tls import Tls


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def ours(folder: Path) -> Authority:
    return Authority(folder, "ours")


@pytest.fixture(scope="module")
def foreign(folder: Path) -> Authority:
    return Authority(folder, "foreign")


@pytest.fixture(scope="module")
def mine(ours: Authority) -> tuple[Path, Path]:
    return ours.sign("client")


@pytest.fixture(scope="module")
def server(venv: Path, tiny_bundle: Path, folder: Path, ours: Authority) -> Iterator[Server]:
    """A server that shows its certificate, and asks for its clients'."""
    certificate, key = ours.sign("server", "127.0.0.1")
    write_repository(
        tiny_bundle, folder / "models", ServingOptions(backend="onnxruntime:cpu"), name="tiny"
    )
    options = (
        "--grpc-use-ssl=1", "--grpc-use-ssl-mutual=1", f"--grpc-server-cert={certificate}",
        f"--grpc-server-key={key}", f"--grpc-root-cert={ours.roots}",
    )  # fmt: skip
    with Server(folder / "models", *options, venv=venv) as server:
        server.ready()
        yield server


def test_the_right_certificates(server: Server, ours: Authority, mine: tuple[Path, Path]) -> None:
    client = TGateClient(server.grpc, "tiny", Tls(ours.roots, *mine))
    assert client.ready()
    steps: list[int] = []
    result = client.generate("x", steps=3, timeout=60, on_progress=lambda p: steps.append(p.step))
    assert result.images.shape == (1, 16, 16, 3)
    assert steps == [0, 1, 2]


@pytest.mark.parametrize("wrong", ["roots", "certificate", "no certificate", "no TLS"])
def test_wrong_certificates(
    server: Server, ours: Authority, foreign: Authority, mine: tuple[Path, Path], wrong: str
) -> None:
    tls = {
        "roots": Tls(foreign.roots, *mine),
        "certificate": Tls(ours.roots, *foreign.sign("client")),
        "no certificate": Tls(ours.roots),
        "no TLS": None,
    }[wrong]
    client = TGateClient(server.grpc, "tiny", tls)
    assert not client.ready()
    for options in ({}, {"steps": 2}):  # which asks for the model's inputs first
        with pytest.raises(ServerError) as found:
            client.generate("x", timeout=60, **options)
        assert len(str(found.value).splitlines()) == 1
        if wrong == "roots":
            assert "CERTIFICATE_VERIFY_FAILED" in str(found.value)
    assert server.process.poll() is None


def test_a_connection_that_fails_before_the_request_is_sent(
    server: Server, foreign: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a busy client has it: the library then says no more than that the stream is not valid."""
    client = TGateClient(server.grpc, "tiny", Tls(foreign.roots))
    library: Any = client._grpc.InferenceServerClient
    send = library.async_stream_infer

    def late(self: Any, *arguments: Any, **options: Any) -> None:
        until = time.monotonic() + 20
        while self._stream._active:
            assert time.monotonic() < until, "the connection was made"
            time.sleep(0.01)
        send(self, *arguments, **options)

    monkeypatch.setattr(library, "async_stream_infer", late)
    with pytest.raises(ServerError, match="CERTIFICATE_VERIFY_FAILED"):
        client.generate("x", timeout=60)


def test_a_name_that_is_not_the_servers(
    server: Server, ours: Authority, mine: tuple[Path, Path]
) -> None:
    client = TGateClient(server.grpc.replace("127.0.0.1", "localhost"), "tiny",
                         Tls(ours.roots, *mine))  # fmt: skip
    with pytest.raises(ServerError, match=r"(?i)verif"):
        client.generate("x", timeout=60)


def test_files_that_cannot_be_used(
    folder: Path, ours: Authority, foreign: Authority, mine: tuple[Path, Path]
) -> None:
    certificate, key = mine
    _, other_key = foreign.sign("client")
    broken = folder / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
    cases = (
        (Tls(folder / "none.pem"), r"none\.pem is not a file"),
        (Tls(broken), r"broken\.pem cannot be used for TLS: "),
        (Tls(ours.roots, certificate, folder / "none.key"), r"none\.key is not a file"),
        (Tls(ours.roots, certificate, other_key), "cannot be used for TLS: .*(?i:mismatch)"),
        (Tls(ours.roots, broken, key), r"broken\.pem and .*\.key cannot be used for TLS"),
    )
    for tls, message in cases:
        with pytest.raises(TGateError, match=message) as found:
            TGateClient("127.0.0.1:1", "tiny", tls)
        assert len(str(found.value).splitlines()) == 1
    with pytest.raises(InvalidRequestError, match="certificate and key belong together"):
        Tls(ours.roots, certificate)
