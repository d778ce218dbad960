"""Peers' times: what is multiplied out, what stands in the table, how steps are clocked."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import compare_peers
import peer_worker


def run(total: float, *steps: float) -> dict[str, Any]:
    reading = {"total_s": total, "steps_s": list(steps)}
    return {"load_s": 1.5, "first": reading | {"total_s": 2 * total}, "measured": reading,
            "peak_bytes": 2_000_000_000}  # fmt: skip


def test_fewer_steps_are_multiplied_out() -> None:
    # 3 s beside the steps; 10 steps of 2 s and 15 of 1 s.
    gated = compare_peers.Peer("tgate", gated=True, runs=[run(9.0, 2.0, 2.0, 1.0, 1.0)])
    assert gated.images(25, 10, 2) == [3 + 10 * 2 + 15 * 1]
    assert (gated.steps("full", 2), gated.steps("gated", 2)) == ([2.0, 2.0], [1.0, 1.0])
    plain = compare_peers.Peer("diffusers", gated=False, runs=[run(9.0, 2.0, 2.0, 1.0, 1.0)])
    assert plain.images(25, 10, 2) == [3 + 25 * 1.5]
    assert plain.steps("gated", 2) == []


def test_all_steps_are_taken_as_they_are() -> None:
    peer = compare_peers.Peer(
        "tgate", gated=True, runs=[run(9.0, 2.5, 1.5, 1.0), run(7.0, 2, 2, 1)]
    )
    assert peer.images(3, 2, 2) == pytest.approx([9.0, 7.0])


def test_table() -> None:
    def row(image: float, gated: float | None) -> dict[str, Any]:
        return {
            "image_s": image, "full_step_s": 1.0, "gated_step_s": gated, "first_over_warm": 1.1,
            "peak_bytes": 2_000_000_000, "latents_difference": 2e-6,
        }  # fmt: skip

    text = compare_peers.markdown(
        {
            "model": "m", "weights": "random", "steps": 25, "gate_step": 10, "measured_steps": 4,
            "measured_gate_step": 2, "rounds": 3, "created": "2026-11-25T00:00:00+00:00",
            "load_average": 0.5, "expected_speedup": 1.45,
            "machine": {"processor": "CPU", "cores": 2},
            "peers": {
                "diffusers": row(30.0, None), "onnxruntime-ungated": row(15.0, None),
                "onnxruntime": row(10.0, 0.5), "openvino-bf16": {"error": "no bf16"},
            },
        }
    )  # fmt: skip
    assert "4 steps with gate step 2 were run" in text
    assert "| diffusers | 30.00 s | 1.000 s |  | 3.00x | 1.10 | 2.00 GB | 2e-06 |" in text
    assert "| openvino-bf16 | not run: no bf16 |" in text
    assert "onnxruntime: 1.500x faster than ungated" in text
    assert "103.4% of it" in text


def test_a_peer_that_cannot_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what another library warns of while the process ends."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import atexit, sys\n"
        "warning = 'pool.py:9: UserWarning: leaked\\n  warn()'\n"
        "atexit.register(lambda: print(warning, file=sys.stderr))\n"
        "try:\n    import no_such_peer\n"
        "except ImportError as error:\n    raise ValueError('no bf16') from error\n"
    )
    monkeypatch.setattr(compare_peers, "WORKER", worker)
    options = SimpleNamespace(optimum_python=None, work=tmp_path)
    assert compare_peers.work("tgate", {}, options) == (None, "ValueError: no bf16")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("error: no model\nUserWarning: slow\n", "error: no model"),
        ("FutureWarning: old\n", "FutureWarning: old"),
        ("", None),
    ],
)
def test_the_last_error_of_a_text(text: str, line: str | None) -> None:
    assert compare_peers.last_error(text) == line


def test_steps_are_clocked_and_latents_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scheduler:
        def set_timesteps(self, _steps: int) -> None: ...

        def step(self, noise: float, _timestep: int, sample: float, *, return_dict: bool) -> Any:
            value = sample - noise
            return SimpleNamespace(prev_sample=value) if return_dict else (value,)

    times = iter([10.0, 12.0, 15.0, 100.0, 101.0])
    monkeypatch.setattr(peer_worker.time, "perf_counter", lambda: next(times))
    scheduler = Scheduler()
    clock = peer_worker.StepClock(scheduler)
    scheduler.set_timesteps(2)
    assert scheduler.step(1.0, 0, 5.0, return_dict=False) == (4.0,)
    assert scheduler.step(1.0, 0, 4.0, return_dict=True).prev_sample == 3.0
    assert clock.steps == [2.0, 3.0]
    assert clock.latents == 3.0
    scheduler.set_timesteps(1)  # another picture
    scheduler.step(1.0, 0, 5.0, return_dict=False)
    assert clock.steps == [1.0]


def test_latents_are_compared_with_the_reference(tmp_path: Path) -> None:
    for name, latents in {"tgate": [1.0, -4.0], "openvino": [1.0, -3.0]}.items():
        np.save(tmp_path / f"{name}.npy", np.array(latents))
    peers = [compare_peers.Peer(name, True, [run(1.0, 1.0)]) for name in ("tgate", "openvino")]
    peers.append(compare_peers.Peer("onnxruntime", True, error="not run"))
    compare_peers.compare_latents(peers, tmp_path)
    assert [peer.difference for peer in peers] == [None, 0.25, None]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--peers", "abacus"], "unknown peer 'abacus'"),
        (["--peers", "tgate", "--gate-step", "25"], "--gate-step must be 1 to --steps - 1"),
        (["--peers", "tgate", "--measured-steps", "1"], "--measured-steps must be 2 to --steps"),
        (["--optimum-python", "/nowhere/python"], "/nowhere/python is missing: optimum-onnx needs"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare_peers.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        compare_peers.parse()
    assert ended.value.code == 2
    assert reason in " ".join(capsys.readouterr().err.split())
