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
# Attention to a single token needs no queries, no keys, and no norm before them. Of so many blocks
# with so many channels, each in space and in time:
SVD_UNUSED = 2 * sum(n * (d * d + 1024 * d + 2 * d) for n, d in ((5, 320), (5, 640), (6, 1280)))


# Compiles the denoisers alone: T5's plan would be of a text encoder of 4.8 G parameters.
COMPILE_DENOISERS = """
import sys
from pathlib import Path
from tgate_export.bundle.integrity import open_bundle
from tgate_export.compile.builder import compile_graph
from tgate_export.compile.compile import plan_key, prepare
from tgate_export.compile.request import PlanRequest
from tgate_export.common.progress import Progress

bundle, graph = open_bundle(sys.argv[1], check_hashes=False), sys.argv[2]
ready = prepare(PlanRequest("tensorrt-rtx", ("8.9",)), bundle.manifest.batch)
shapes = plan_key(bundle, graph, ready).shapes
plan = Path(sys.argv[3])
compile_graph(ready.compiler, bundle, graph, shapes, ready.request, plan, Progress())
"""


def run(*arguments: str) -> tuple[str, int]:
    """Run the command; see `measured`."""
    return measured("-m", "tgate_export", *arguments)


def report(line: str) -> None:
    """Show a figure where output is not captured (`-s`)."""
    sys.stderr.write(f"{line}\n")


def measured(*arguments: str) -> tuple[str, int]:
    """Run Python; return its stdout and the peak resident memory of all its processes."""
    process = psutil.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
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
    assert [len(cache.layers) for cache in manifest.caches.values()] == [5, 5, 5, 1]
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
    ("name", "parameters", "layers", "constants"),
    [
        # Frequencies and scales of resizes.
        ("sd21", 865_910_724, [1, 5, 5, 5], 1000),
        ("sdxl", 2_567_463_684, [10, 60], 1000),
        ("lcm-sdxl", 2_567_545_604, [10, 60], 1000),
        # And the position embedding of 64 x 64 patches, and the ones of 57 norms without a scale.
        ("pixart-alpha", 611_349_152, [28], (4096 + 57) * 1152 + 1000),
        ("pixart-sigma", 610_856_096, [28], (4096 + 57) * 1152 + 1000),
        # And in each of 16 blocks sines and cosines of 14 frames.
        ("svd", 1_524_623_082 - SVD_UNUSED, [10, 10, 12], 16 * 28 * 1280),
    ],
)
def test_large_models_in_fp16(
    tmp_path: Path, name: str, parameters: int, layers: list[int], constants: int
) -> None:
    """The bound is for all of it: export, and references in fp32 from fp16 weights."""
    bundle = tmp_path / name
    batch = () if name == "svd" else ("--batch", "1")
    _, peak = run("build", "--model", name, "--weights", "random", "--precision", "fp16",
                  *batch, "--out", str(bundle))  # fmt: skip
    report(f"{name}: built at a peak of {peak / GIB:.2f} GiB")
    assert peak < 14 * GIB
    manifest = read_manifest(bundle)
    assert sorted(len(cache.layers) for cache in manifest.caches.values()) == layers
    more = manifest.graphs["full"].parameters - parameters
    assert 0 < more < constants
    weights = manifest.files["graphs/denoiser.weights"].bytes
    assert weights <= 1.02 * 2 * (parameters + more)
    for graph in ("full", "gated"):
        plan = tmp_path / f"{graph}.plan"
        _, peak = measured("-c", COMPILE_DENOISERS, str(bundle), graph, str(plan))
        size = plan.stat().st_size
        report(f"{name}: {graph}.plan: {size / 1e9:.2f} GB at a peak of {peak / GIB:.2f} GiB")
        # A plan holds its weights: in fp16, unless the compiler folds some of them.
        assert size > 0.9 * 2 * manifest.graphs[graph].parameters
        plan.unlink()
