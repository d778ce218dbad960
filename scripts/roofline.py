"""What a step can take at best on a GPU, and what a gate can gain: from MACs and bytes alone.

    scripts/roofline.py sd15 sdxl

The two denoiser graphs are exported at the model's own size in fp16, with random weights; nothing
is computed. A convolution, matrix product or attention takes the longer of its multiplications at
the peak rate and its operands' and result's bytes at the peak bandwidth; whatever lies between
them is taken to be fused into them, and launches to cost nothing. No engine reaches this: it is
the bound that measured times are to be held against.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from count_macs import exported_phases, shapes

from tgate_export.bench.macs import CountedNode, counted_nodes
from tgate_export.bundle.manifest import Range
from tgate_export.families.graphs import GraphExport
from tgate_export.methods.tgate import METHOD

STEPS, GATES, BATCHES = 25, (5, 10), (1, 4, 16)
BYTES = 2  # of an fp16 value


@dataclass(frozen=True)
class Gpu:
    """Peaks of the data sheet: dense fp16 with fp32 sums [FLOP/s], and memory [B/s]."""

    name: str
    flops: float
    bandwidth: float


GPUS = (
    Gpu("A100 SXM 80 GB", 312e12, 2.039e12),
    Gpu("H100 SXM", 989e12, 3.35e12),
    Gpu("H200 SXM", 989e12, 4.8e12),
    Gpu("RTX 4090", 165.2e12, 1.008e12),
)


def seconds(nodes: list[CountedNode], gpu: Gpu) -> float:
    """Return the least time of a graph's run."""
    return sum(
        max(2 * node.macs.total / gpu.flops, BYTES * moved(node) / gpu.bandwidth) for node in nodes
    )


def moved(node: CountedNode) -> int:
    """Count the values that a node reads and writes."""
    return sum(math.prod(shape) for shape in (*node.operands, node.result))


def cached_bytes(graph: GraphExport, batch: int) -> int:
    """Count the bytes of the caches that a graph reads."""
    cached = {name: shape for name, shape in shapes(graph, batch).items() if "cache" in name}
    return BYTES * sum(map(math.prod, cached.values()))


def report(model: str, folder: Path) -> None:
    """Print one model's tables."""
    batch = Range(min=1, opt=2, max=max(BATCHES))
    phases = {g.name: (g, path) for g, path in exported_phases(model, batch, folder)}
    rows = []
    for images in BATCHES:
        nodes = {
            name: list(counted_nodes(path, shapes(graph, images)))
            for name, (graph, path) in phases.items()
        }
        rows.append((images, nodes))
    gates = " | ".join(f"gate {gate} of {STEPS}" for gate in GATES)
    print(f"\n{model}\n")
    print(f"| GPU | images | full | gated | full / gated | {gates} | caches |")
    print("| --- " * (6 + len(GATES)) + "|")
    for gpu in GPUS:
        for images, nodes in rows:
            step = {name: seconds(counted, gpu) for name, counted in nodes.items()}
            runs = [
                sum(step[phase] for phase in METHOD.plan({"gate_step": gate}, range(STEPS)).phases)
                for gate in (STEPS, *GATES)
            ]
            caches = cached_bytes(phases["gated"][0], images)
            full, gated = step["full"], step["gated"]
            cells = (
                gpu.name, images, f"{1e3 * full:.2f} ms", f"{1e3 * gated:.2f} ms",
                f"{full / gated:.2f}", *(f"{runs[0] / run:.2f}x" for run in runs[1:]),
                f"{caches / 2**20:.1f} MiB, {1e6 * caches / gpu.bandwidth:.0f} us",
            )  # fmt: skip
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    """Print a Markdown table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    for model in parser.parse_args().models:
        with tempfile.TemporaryDirectory() as folder:
            report(model, Path(folder))


if __name__ == "__main__":
    main()
