"""scripts/benchmark_triton.py: its figures against sums and sorted lists, and a real server's."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import benchmark_triton
import pytest
from benchmark_triton import Answer, main, measure, metrics, prompts
from triton_server import Server

from tgate_export.common.errors import TGateError

# The keys that calculate_metrics of vLLM-Omni's diffusion_benchmark_serving.py returns, and those
# that it adds.
KEYS = {
    "duration", "completed_requests", "failed_requests", "throughput_qps", "latency_mean",
    "latency_median", "latency_p99", "latency_p95", "latency_p50", "peak_memory_mb_max",
    "peak_memory_mb_mean", "peak_memory_mb_median", "stage_durations_mean", "stage_durations_p50",
    "stage_durations_p99",
}  # fmt: skip
ADDED = {"backend", "model", "dataset", "task"}


def at(values: Sequence[float], share: float) -> float:
    """A percentile by its definition: at a rank of the sorted values, in proportion between two."""
    ordered, rank = sorted(values), share / 100 * (len(values) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])


@pytest.mark.parametrize("count", [1, 2, 3, 20, 101])
def test_figures(count: int) -> None:
    rng = random.Random(count)
    latencies = [rng.expovariate(1) for _ in range(count)]
    full, gated = ([rng.random() for _ in range(count)] for _ in range(2))
    answers = [
        Answer(latency, stages={"full": f, "gated": g} if g > 0.5 else {"full": f})
        for latency, f, g in zip(latencies, full, gated, strict=True)
    ]
    failed = [Answer(1000.0, "no", {"full": 1000.0})] * 3  # whose times do not count
    found = metrics([*failed, *answers], 4.0)
    assert found.keys() == KEYS
    assert (found["completed_requests"], found["failed_requests"]) == (count, 3)
    assert (found["duration"], found["throughput_qps"]) == (4.0, count / 4)
    assert found["latency_mean"] == pytest.approx(sum(latencies) / count)
    for name, share in (("median", 50), ("p50", 50), ("p95", 95), ("p99", 99)):
        assert found[f"latency_{name}"] == pytest.approx(at(latencies, share))
    some = [g for g in gated if g > 0.5]
    expected = {"full": full} | ({"gated": some} if some else {})
    assert found["stage_durations_mean"] == pytest.approx(
        {name: sum(values) / len(values) for name, values in expected.items()}
    )
    for share in (50, 99):
        assert found[f"stage_durations_p{share}"] == pytest.approx(
            {name: at(values, share) for name, values in expected.items()}
        )


def test_nothing_was_done() -> None:
    found = metrics([Answer(1.0, "no")], 2.0)
    assert found.keys() == KEYS
    assert (found["completed_requests"], found["failed_requests"], found["latency_p99"]) == (
        0,
        1,
        0,
    )
    assert (found["throughput_qps"], found["stage_durations_mean"]) == (0, {})


def test_no_more_are_open_than_may_be() -> None:
    lock, barrier = threading.Lock(), threading.Barrier(3, timeout=30)
    open_now = most = 0

    def send(index: int) -> dict[str, float]:
        nonlocal open_now, most
        with lock:
            open_now += 1
            most = max(most, open_now)
        barrier.wait()  # so that three are open at once
        time.sleep(0.01)
        with lock:
            open_now -= 1
        if index == 4:
            raise TGateError("the fifth")
        return {"full": float(index)}

    answers, duration = measure(send, 9, 3, float("inf"), random.Random(0))
    assert most == 3
    assert [answer.stages.get("full") for answer in answers] == [0, 1, 2, 3, None, 5, 6, 7, 8]
    assert [answer.error for answer in answers if answer.error] == ["the fifth"]
    assert all(0.01 <= answer.latency <= duration for answer in answers)
    # Those that wait for others are not late by it.
    assert sum(answer.latency for answer in answers) <= 3 * duration


def test_requests_come_at_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(benchmark_triton.time, "sleep", slept.append)
    answers, _ = measure(lambda _: {}, 2001, 4, 5.0, random.Random(1))
    assert (len(answers), len(slept)) == (2001, 2000)
    assert sum(slept) / len(slept) == pytest.approx(1 / 5, rel=0.1)  # 4 standard errors
    assert sum(pause > 0.2 for pause in slept) / 2000 == pytest.approx(math.exp(-1), abs=0.045)


def test_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a\n\n b \n")
    assert prompts(file, 5) == ["a", "b", "a", "b", "a"]
    assert len(set(prompts(None, 5))) == 5
    file.write_text("\n")
    with pytest.raises(TGateError, match=r"prompts\.txt has no prompts: write one a line"):
        prompts(file, 1)


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "127.0.0.1:1", "--model", "x"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_a_server_is_measured(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    status = main(
        ["--url", server.grpc, "--model", "shapes", "--num-prompts", "6", "--max-concurrency", "3",
         "--num-inference-steps", "4", "--seed", "1", "--output-file", str(file)]
    )  # fmt: skip
    assert status == 0
    found = json.loads(file.read_text())
    assert found.keys() == KEYS | ADDED
    assert (found["completed_requests"], found["failed_requests"]) == (6, 0)
    assert (found["backend"], found["model"], found["task"]) == ("triton", "shapes", "t2i")
    assert 0 < found["latency_p50"] <= found["latency_p99"] <= found["duration"]
    assert found["throughput_qps"] == pytest.approx(6 / found["duration"])
    assert {"encode", "full", "decode"} <= found["stage_durations_mean"].keys()
    shown = capsys.readouterr().out
    assert f"{'completed_requests':<40} 6\n" in shown
    assert "stage_durations_mean full" in shown


def test_requests_that_fail_are_counted(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--url", server.grpc, "--model", "shapes", "--num-prompts", "3"]
    assert main([*arguments, "--num-inference-steps", "1000"]) == 1
    found = capsys.readouterr()
    assert f"{'failed_requests':<40} 3\n" in found.out
    assert "error: 3 of 3 failed; the first: " in found.err
    assert "steps must be 1 to 100" in found.err
