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
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from load_policies import (
    BACKEND,
    GATES,
    STEPS,
    Request,
    Submit,
    gate_of,
    group_policy,
    in_flight_policy,
    requests,
    triton_policy,
)

from tgate_export import TGatePipeline
from tgate_export.bench.machine import machine, now

PERCENTILES = (50, 95, 99)
Solo = dict[tuple[int, int], float]  # seconds by `Request.work`


@dataclass(frozen=True)
class Answered:
    """When a request came and how long it took, in seconds."""

    request: Request
    latency: float


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
