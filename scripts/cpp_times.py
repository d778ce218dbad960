#!/usr/bin/env python3
"""Host times of the C++ and the Python runtime, side by side, interleaved.

usage: scripts/cpp_times.py TGATE_GENERATE BUNDLE [--rounds 7] [--backend onnxruntime:cpu]

Each round runs each once, as a new process. "Start" is everything of the process but the call that
generates: starting, checking and loading the bundle, making sessions, writing the picture.
"Outside engines" is what of the call neither the denoiser, the text encoder nor the VAE took.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def generate(command: list[str], bundle: str, backend: str, out: Path) -> dict[str, float]:
    """Return the seconds of one process."""
    options = ["--prompt", "a red circle on a blue background", "--seed", "1", "--backend", backend]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, bundle, *options, "--out", str(out), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    wall = time.perf_counter() - started
    timings = json.loads(done.stdout)["timings"]
    outside = timings["outside_engines_s"]
    return {"start": wall - timings["total_s"], "outside engines": outside, "process": wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tgate_generate")
    parser.add_argument("bundle")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backend", default="onnxruntime:cpu", help="of both")
    arguments = parser.parse_args()
    commands = {
        "C++": [arguments.tgate_generate],
        "Python": [sys.executable, "-P", "-m", "tgate_export", "generate"],
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "x.png"
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                found[name].append(generate(command, arguments.bundle, arguments.backend, out))
    print(f"median of {arguments.rounds} processes, ms")
    print(f"{'':>16} {'C++':>9} {'Python':>9} {'ratio':>6}")
    for what in found["C++"][0]:
        medians = [1e3 * statistics.median(run[what] for run in found[name]) for name in commands]
        print(f"{what:>16} {medians[0]:9.1f} {medians[1]:9.1f} {medians[0] / medians[1]:6.2f}")


if __name__ == "__main__":
    main()
