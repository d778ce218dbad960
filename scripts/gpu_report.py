"""Time every backend that works here on one bundle, compare its images with the CPU's, and report.

    scripts/gpu_report.py engines/shapes --out docs/results/gpu-check.md

The report is Markdown, fit for pasting into an issue. Backends that cannot be used are listed with
the reason. scripts/gpu_check.sh runs this after building the plans.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from statistics import median

import numpy as np

from tgate_export import TGatePipeline
from tgate_export.common.errors import TGateError
from tgate_export.runtime.timings import Timings

REFERENCE = "onnxruntime:cpu"
BACKENDS = (
    REFERENCE,
    "onnxruntime:cuda",
    "onnxruntime:tensorrt",
    "onnxruntime:tensorrt-rtx",
    "tensorrt",
    "tensorrt-rtx",
)
PACKAGES = ("tgate-export", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "numpy")
PROMPT = "a red circle on a blue background"
SEED = 0


@dataclass(frozen=True)
class Row:
    """One backend: what it measured, or why it cannot be used.

    Attributes:
        backend: its name.
        image: an image [H, W, 3] in [0, 1], from a fixed seed.
        timings: of every timed image.
        reason: empty, or why there are none.
    """

    backend: str
    image: np.ndarray | None
    timings: tuple[Timings, ...]
    reason: str


def measure(bundle: Path, backend: str, warmup: int, repeats: int, gating: dict[str, int]) -> Row:
    if backend == REFERENCE:
        warmup, repeats = 0, 1  # it can take minutes, and is here for its image
    try:
        pipeline = TGatePipeline.from_bundle(bundle, backend)
        runs = [
            pipeline(PROMPT, seed=SEED, output_type="np", **gating) for _ in range(warmup + repeats)
        ]
    except TGateError as error:
        return Row(backend, None, (), str(error))
    image = np.asarray(runs[-1].images)[0]
    return Row(backend, image, tuple(run.timings for run in runs[warmup:]), "")


def step_ms(timings: tuple[Timings, ...], phase: str) -> str:
    seconds = [s.denoiser for t in timings for s in t.steps if s.phase == phase]
    return f"{1e3 * median(seconds):.2f}" if seconds else "-"


def table(rows: list[Row]) -> list[str]:
    reference = next((row.image for row in rows if row.backend == REFERENCE), None)
    lines = [
        "| backend | full step, ms | gated step, ms | image, ms | difference from the CPU |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row.image is None:
            continue
        difference = "-" if reference is None else f"{np.abs(row.image - reference).max():.1e}"
        image = 1e3 * median(timing.total for timing in row.timings)
        lines.append(
            f"| {row.backend} | {step_ms(row.timings, 'full')} | "
            f"{step_ms(row.timings, 'gated')} | {image:.1f} | {difference} |"
        )
    refused = [f"* {row.backend}: {row.reason}" for row in rows if row.reason]
    return lines + (["", "Cannot be used here:", "", *refused] if refused else [])


def machine() -> list[str]:
    found = []
    if shutil.which("nvidia-smi"):
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        found.append(subprocess.run(query, capture_output=True, text=True).stdout.strip())
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    gpu = found[0] if found else "none"
    return [
        f"* GPU: {gpu}",
        f"* {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        f"* {', '.join(versions)}",
    ]


def report(bundle: Path, warmup: int, repeats: int, gating: dict[str, int]) -> str:
    rows = [measure(bundle, backend, warmup, repeats, gating) for backend in BACKENDS]
    title = f"# {bundle.name}, {date.today().isoformat()}"
    asked = ", ".join(f"{name} {value}" for name, value in gating.items())
    asked = asked or "the bundle's own gating"
    about = (
        f"Medians of {repeats} images after {warmup} for warming up, but one image on the CPU; "
        f"{asked}."
    )
    return "\n".join([title, "", *machine(), "", about, "", *table(rows), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, help="Markdown file; stdout when not given")
    parser.add_argument("--steps", type=int, dest="num_inference_steps")
    parser.add_argument("--gate-step", type=int, dest="gate_step")
    arguments = parser.parse_args()
    gating = {
        name: value
        for name in ("num_inference_steps", "gate_step")
        if (value := getattr(arguments, name)) is not None
    }
    text = report(arguments.bundle, arguments.warmup, arguments.repeats, gating)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")
        print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
