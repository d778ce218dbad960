"""Count a run's multiply-accumulates from exported graphs, beside the T-GATE paper's figures.

    scripts/count_macs.py sd15 sd21 sdxl pixart-alpha

Only the denoiser is made, with random weights, and its two graphs are exported at the model's own
size; nothing is computed. A T-GATE row is at the gate that comes nearest to the paper, which does
not say which gate its table has.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import onnx_ir

from tgate_export.bench.macs import Macs, count_macs
from tgate_export.build.options import check_options
from tgate_export.bundle.manifest import Range
from tgate_export.export.onnx_export import export_graph
from tgate_export.export.weights import WeightFile
from tgate_export.families.geometry import vae_downscale
from tgate_export.families.graphs import GraphExport, denoiser_phases, graph_exports
from tgate_export.families.loading import Components, load_component
from tgate_export.families.source import resolve_source

STEPS = 25
ONE = Range(min=1, opt=1, max=1)
TERA = 1e12


@dataclass(frozen=True)
class Paper:
    """Tera-MACs of a run of 25 steps in arXiv 2404.02747."""

    ungated: float
    gated: float


PAPER = {
    "sd15": Paper(16.938, 9.875),
    "sd21": Paper(38.041, 22.208),
    "sdxl": Paper(149.438, 84.438),
    "pixart-alpha": Paper(107.031, 65.318),
}


def exported_phases(model: str, batch: Range, folder: Path) -> Iterator[tuple[GraphExport, Path]]:
    """Export the phases of a packaged architecture in fp16, without their weights."""
    source = resolve_source(model, "random")
    options = check_options(source, "fp16", None, batch)
    name = source.family.denoiser
    parts = Components({name: load_component(source, name, "fp16")}, {}, "fp16")
    phases = denoiser_phases(source, parts, options.size, options.method, options.phases)
    for graph in graph_exports(source, parts, options.size, phases):
        if graph.name not in options.phases:
            continue
        exported = export_graph(graph, batch, options.size, vae_downscale(source))
        path = folder / f"{graph.name}.onnx"
        with tempfile.TemporaryDirectory() as weights:
            with closing(WeightFile(Path(weights, "denoiser.weights"))) as file:
                file.externalize(exported)
            onnx_ir.save(exported, path)
        yield graph, path


def shapes(graph: GraphExport, batch: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a graph's inputs."""
    return {
        entry.name: tuple(batch if dim == "batch" else int(dim) for dim in entry.shape)
        for entry in graph.inputs
    }


def phase_macs(model: str) -> dict[str, Macs]:
    """Count one run of each phase of a packaged architecture."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            graph.name: count_macs(path, shapes(graph, 1))
            for graph, path in exported_phases(model, ONE, Path(folder))
        }


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+", choices=sorted(PAPER), metavar="MODEL")
    print("| model | gate step | papers' convention | the paper | off by | with attention |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in parser.parse_args().models:
        macs = phase_macs(model)
        runs = {g: macs["full"] * g + macs["gated"] * (STEPS - g) for g in range(1, STEPS + 1)}
        paper = PAPER[model]
        nearest = min(range(1, STEPS), key=lambda g: abs(runs[g].layers / TERA - paper.gated))
        for gate, theirs in ((STEPS, paper.ungated), (nearest, paper.gated)):
            ours = runs[gate].layers / TERA
            print(
                f"| {model} | {'none' if gate == STEPS else f'{gate} of {STEPS}'} | {ours:.3f} T "
                f"| {theirs:.3f} T | {100 * (ours / theirs - 1):+.2f} % "
                f"| {runs[gate].total / TERA:.3f} T |",
                flush=True,
            )


if __name__ == "__main__":
    main()
