"""Keep `tgate-export serve` busy with good requests and bad clients, and look at what it leaves.

Some requests make no sense, some clients leave, read nothing, or send a body that never ends or has
a gigabyte, and connections come and go, twice 10,000 of them at once. Every good request must be
answered with its own picture (compared with a run alone), the server's memory must not grow, and it
must stop with 0 when it is told to among good requests: each is answered or refused.
usage: scripts/soak_serve.py BUNDLE [--seconds 1200] [--json FILE]
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from PIL import Image

from tgate_export import TGatePipeline
from tgate_export.bench.machine import machine, now

sys.path.insert(0, str(Path(__file__).resolve().parent))
from soak_clients import BACKEND, CLIENTS, GOOD, Soak, arguments_of, growth

PROMPT = "a red circle on a blue background"
IMAGES = "/v1/images/generations"
CONNECTIONS = 10000  # opened and closed over the whole time, and at once
HUGE = 2**30  # bytes of a body
BAD: list[bytes] = [
    b"{", b"[1]", b'{"prompt": "x", "guidance_scale": NaN}', b'{"prompt": "x", "steps": 1000000}',
    b'{"prompt": "x", "scheduler": "../../etc/passwd"}', b'{"prompt": "x", "n": 1000}',
    b'{"prompt": "x", "image": "/etc/passwd"}', b'{"prompt": "x", "size": "1x1"}',
    json.dumps({"prompt": "x" * 2**20}).encode(),
]  # fmt: skip


class HttpSoak(Soak):
    """Clients of all kinds over HTTP."""

    def __init__(self, url: str, expected: list[np.ndarray], seconds: float) -> None:
        super().__init__(seconds)
        self._url = url
        self._address = urlsplit(url).hostname or "", urlsplit(url).port or 0
        self._expected = expected
        self._pause = seconds / CONNECTIONS

    def client(self, seed: int) -> None:
        """Behave well or badly, at random, until the time is over."""
        kinds = {
            self._good: 10, self._bad: 2, self._leave: 2, self._cut: 1, self._late: 1,
            self._read_nothing: 1, self._huge: 1,
        }  # fmt: skip
        self.behave(random.Random(seed), kinds)

    def connections(self) -> None:
        """Open and close connections that ask for nothing."""
        while self.goes_on:
            socket.create_connection(self._address, timeout=30).close()
            self.seen["connections"] += 1
            time.sleep(self._pause)

    def crowds(self) -> None:
        """Have many connections open at once, and close them; twice, as memory may grow once."""
        for part in (1 / 8, 3 / 8):
            time.sleep(part * self._pause * CONNECTIONS)
            with ExitStack() as stack:
                for _ in range(CONNECTIONS):
                    with suppress(TimeoutError, ConnectionError):  # the server has not all of them
                        connection = socket.create_connection(self._address, timeout=30)
                        stack.enter_context(connection)
                        self.seen["at once"] += 1
                time.sleep(2)

    def until_refused(self, seed: int) -> None:
        """Ask for one picture after another until the server takes no more."""
        rng = random.Random(seed)
        while True:
            try:
                self._good(rng)
                self.seen["answered at the end"] += 1
            except (urllib.error.URLError, ConnectionError):
                return
            except Exception as error:  # a part of an answer
                self.problems.append(f"at the end: {type(error).__name__}: {error}")
                return

    def post(self, body: bytes) -> tuple[int, Any]:
        """Return the status and the answer."""
        request = urllib.request.Request(self._url + IMAGES, body)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def _good(self, rng: random.Random) -> None:
        index = rng.randrange(len(GOOD))
        status, answer = self.post(json.dumps({"prompt": PROMPT, **GOOD[index]}).encode())
        if status != 200:
            self.problems.append(f"request {index}: {status} {answer}")
            return
        found = pixels(base64.b64decode(answer["data"][0]["b64_json"]))
        if (difference := int(np.abs(found - self._expected[index]).max())) > 1:
            self.problems.append(f"request {index} differs by {difference} of 255")
        self.seen["answered"] += 1

    def _bad(self, rng: random.Random) -> None:
        status, answer = self.post(rng.choice(BAD))
        if status != 400:
            self.problems.append(f"a request that makes no sense: {status} {answer}")
        self.seen["refused"] += 1

    def _late(self, rng: random.Random) -> None:
        fields = {"prompt": "x", "steps": 100, "deadline": rng.uniform(0.02, 0.2)}
        status, answer = self.post(json.dumps(fields).encode())
        if status != 504:
            self.problems.append(f"a request with too little time: {status} {answer}")
        self.seen["late"] += 1

    def _huge(self, rng: random.Random) -> None:
        """Send a gigabyte, whose length is said or not, until there is an answer."""
        chunked = rng.random() < 0.5
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {HUGE}"
        head = f"POST {IMAGES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        piece, sent = b"x" * 2**20, 0
        text = b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece
        with socket.create_connection(self._address, timeout=60) as connection:
            connection.sendall(f"{head}{length}\r\n\r\n".encode())
            while sent < HUGE and not select.select([connection], [], [], 0)[0]:
                connection.sendall(text)
                sent += len(piece)
            answer = connection.recv(100)
        if not answer.startswith(b"HTTP/1.1 413"):
            self.problems.append(f"a gigabyte, of which {sent} bytes were sent: {answer!r}")
        self.seen["huge"] += 1

    def _begin(self, **fields: Any) -> socket.socket:
        body = json.dumps({"prompt": "x", **fields}).encode()
        connection = socket.create_connection(self._address, timeout=60)
        head = f"POST {IMAGES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return connection

    def _leave(self, rng: random.Random) -> None:
        stream = rng.random() < 0.5
        with self._begin(steps=100, stream=stream, progress=stream):
            time.sleep(rng.uniform(0, 0.5))
        self.seen["left"] += 1

    def _read_nothing(self, rng: random.Random) -> None:
        with self._begin(steps=100, stream=True, progress=True, partial_images=64, deadline=2):
            time.sleep(rng.uniform(0, 3))
        self.seen["read nothing"] += 1

    def _cut(self, rng: random.Random) -> None:
        head = f"POST {IMAGES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: 100\r\n\r\n{{".encode()
        with socket.create_connection(self._address, timeout=60) as connection:
            connection.sendall(request[: rng.randrange(1, len(request) + 1)])
        self.seen["cut"] += 1


def pixels(file: bytes) -> np.ndarray:
    """Return a picture's pixels."""
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def start(bundle: Path) -> tuple[subprocess.Popen[str], str]:
    """Run the command; return its process and its address when it is ready."""
    command = [sys.executable, "-P", "-m", "tgate_export", "serve", str(bundle), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--backend", BACKEND], stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stderr is not None
    words: list[str] = []
    while not any(word.startswith("http://") for word in words):
        words += process.stderr.readline().split()
    url = next(word for word in words if word.startswith("http://"))
    threading.Thread(target=process.stderr.read, daemon=True).start()
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()
            return process, url
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server is not ready after a minute")


def main() -> None:
    """Soak, print what happened, and exit with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pipeline = TGatePipeline.from_bundle(arguments.bundle, BACKEND)
    expected = []
    for call in GOOD:
        (image,) = pipeline(PROMPT, **arguments_of(call)).images
        expected.append(np.asarray(image).astype(int))
    del pipeline
    process, url = start(arguments.bundle)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    soak = HttpSoak(url, expected, arguments.seconds)
    threads = [threading.Thread(target=soak.client, args=(n,)) for n in range(CLIENTS)]
    threads += [threading.Thread(target=each) for each in (soak.connections, soak.crowds)]
    for thread in threads:
        thread.start()
    started, samples = time.monotonic(), []
    while any(thread.is_alive() for thread in threads):
        size = psutil.Process(process.pid).memory_info().rss
        samples.append({"seconds": round(time.monotonic() - started, 1), "bytes": size})
        print(f"{samples[-1]}  {dict(soak.seen)}", flush=True)
        time.sleep(min(10.0, arguments.seconds / 20))
    threads = [threading.Thread(target=soak.until_refused, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    while soak.seen["answered at the end"] < CLIENTS and any(each.is_alive() for each in threads):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code = process.wait(120)
    for thread in threads:
        thread.join()
    slope = growth(samples, "bytes", 0.25 * arguments.seconds)
    result = {
        "date": now(),
        "machine": machine().model_dump(mode="json"),
        "seconds": arguments.seconds,
        "clients": CLIENTS,
        "seen": dict(soak.seen),
        "problems": soak.problems,
        "most_bytes": max(sample["bytes"] for sample in samples),
        "exit_status": code,
        "growth_bytes_after_the_first_quarter": int(slope * 0.75 * arguments.seconds),
        "memory": samples,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "memory"}, indent=1))
    sys.exit(1 if soak.problems or code else 0)


if __name__ == "__main__":
    main()
