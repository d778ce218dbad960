"""Connections that are many, silent, or read slowly, and bodies that are large: others go on."""

from __future__ import annotations

import http.client
import json
import resource
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.http_faults import (
    IMAGES,
    LONG,
    SHORT,
    answers,
    ask,
    batcher_of,
    connect,
    head,
    slowly,
    start,
)
from tests.support.http_server import HttpServer, wait_until
from tgate_export.serve import connections, guard
from tgate_export.serve.options import ServeOptions


def open_connections(server: HttpServer) -> int:
    return len(server._server.server_state.connections)


@contextmanager
def many(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    """Open connections that ask for nothing."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(count)
        ]


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_silent_connections_are_closed(
    shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    with HttpServer({"shapes": shapes_bundle}) as server:
        with connect(server) as silent, connect(server) as slow:
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
            assert silent.recv(100) == b""
            assert slow.recv(100) == b""
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        kept.request("GET", "/healthz")
        kept.getresponse().read()
        time.sleep(0.2)
        kept.request("GET", "/healthz")  # within the time: the connection is used again
        assert kept.getresponse().read()


def test_silent_connections_make_room(shapes_bundle: Path) -> None:
    """The longest silent ones go; who waits for an answer stays, and who comes is answered."""
    options = ServeOptions(max_connections=20)
    with HttpServer({"shapes": shapes_bundle}, options) as server, ExitStack() as stack:
        batcher = batcher_of(server)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        stack.enter_context(slowly(batcher))
        waiting = pool.submit(server.post, IMAGES, **SHORT | {"steps": 60})
        wait_until(lambda: batcher.stats().in_flight == 1)
        used = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        address = ("127.0.0.1", server.port)
        opened: list[socket.socket] = []
        for _ in range(20):
            opened += stack.enter_context(many(address, 5))
            used.request("GET", "/healthz")  # silent for less long than the others
            assert used.getresponse().read()
        wait_until(lambda: open_connections(server) <= 20)
        closed = [is_closed(each) for each in opened]
        assert closed == sorted(closed, reverse=True)
        assert 80 <= sum(closed) < 100
        assert not waiting.done()
        assert waiting.result()[0] == 200


def test_a_process_that_may_open_few_files(shapes_bundle: Path) -> None:
    """Nothing is refused for want of them, and nothing of it is in the log."""
    files = 256
    with start(shapes_bundle, files=files) as (process, url):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        for _ in range(2):
            with many(address, 2 * files):
                assert ask(url, SHORT) == 200
            assert ask(url, SHORT) == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        *lines, last = process.stderr.read().splitlines()
        assert last == "Stopped."
        assert [line for line in lines if not line.startswith(("{", "loaded "))] == []


def test_connections_that_come_and_go(server: HttpServer) -> None:
    for _ in range(1000):
        connect(server).close()
    assert answers(server)
    wait_until(lambda: open_connections(server) == 0)


@pytest.mark.parametrize("files", [200, 1024, 20000])
def test_files_are_left_for_others(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    found = connections.most_connections(4096)
    assert found + 4 * connections.ACCEPTS <= max(files / 2, files - 256)
    assert found == 4096 or found > files / 8


def test_a_reader_that_reads_nothing(server: HttpServer) -> None:
    fields = {**LONG, "stream": True, "progress": True, "partial_images": 64}
    body = json.dumps(fields).encode()
    batcher = batcher_of(server)
    with connect(server) as client, slowly(batcher):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(head(len(body)) + body)
        wait_until(lambda: batcher.stats().in_flight == 1)
        assert all(answers(server) for _ in range(3))


@pytest.mark.parametrize("stream", [False, True])
def test_a_reader_that_never_reads_is_left(
    shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Whether or not all that it asked for is made, and what it held is free."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.5)
    options = ServeOptions(max_images=32)
    fields = {**SHORT, "n": 32, "stream": stream}
    if stream:
        fields |= {"steps": 70, "partial_images": 64, "progress": True}
    body = json.dumps(fields).encode()
    with HttpServer({"shapes": shapes_bundle}, options) as server:
        server._opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.sendall(head(len(body)) + body)
            wait_until(lambda: open_connections(server) == 1)
            wait_until(lambda: open_connections(server) == 0, 60)
            model = server.pool.find(None)
            wait_until(lambda: model.users == batcher_of(server).stats().in_flight == 0)
        assert answers(server)


@pytest.fixture(scope="module")
def strict(shapes_bundle: Path) -> Iterator[HttpServer]:
    """A server with small limits."""
    options = ServeOptions(max_body_bytes=2**20, max_requests=2)
    with HttpServer({"shapes": shapes_bundle}, options) as found:
        yield found


@pytest.mark.parametrize("chunked", [False, True])
def test_who_sends_all_of_a_large_body_gets_the_answer(strict: HttpServer, chunked: bool) -> None:
    """As most libraries do before they read, whose answer a closed connection would take."""
    piece, pieces = b"x" * 2**20, 64
    start_ = head(len(piece) * pieces)
    if chunked:
        start_ = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        piece = b"%x\r\n%s\r\n" % (len(piece), piece)
    with connect(strict) as client:
        client.sendall(start_)
        for _ in range(pieces):
            client.sendall(piece)
        answer = client.recv(4096).decode()
        while part := client.recv(4096):
            answer += part.decode()
    assert answer.startswith("HTTP/1.1 413")
    message = json.loads(answer.partition("\r\n\r\n")[2])["error"]["message"]
    assert message == "the body is larger than 1048576 bytes, the most that this server reads"
    assert answers(strict)


def test_who_goes_on_sending_is_cut_off(
    strict: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_LINGER_SECONDS", 0.5)
    with connect(strict) as client:
        client.sendall(head(2**40))
        assert client.recv(4096).startswith(b"HTTP/1.1 413")
        with pytest.raises(ConnectionError):
            send_for_ever(client)
    assert answers(strict)


def send_for_ever(client: socket.socket) -> None:
    while True:
        client.sendall(b"x" * 2**20)


def test_bodies_take_so_much_memory_together(
    shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_BODIES", 2)
    options = ServeOptions(max_body_bytes=2**20)
    body = json.dumps({**SHORT, "user": "x" * 2**19}).encode()
    with HttpServer({"shapes": shapes_bundle}, options) as server:
        with ExitStack() as stack:
            for _ in range(2):
                client = stack.enter_context(connect(server))
                client.sendall(head(2**20) + b" " * (2**20 - 1))
            wait_until(lambda: open_connections(server) == 2)
            time.sleep(0.2)
            status, headers, _ = server.send(IMAGES, body)
            assert (status, headers["retry-after"]) == (503, "5")
            assert answers(server)  # there is always room for small ones
        wait_until(lambda: open_connections(server) == 0)
        assert server.send(IMAGES, body)[0] == 200


def test_more_requests_than_are_answered_at_a_time(strict: HttpServer) -> None:
    batcher = batcher_of(strict)
    with ThreadPoolExecutor(2) as pool, slowly(batcher):
        running = [pool.submit(strict.post, IMAGES, **LONG, deadline=1.5) for _ in range(2)]
        wait_until(lambda: batcher.stats().in_flight == 2)
        status, headers, content = strict.send(IMAGES, json.dumps(SHORT).encode())
        assert (status, headers["retry-after"]) == (503, "5")
        assert json.loads(content)["error"]["code"] == "busy"
        assert strict.send("/healthz")[0] == 200
        assert [each.result()[0] for each in running] == [504, 504]
    assert answers(strict)
