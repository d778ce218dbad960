"""Published models at full size with random weights: minutes and gigabytes, so `slow`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from tgate_export.bundle.integrity import read_manifest

GIB = 2**30
UNET_PARAMETERS = 859_520_964


def run(*arguments: str) -> tuple[str, int]:
    """Run the command; return its stdout and the peak resident memory of all its processes."""
    process = psutil.Popen(
        [sys.executable, "-m", "tgate_export", *arguments], stdout=subprocess.PIPE, text=True
    )
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.2):
            try:
                members = [process, *process.children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in members))
            except psutil.NoSuchProcess:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    done.set()
    watcher.join()
    assert process.returncode == 0
    return output, peak


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("precision", "bytes_each", "limit"), [("fp32", 4, 10), ("fp16", 2, 6)])
def test_sd15(tmp_path: Path, precision: str, bytes_each: int, limit: int) -> None:
    bundle = tmp_path / "sd15"
    _, peak = run("build", "--model", "sd15", "--weights", "random", "--precision", precision,
                  "--out", str(bundle))  # fmt: skip
    assert peak < limit * GIB
    manifest = read_manifest(bundle)
    # Constants count, too: 160 frequencies of the time embedding, the scales of three resizes.
    assert 160 <= manifest.graphs["full"].parameters - UNET_PARAMETERS <= 160 + 3 * 4
    assert manifest.graphs["gated"].parameters < UNET_PARAMETERS
    assert [len(cache.layers) for cache in manifest.cache] == [5, 5, 5, 1]
    weights = manifest.files["graphs/denoiser.weights"].bytes
    assert weights <= 1.02 * UNET_PARAMETERS * bytes_each
    if precision == "fp32":
        output, _ = run("generate", str(bundle), "--prompt", "a", "--steps", "2", "--gate-step",
                        "1", "--out", str(tmp_path / "x.png"), "--json")  # fmt: skip
        report: dict[str, Any] = json.loads(output)
        assert (report["width"], report["height"]) == (512, 512)
        assert report["timings"]["outside_engines_fraction"] < 0.01


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [("sdxl", 2_567_463_684, [10, 60]), ("pixart-alpha", 611_349_152, [28])],
)
def test_large_models_in_fp16(
    tmp_path: Path, name: str, parameters: int, layers: list[int]
) -> None:
    """The bound is for all of it: export, and references in fp32 from fp16 weights."""
    bundle = tmp_path / name
    _, peak = run("build", "--model", name, "--weights", "random", "--precision", "fp16",
                  "--batch", "1", "--out", str(bundle))  # fmt: skip
    assert peak < 14 * GIB
    manifest = read_manifest(bundle)
    assert sorted(len(cache.layers) for cache in manifest.cache) == layers
    # Constants count, too: frequencies, and PixArt's position embedding of 64 x 64 patches.
    constants = manifest.graphs["full"].parameters - parameters
    assert 0 < constants < (4096 * 1152 + 1000 if name == "pixart-alpha" else 1000)
    weights = manifest.files["graphs/denoiser.weights"].bytes
    assert weights <= 1.02 * 2 * (parameters + constants)
