"""What `load_test.py` compares: requests of many kinds, and policies that serve them."""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgate_export.runtime.batching import Batcher

BACKEND = "onnxruntime:cpu"
STEPS = {5: 0.5, 20: 0.3, 50: 0.2}
GATES = (0.2, 0.4, 1.0)  # of the steps; the last is no gate
SCHEDULERS = ("ddim", "dpm++2m", "euler")
BETTER = ((0.5, 0.0), (1.0, 0.25))  # cache_blend and guidance_carry: official, and `shapes`' own


@dataclass(frozen=True)
class Request:
    """What a client asks for."""

    prompt: str
    steps: int
    gate_step: int
    guidance_scale: float
    cache_blend: float
    guidance_carry: float
    scheduler: str
    seed: int

    @property
    def kind(self) -> tuple[int, int, str]:
        """Requests of one kind can be one call of the pipeline."""
        return self.steps, self.gate_step, self.scheduler

    @property
    def work(self) -> tuple[int, int]:
        """Requests of as much work take as long when they are alone."""
        return self.steps, self.gate_step

    def arguments(self) -> dict[str, Any]:
        """Return what `Batcher.request` takes beside the prompt."""
        return {
            "num_inference_steps": self.steps, "gate_step": self.gate_step,
            "guidance_scale": self.guidance_scale, "cache_blend": self.cache_blend,
            "guidance_carry": self.guidance_carry, "scheduler": self.scheduler, "seed": self.seed,
        }  # fmt: skip


Submit = Callable[[Request], "Future[Any]"]


def gate_of(share: float, steps: int) -> int:
    """Return the gate at a share of the steps."""
    return max(1, round(share * steps))


def requests(count: int, seed: int) -> list[Request]:
    """Make requests of all kinds."""
    rng = random.Random(seed)
    colours = ("red", "green", "blue", "yellow")
    found = []
    for index in range(count):
        steps = rng.choices(list(STEPS), list(STEPS.values()))[0]
        blend, carry = rng.choice(BETTER)
        found.append(
            Request(
                f"a {rng.choice(colours)} circle on a {rng.choice(colours)} background", steps,
                gate_of(rng.choice(GATES), steps), rng.uniform(2, 9), blend, carry,
                rng.choice(SCHEDULERS), 1000 * seed + index,
            )
        )  # fmt: skip
    return found


class GroupServer:
    """Policies of servers that do not look into a model: a group runs to its end, then the next.

    The groups run on the batcher, so that what is compared is who shares calls and not the kernels.
    """

    def __init__(self, batcher: Batcher, max_batch: int) -> None:
        self._batcher = batcher
        self._max_batch = max_batch
        self._waiting: list[tuple[Request, Future[Any]]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Future[Any]:
        """Queue a request."""
        future: Future[Any] = Future()
        with self._changed:
            self._waiting.append((request, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """End when the queue is empty."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closing:
                        return
                    self._changed.wait()
                kind = self._waiting[0][0].kind
                group = [entry for entry in self._waiting if entry[0].kind == kind]
                group = group[: self._max_batch]
                self._waiting = [entry for entry in self._waiting if entry not in group]
            running = [submit_to(self._batcher, request) for request, _ in group]
            for inner, (_, future) in zip(running, group, strict=True):
                future.set_result(inner.result())


def submit_to(batcher: Batcher, request: Request) -> Future[Any]:
    """Submit a request to the batcher."""
    made = batcher.request(request.prompt, **request.arguments(), output_type="np")
    return batcher.submit(made)


@contextmanager
def group_policy(bundle: Path, max_batch: int | None) -> Iterator[Submit]:
    """Serve with `GroupServer`."""
    with Batcher.from_bundle(bundle, BACKEND) as batcher:
        server = GroupServer(batcher, max_batch or batcher.max_batch)
        yield server.submit
        server.close()


@contextmanager
def in_flight_policy(bundle: Path) -> Iterator[Submit]:
    """Serve with the batcher as it is."""
    with Batcher.from_bundle(bundle, BACKEND) as batcher:
        yield lambda request: submit_to(batcher, request)


@contextmanager
def triton_policy(bundle: Path) -> Iterator[Submit]:
    """Serve with a real server; the client is in this process."""
    from triton_server import Server

    from tgate_export.embed.triton.client import TGateClient
    from tgate_export.embed.triton.repository import ServingOptions, write_repository

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(128) as pool:
        options = ServingOptions(backend=BACKEND)
        model = write_repository(bundle, Path(folder), options, name="model")
        with Server(model.parent) as server:
            server.ready()
            client = TGateClient(server.grpc, "model")

            def submit(request: Request) -> Future[Any]:
                return pool.submit(
                    client.generate, request.prompt, steps=request.steps,
                    **{k: v for k, v in request.arguments().items() if k != "num_inference_steps"},
                )  # fmt: skip

            yield submit
