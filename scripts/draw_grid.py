"""Generate prompts by gate step as one labelled picture, and print how long each column took.

Usage: python scripts/draw_grid.py engines/shapes [--out build/demo.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from picture_grid import picture_grid
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tgate_export import TGatePipeline
from tgate_export.bench.rows import BETTER, OFFICIAL, RowSpec, baseline, gated, unofficial

PROMPTS = (
    "a red circle on a blue background",
    "a yellow cross on a magenta background",
    "a green square on a white background",
    "a cyan triangle on a black background",
    "a blue circle on a yellow background",
    "a white triangle on a green background",
)
STEPS = 25
COLUMNS = (
    baseline(STEPS),
    gated(STEPS, 10, **OFFICIAL),
    *(gated(STEPS, gate, **numbers) for gate in (5, 3) for numbers in (OFFICIAL, BETTER)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/demo.png"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pipeline = TGatePipeline.from_bundle(arguments.bundle)

    images: dict[str, list[np.ndarray]] = {column.label: [] for column in COLUMNS}
    seconds: dict[str, list[float]] = {column.label: [] for column in COLUMNS}
    pipeline(PROMPTS[0], num_inference_steps=3, gate_step=1)  # load and warm both graphs
    for prompt in track(PROMPTS, "generating", console=Console(stderr=True), transient=True):
        for column in COLUMNS:
            output = pipeline(prompt, **column.call(), seed=arguments.seed, output_type="np")
            images[column.label].append(np.asarray(output.images)[0])
            seconds[column.label].append(output.timings.total)

    medians = {label: float(np.median(found)) for label, found in seconds.items()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    titles = [(*heading(column), f"{1e3 * medians[column.label]:.0f} ms") for column in COLUMNS]
    rows = [
        (prompt.replace(" on ", "\non "), [images[column.label][row] for column in COLUMNS])
        for row, prompt in enumerate(PROMPTS)
    ]
    picture_grid(titles, rows).save(arguments.out)

    table = Table("gate step", "what it keeps", "time per image", "speed-up", "PSNR to no gate")
    plain = COLUMNS[0].label
    baseline_images = np.stack(images[plain])
    for column in COLUMNS:
        found, median = np.stack(images[column.label]), medians[column.label]
        error = float(np.mean((found - baseline_images) ** 2))
        table.add_row(
            *heading(column), f"{1e3 * median:.0f} ms", f"{medians[plain] / median:.2f}x",
            f"{-10 * np.log10(error):.1f} dB" if error else "same",
        )  # fmt: skip
    Console().print(table)
    print(f"The picture is {arguments.out.resolve()}")


def heading(column: RowSpec) -> tuple[str, str]:
    """Return a column's gate, and what it keeps of guidance."""
    gate = column.parameters.get("gate_step")
    if gate is None:
        return "no gate", ""
    return f"gate {gate} of {STEPS}", unofficial(column.parameters) or "official"


if __name__ == "__main__":
    main()
