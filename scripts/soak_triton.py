"""Keep a real tritonserver busy with good requests and bad clients, and look at what it leaves.

Some requests are cancelled, some connections are cut, some inputs make no sense, some deadlines are
too short. Every good request must be answered with its own picture (its latents are compared with
those of a run alone), the server must live, and its memory must not grow.
usage: scripts/soak_triton.py BUNDLE [--seconds 600] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tgate_export import TGatePipeline
from tgate_export.bench.machine import machine, now
from tgate_export.embed.triton.client import ServerError, TGateClient
from tgate_export.embed.triton.repository import ServingOptions, write_repository

sys.path.insert(0, str(Path(__file__).resolve().parent))
from soak_clients import BACKEND, CLIENTS, GOOD, Soak, arguments_of, growth
from triton_server import Server

TOLERANCE = 1e-4
BAD: list[dict[str, Any]] = [
    {"guidance_scale": float("nan")}, {"steps": 10**6}, {"scheduler": "../../etc/passwd"},
    {"prompt": "x" * 2**20}, {"num_images": 10**6}, {"format": "exe"}, {"seed": 0, "width": 1},
    {"latents": np.zeros((1, 1, 1, 1), np.float32)},
]  # fmt: skip


class TritonSoak(Soak):
    """Clients of all kinds over gRPC and HTTP."""

    def __init__(self, server: Server, expected: list[np.ndarray], seconds: float) -> None:
        super().__init__(seconds)
        self._server = server
        self._expected = expected

    def client(self, seed: int) -> None:
        """Behave well or badly, at random, until the time is over."""
        client = TGateClient(self._server.grpc, "model")
        kinds = {self._good: 10, self._bad: 2, self._cancel: 2, self._cut: 1, self._late: 1}
        own = {partial(kind, client): weight for kind, weight in kinds.items()}
        self.behave(random.Random(seed), own)

    def _good(self, client: TGateClient, rng: random.Random) -> None:
        index = rng.randrange(len(GOOD))
        found = client.generate("a red circle", format="latents", timeout=300, **GOOD[index]).images
        difference = float(np.abs(found - self._expected[index]).max())
        if difference > TOLERANCE:
            self.problems.append(f"request {index} differs by {difference}")
        self.seen["answered"] += 1

    def _bad(self, client: TGateClient, rng: random.Random) -> None:
        try:
            client.generate(**{"prompt": "x", "timeout": 60, **rng.choice(BAD)})
            self.problems.append("a malformed request was served")
        except ServerError:
            self.seen["refused"] += 1

    def _cancel(self, client: TGateClient, rng: random.Random) -> None:
        call = client.start("x", steps=50, progress=True)
        for progress in call:
            if progress.step >= rng.randrange(10):
                break
        call.cancel()
        self.seen["cancelled"] += 1

    def _cut(self, client: TGateClient, rng: random.Random) -> None:
        host, _, port = self._server.http.partition(":")
        body = json.dumps({"prompt": "x", "steps": 4, "format": "base64"}).encode()
        head = f"POST /v2/models/model/generate HTTP/1.1\r\nHost: {host}\r\nContent-Length: "
        with socket.create_connection((host, int(port))) as connection:
            request = f"{head}{len(body)}\r\n\r\n".encode() + body
            connection.sendall(request[: rng.randrange(1, len(request) + 1)])
        self.seen["cut"] += 1

    def _late(self, client: TGateClient, rng: random.Random) -> None:
        try:
            client.generate("x", steps=100, deadline=rng.uniform(0.05, 0.5), timeout=60)
            self.problems.append("a request was served after its deadline")
        except ServerError:
            self.seen["late"] += 1


def memory(server: Server) -> dict[str, int]:
    """Return resident bytes of the server and of its model."""
    processes = {"tritonserver": [server.process.pid], "model": server.stub_pids()}
    return {
        name: sum(psutil.Process(pid).memory_info().rss for pid in pids)
        for name, pids in processes.items()
    }


def main() -> None:
    """Soak, print what happened, and exit with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pipeline = TGatePipeline.from_bundle(arguments.bundle, BACKEND)
    expected = [
        np.asarray(
            pipeline("a red circle", output_type="latent", **arguments_of(call)).images
        )
        for call in GOOD
    ]  # fmt: skip
    del pipeline
    with tempfile.TemporaryDirectory() as folder:
        options = ServingOptions(backend=BACKEND)
        model = write_repository(arguments.bundle, Path(folder), options, name="model")
        with Server(model.parent) as server:
            server.ready(600)
            soak = TritonSoak(server, expected, arguments.seconds)
            threads = [threading.Thread(target=soak.client, args=(n,)) for n in range(CLIENTS)]
            for thread in threads:
                thread.start()
            started, samples = time.monotonic(), []
            while any(thread.is_alive() for thread in threads):
                samples.append({"seconds": time.monotonic() - started, **memory(server)})
                print(f"{samples[-1]}  {dict(soak.seen)}", flush=True)
                time.sleep(min(10.0, arguments.seconds / 20))
            answer = TGateClient(server.grpc, "model").generate("x", steps=2, timeout=60)
            status = server.stop()
    result = {
        "date": now(),
        "machine": machine().model_dump(mode="json"),
        "seconds": arguments.seconds,
        "clients": CLIENTS,
        "seen": dict(soak.seen),
        "problems": soak.problems,
        "answered_after": answer.images.shape[0] == 1,
        "exit_status": status,
        "growth_bytes_per_s": {
            name: growth(samples, name, 0.3 * arguments.seconds)
            for name in ("tritonserver", "model")
        },
        "memory": samples,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "memory"}, indent=1))
    sys.exit(1 if soak.problems or status else 0)


if __name__ == "__main__":
    main()
