"""Load a bundle with requests of many kinds, under three policies, and compare them.

One process, no network: what differs is who goes into an engine call.

  one at a time   requests in the order of arrival, each alone
  request-level   batching as a server does it to a model that it does not look
                  into: the oldest request, and those queued of the same steps, gate and sampler
  in flight       the batcher: images at any step share calls
  Triton          the batcher behind a real tritonserver, over gRPC (with --triton)

Closed loops keep a number of requests open; Poisson arrivals come whether or not the last is done,
at rates relative to what one at a time was measured to serve. All policies get the same requests,
once a round, in random order, because a machine's speed changes while it works. Latencies are
given in seconds and as multiples of what a request of as many steps and the same gate takes when it
is alone, which is measured first.
usage: scripts/load_test.py BUNDLE [--json FILE] [--markdown FILE] [--triton] ...
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tgate_export import TGatePipeline
from tgate_export.bench.machine import machine, now
from tgate_export.runtime.batching import Batcher

sys.path.insert(0, str(Path(__file__).resolve().parent))

BACKEND = "onnxruntime:cpu"
STEPS = {5: 0.5, 20: 0.3, 50: 0.2}
GATES = (0.2, 0.4, 1.0)  # of the steps; the last is no gate
SCHEDULERS = ("ddim", "dpm++2m", "euler")
BETTER = ((0.5, 0.0), (1.0, 0.25))  # cache_blend and guidance_carry: official, and `shapes`' own
PERCENTILES = (50, 95, 99)


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


@dataclass(frozen=True)
class Answered:
    """When a request came and how long it took, in seconds."""

    request: Request
    latency: float


Submit = Callable[[Request], "Future[Any]"]
Solo = dict[tuple[int, int], float]  # seconds by `Request.work`


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


def closed_loop(
    submit: Submit, todo: Sequence[Request], clients: int
) -> tuple[float, list[Answered]]:
    """Keep so many requests open; return the seconds in all, and every answer."""
    left: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
    for entry in (*todo, *[None] * clients):
        left.put(entry)
    answers: list[Answered] = []

    def client() -> None:
        while (request := left.get()) is not None:
            started = time.perf_counter()
            submit(request).result()
            answers.append(Answered(request, time.perf_counter() - started))

    started = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, answers


def poisson(
    submit: Submit, todo: Sequence[Request], rate: float, seed: int
) -> tuple[float, list[Answered]]:
    """Let requests arrive at random moments, `rate` a second on average."""
    rng = random.Random(seed)
    answers: list[Answered] = []
    futures = []

    def note(request: Request, arrived: float, _: Future[Any]) -> None:
        answers.append(Answered(request, time.perf_counter() - arrived))

    started = moment = time.perf_counter()
    for request in todo:
        moment += rng.expovariate(rate)
        time.sleep(max(0.0, moment - time.perf_counter()))
        future = submit(request)
        # From when it should have come: a generator that lags must not flatter.
        future.add_done_callback(lambda f, r=request, m=moment: note(r, m, f))
        futures.append(future)
    for future in futures:
        future.result()
    return time.perf_counter() - started, answers


@dataclass(frozen=True)
class Run:
    """One round of one policy: seconds by the clock and of all cores, and every answer."""

    seconds: float
    cpu_seconds: float
    answers: list[Answered]


def solo_times(submit: Submit) -> Solo:
    """Measure how long a request of each kind of work takes alone: the median of some, seconds."""
    found = {}
    for steps in STEPS:
        for share in GATES:
            request = replace(requests(1, 0)[0], steps=steps, gate_step=gate_of(share, steps))
            times = []
            for _ in range(7):
                started = time.perf_counter()
                submit(request).result()
                times.append(time.perf_counter() - started)
            found[request.work] = float(np.median(times))
    return found


def step_costs(bundle: Path) -> dict[str, dict[str, float]]:
    """Measure what an image's step takes in calls of 1, 2, 4, ... images: phase -> batch -> ms.

    It bounds what batching can gain, however images come together.
    """
    pipeline = TGatePipeline.from_bundle(bundle, BACKEND)
    batches = [2**power for power in range(6) if 2**power <= pipeline.manifest.batch.max]
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(5):  # interleaved
        for batch in batches:
            output = pipeline(
                ["a red circle"] * batch, num_inference_steps=20, gate_step=10, seed=0,
                output_type="latent",
            )  # fmt: skip
            for step in output.timings.steps:
                times = found.setdefault(step.phase, {}).setdefault(str(batch), [])
                times.append(1e3 * (step.denoiser + step.sampler) / batch)
    return {
        phase: {batch: float(np.median(times)) for batch, times in of_batch.items()}
        for phase, of_batch in found.items()
    }


def summary(runs: Sequence[Run], solo: Solo) -> dict[str, Any]:
    """Summarize the rounds of one policy under one load."""
    answers = [answer for run in runs for answer in run.answers]
    rates = [len(run.answers) / run.seconds for run in runs]
    groups = {"all": answers} | {
        f"{steps} steps": [a for a in answers if a.request.steps == steps] for steps in STEPS
    }

    def percentiles(values: dict[str, list[float]]) -> dict[str, dict[str, float]]:
        return {
            name: {f"p{q}": float(np.percentile(found, q)) for q in PERCENTILES}
            for name, found in values.items()
            if found
        }

    return {
        "requests": len(answers),
        "throughput_per_s": float(np.median(rates)),
        "throughput_of_rounds_per_s": rates,
        # Of this process, so without the server of `triton`; less noisy than the clock when other
        # programs use the machine.
        "cpu_s_per_request": sum(run.cpu_seconds for run in runs) / len(answers),
        "latency_s": percentiles({n: [a.latency for a in found] for n, found in groups.items()}),
        "times_solo": percentiles(
            {n: [a.latency / solo[a.request.work] for a in found] for n, found in groups.items()}
        ),
    }


def markdown(loads: dict[str, dict[str, Any]]) -> str:
    """Return the table of the pages."""
    lines = [
        "| load | policy | requests/s | times solo: p50 | p95 | p99 | 5 steps: p50 | p95 | p99 |",
        "|" + " --- |" * 9,
    ]
    for load, policies in loads.items():
        for policy, found in policies.items():
            times = [
                f"{found['times_solo'][group][f'p{q}']:.1f}"
                for group in ("all", "5 steps")
                for q in PERCENTILES
            ]
            rate = f"{found['throughput_per_s']:.2f}"
            lines.append(f"| {' | '.join([load, policy, rate, *times])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--markdown", type=Path, help="where the table goes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 8, 16])
    parser.add_argument("--rates", type=float, nargs="*", default=[0.5, 0.8, 0.95, 1.5])
    parser.add_argument("--requests", type=int, default=6, help="for each open request, a round")
    parser.add_argument("--arrivals", type=int, default=48, help="of Poisson loads, a round")
    parser.add_argument("--triton", action="store_true", help="a real tritonserver, too")
    arguments = parser.parse_args()
    policies = {
        "one at a time": lambda: group_policy(arguments.bundle, 1),
        "request-level": lambda: group_policy(arguments.bundle, None),
        "in flight": lambda: in_flight_policy(arguments.bundle),
    }
    if arguments.triton:
        policies["in flight, Triton"] = lambda: triton_policy(arguments.bundle)
    order = list(policies)
    shuffler = random.Random(0)
    results: dict[str, dict[str, Any]] = {}
    costs = step_costs(arguments.bundle)
    for phase, of_batch in costs.items():
        told = ", ".join(f"{batch}: {cost:.2f}" for batch, cost in of_batch.items())
        print(f"ms of an image's {phase} step by images of a call: {told}", flush=True)
    with policies["one at a time"]() as submit:
        solo = solo_times(submit)

    def measure(load: str, run: Callable[[Submit, int], tuple[float, list[Answered]]]) -> None:
        runs: dict[str, list[Run]] = {name: [] for name in policies}
        for round_ in range(arguments.rounds):
            shuffler.shuffle(order)
            for name in order:
                with policies[name]() as submit:
                    submit(requests(1, seed=99)[0]).result()  # engines load when first used
                    used = time.process_time()
                    seconds, answers = run(submit, round_)
                    runs[name].append(Run(seconds, time.process_time() - used, answers))
        results[load] = {name: summary(found, solo) for name, found in runs.items()}
        print(markdown({load: results[load]}), flush=True)

    for clients in arguments.concurrency:
        count = max(24, arguments.requests * clients)
        measure(
            f"{clients} open",
            lambda submit, round_, c=clients, n=count: closed_loop(submit, requests(n, round_), c),
        )
    capacity = max(
        (found["one at a time"]["throughput_per_s"] for found in results.values()), default=1.0
    )
    for factor in arguments.rates:
        rate = factor * capacity
        measure(
            f"Poisson, {factor:g} x",
            lambda submit, round_, r=rate: poisson(
                submit, requests(arguments.arrivals, round_), r, round_
            ),
        )
    if arguments.markdown:
        arguments.markdown.write_text(markdown(results), encoding="utf-8")
    if arguments.json:
        figures = {
            "date": now(),
            "machine": machine().model_dump(mode="json"),
            "backend": BACKEND,
            "steps": {str(steps): share for steps, share in STEPS.items()},
            "rounds": arguments.rounds,
            "step_ms_by_batch": costs,
            "solo_s": {f"{steps} steps, gate {gate}": t for (steps, gate), t in solo.items()},
            "poisson_capacity_per_s": capacity,
            "loads": results,
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
