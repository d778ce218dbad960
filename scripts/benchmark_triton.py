"""Measure a model of a running tritonserver, with vLLM-Omni's options and figures.

vLLM-Omni's diffusion_benchmark_serving.py measures servers of OpenAI's API, ours too; this does the
same over gRPC: so many requests, at most so many open at a time, all at once or at random moments.
Its figures have the same names, so that one program reads both.
usage: scripts/benchmark_triton.py --url HOST:PORT --model NAME [--num-prompts N]
[--max-concurrency N] [--request-rate R] [--num-inference-steps N] [--output-file FILE] ...
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tgate_export.common.errors import TGateError
from tgate_export.embed.triton.client import TGateClient
from tgate_export.embed.triton.tls import Tls

Send = Callable[[int], Mapping[str, float]]


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        latency: seconds from when it was sent.
        error: why it failed; "" when it did not.
        stages: seconds of its stages, by name.
    """

    latency: float
    error: str = ""
    stages: Mapping[str, float] = field(default_factory=dict)


def metrics(answers: Sequence[Answer], duration: float) -> dict[str, Any]:
    """Return vLLM-Omni's figures: seconds, MB, requests a second.

    Args:
        answers: of all requests.
        duration: seconds in all.
    """
    done = [answer for answer in answers if not answer.error]
    latencies = [answer.latency for answer in done]
    stages: dict[str, list[float]] = {}
    for answer in done:
        for name, seconds in answer.stages.items():
            stages.setdefault(name, []).append(seconds)
    return {
        "duration": duration,
        "completed_requests": len(done),
        "failed_requests": len(answers) - len(done),
        "throughput_qps": len(done) / duration if duration > 0 else 0,
        "latency_mean": float(np.mean(latencies)) if done else 0,
        "latency_median": percentile(latencies, 50),
        "latency_p99": percentile(latencies, 99),
        "latency_p95": percentile(latencies, 95),
        "latency_p50": percentile(latencies, 50),
        **dict.fromkeys(_MEMORY, 0),  # as there, when a server does not tell
        "stage_durations_mean": {name: float(np.mean(found)) for name, found in stages.items()},
        "stage_durations_p50": {name: percentile(found, 50) for name, found in stages.items()},
        "stage_durations_p99": {name: percentile(found, 99) for name, found in stages.items()},
    }


_MEMORY = ("peak_memory_mb_max", "peak_memory_mb_mean", "peak_memory_mb_median")


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile, between two values in proportion; 0 without any."""
    return float(np.percentile(values, share)) if values else 0


def measure(
    send: Send, count: int, most: int, rate: float, rng: random.Random
) -> tuple[list[Answer], float]:
    """Send requests; return every answer, in their order, and the seconds in all.

    Args:
        send: sends one, by its index, waits, and returns its stages' seconds.
        count: of requests.
        most: that are open at a time; others wait, which is not part of their latency.
        rate: how many come in a second on average, at random moments; all at once when infinite.
        rng: for the moments.
    """

    def one(index: int) -> Answer:
        started = time.perf_counter()
        try:
            stages = send(index)
        except (TGateError, TimeoutError) as error:
            return Answer(time.perf_counter() - started, str(error) or type(error).__name__)
        return Answer(time.perf_counter() - started, stages=stages)

    started = time.perf_counter()
    with ThreadPoolExecutor(most) as pool:
        futures = [pool.submit(one, index) for index in _arrivals(count, rate, rng)]
        answers = [future.result() for future in futures]
    return answers, time.perf_counter() - started


def _arrivals(count: int, rate: float, rng: random.Random) -> Iterator[int]:
    for index in range(count):
        if index and rate != float("inf"):
            time.sleep(rng.expovariate(rate))
        yield index


def prompts(file: Path | None, count: int) -> list[str]:
    """Return so many prompts: the lines of a file, from the first again when they are used up."""
    if file is None:
        return [f"a red circle on a blue background, number {index}" for index in range(count)]
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    if not (found := [line for line in lines if line]):
        raise TGateError(f"{file} has no prompts: write one a line")
    return [found[index % len(found)] for index in range(count)]


def show(result: Mapping[str, Any]) -> None:
    """Print the figures, a line each."""
    for name, value in result.items():
        if isinstance(value, Mapping):
            for stage, seconds in value.items():
                print(f"{f'{name} {stage}':<40} {seconds:.4f}")
        else:
            print(f"{name:<40} {f'{value:.4f}' if isinstance(value, float) else value}")


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="127.0.0.1:8001", help="HOST:PORT of the gRPC service")
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset-path", type=Path, help="prompts, one a line")
    parser.add_argument("--num-prompts", type=_count, default=10)
    parser.add_argument("--max-concurrency", type=_count, default=1)
    parser.add_argument("--request-rate", type=_positive, default=float("inf"))
    parser.add_argument("--warmup-requests", type=int, default=1)
    parser.add_argument("--warmup-num-inference-steps", type=_count, default=2)
    parser.add_argument("--num-inference-steps", type=_count, default=50)
    parser.add_argument("--width", type=_count)
    parser.add_argument("--height", type=_count)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--timeout", type=_positive, default=600, help="seconds of silence")
    parser.add_argument("--root-certificates", type=Path, help="with TLS, by these PEM files")
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--output-file", type=Path, help="where the figures go, as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit status: 1 if a request failed."""
    given = _parser().parse_args(arguments)
    files = given.root_certificates, given.certificate, given.key
    try:
        client = TGateClient(given.url, given.model, Tls(*files) if any(files) else None)
        texts = prompts(given.dataset_path, given.num_prompts)

        def send(index: int, steps: int = given.num_inference_steps) -> Mapping[str, float]:
            result = client.generate(
                texts[index % len(texts)], steps=steps, width=given.width, height=given.height,
                seed=given.seed, format="png", timeout=given.timeout,
            )  # fmt: skip
            return {name: stage["seconds"] for name, stage in result.timings["stages"].items()}

        for index in range(given.warmup_requests):
            send(index, given.warmup_num_inference_steps)
    except (TGateError, TypeError, TimeoutError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rng = random.Random(given.seed)
    answers, duration = measure(
        send, given.num_prompts, given.max_concurrency, given.request_rate, rng
    )
    result = metrics(answers, duration) | {
        "backend": "triton",
        "model": given.model,
        "dataset": "random" if given.dataset_path is None else str(given.dataset_path),
        "task": "t2i",
    }
    show(result)
    if given.output_file:
        given.output_file.write_text(json.dumps(result, indent=2) + "\n")
    errors = [answer.error for answer in answers if answer.error]
    if errors:
        print(f"error: {len(errors)} of {len(answers)} failed; the first: {errors[0]}",
              file=sys.stderr)  # fmt: skip
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
