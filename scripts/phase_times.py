"""Time the denoiser's phases in PyTorch on a GPU: eager, as CUDA graphs, and compiled.

    scripts/phase_times.py sd15 sdxl --images 1,4 --out docs/results/phases.json

Packaged architectures with random weights in fp16, at their own size. `eager` calls the module,
as a diffusers pipeline does; `cuda graph` replays those very kernels without the host; `compiled`
replays what torch.compile makes of them. A run is so many replays of `full` and then of `gated`,
queued as one: its time is the device's from the first to the last. Everything is a median.
Compiling takes minutes, so only the first of `--images` is compiled for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median

import torch

from tgate_export.build.options import check_options
from tgate_export.families.graphs import GraphExport, denoiser_phases, graph_exports
from tgate_export.families.loading import Components, load_component
from tgate_export.families.source import resolve_source

STEPS, GATES = 25, (5, 10)
REPEATS, RUN_REPEATS = 20, 5
DEVICE = "cuda"
TOLERANCE = 2e-2  # of the largest value: fp16 kernels that sum in another order
Tensors = tuple[torch.Tensor, ...]
Run = Callable[[], None]


@dataclass(frozen=True)
class Row:
    """One way to run one model.

    Attributes:
        model: its name.
        images: in a step.
        mode: eager, cuda graph or compiled.
        full: a step [ms].
        gated: a step [ms].
        ungated: a run of `STEPS` steps [ms].
        runs: gate step -> a run with it [ms].
        error: largest difference from eager outputs, relative to the largest value.
        prepared: seconds that compiling and capturing both phases took.
    """

    model: str
    images: int
    mode: str
    full: float
    gated: float
    ungated: float
    runs: dict[int, float]
    error: float
    prepared: float


def phases(model: str) -> dict[str, tuple[torch.nn.Module, GraphExport]]:
    """Make both phases of a packaged architecture on the GPU; they share their weights."""
    source = resolve_source(model, "random")
    options = check_options(source, "fp16")
    name = source.family.denoiser
    with torch.device(DEVICE):
        parts = Components({name: load_component(source, name, "fp16")}, {}, "fp16")
        phases = denoiser_phases(source, parts, options.size, options.method, options.phases)
    exports = {graph.name: graph for graph in graph_exports(source, parts, options.size, phases)}
    return {name: (exports[name].module().eval(), exports[name]) for name in ("full", "gated")}


def random_inputs(graph: GraphExport, images: int) -> Tensors:
    """Return normally distributed inputs on the GPU; a time step is one of 0 to 999."""
    made = []
    for entry in graph.inputs:
        shape = [images if dim == "batch" else int(dim) for dim in entry.shape]
        value = torch.randn(shape, device=DEVICE)
        made.append(value.abs() * 300 % 1000 if entry.name == "timestep" else value)
    return tuple(value.to(entry.dtype) for value, entry in zip(made, graph.inputs, strict=True))


def milliseconds(run: Run, repeats: int = REPEATS) -> float:
    """Return the device's time of what `run` queues: the median of several, after a warm-up."""
    run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times)


def captured(module: Callable[..., Tensors], inputs: Tensors) -> tuple[Run, Tensors]:
    """Return what replays a call, and the outputs that it writes to."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            module(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = module(*inputs)
    return graph.replay, outputs


def largest_error(found: Tensors, expected: Tensors) -> float:
    """Return the largest difference, relative to the largest value; nan where one is."""
    return max(
        float((a.float() - b.float()).abs().max() / b.float().abs().max())
        for a, b in zip(found, expected, strict=True)
    )


def measure(model: str, images: int, modes: Sequence[str]) -> list[Row]:
    """Time a model in these modes."""
    torch.manual_seed(0)
    made = phases(model)
    inputs = {name: random_inputs(graph, images) for name, (_, graph) in made.items()}
    expected = {
        name: tuple(value.clone() for value in module(*inputs[name]))
        for name, (module, _) in made.items()
    }
    rows = []
    for mode in modes:
        start = time.perf_counter()
        calls: dict[str, Run] = {}
        error = 0.0
        for name, (module, _) in made.items():
            if mode == "eager":
                calls[name] = lambda module=module, name=name: module(*inputs[name])
                continue
            call = torch.compile(module, dynamic=False) if mode == "compiled" else module
            calls[name], outputs = captured(call, inputs[name])
            calls[name]()
            error = max(error, largest_error(outputs, expected[name]))
        prepared = time.perf_counter() - start
        if not error < TOLERANCE:
            sys.exit(f"error: {model}, {mode}: outputs are {error:.1e} from eager ones")

        def run(gate: int, calls: dict[str, Run] = calls) -> None:
            for step in range(STEPS):
                calls["full" if step < gate else "gated"]()

        rows.append(
            Row(
                model, images, mode,
                milliseconds(calls["full"]), milliseconds(calls["gated"]),
                milliseconds(lambda: run(STEPS), RUN_REPEATS),
                {gate: milliseconds(lambda gate=gate: run(gate), RUN_REPEATS) for gate in GATES},
                error, prepared,
            )
        )  # fmt: skip
        print(line(rows[-1]), flush=True)
    return rows


def line(row: Row) -> str:
    """Return a row of the Markdown table."""
    gains = " | ".join(f"{row.ungated / row.runs[gate]:.2f}x" for gate in GATES)
    return (
        f"| {row.model} | {row.images} | {row.mode} | {row.full:.2f} ms | {row.gated:.2f} ms "
        f"| {row.full / row.gated:.2f} | {gains} |"
    )


def main() -> None:
    """Print a Markdown table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--images", default="1,4", help="batches, with commas between them")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here: this times GPUs")
    gates = " | ".join(f"gate {gate} of {STEPS}" for gate in GATES)
    print(f"| model | images | mode | full | gated | full / gated | {gates} |")
    print("| --- " * (6 + len(GATES)) + "|", flush=True)
    images = [int(part) for part in arguments.images.split(",")]
    todo = [(m, count, ("eager", "cuda graph")) for m in arguments.models for count in images]
    todo += [(model, images[0], ("compiled",)) for model in arguments.models]
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    rows: list[Row] = []
    for model, count, modes in todo:
        rows += measure(model, count, modes)
        torch.cuda.empty_cache()
        if arguments.out:  # what was measured stays if a later one fails
            found = {"machine": machine, "rows": [asdict(row) for row in rows]}
            arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode() if torch.cuda.is_available() else nullcontext():
        main()
