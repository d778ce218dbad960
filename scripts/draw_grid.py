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

PROMPTS = (
    "a red circle on a blue background",
    "a yellow cross on a magenta background",
    "a green square on a white background",
    "a cyan triangle on a black background",
    "a blue circle on a yellow background",
    "a white triangle on a green background",
)
STEPS = 25
GATE_STEPS = (25, 10, 5, 3, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/demo.png"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pipeline = TGatePipeline.from_bundle(arguments.bundle)

    images: dict[int, list[np.ndarray]] = {gate: [] for gate in GATE_STEPS}
    seconds: dict[int, list[float]] = {gate: [] for gate in GATE_STEPS}
    pipeline(PROMPTS[0], num_inference_steps=3, gate_step=1)  # load and warm both graphs
    for prompt in track(PROMPTS, "generating", console=Console(stderr=True), transient=True):
        for gate in GATE_STEPS:
            output = pipeline(
                prompt,
                num_inference_steps=STEPS,
                gate_step=gate,
                seed=arguments.seed,
                output_type="np",
            )
            images[gate].append(np.asarray(output.images)[0])
            seconds[gate].append(output.timings.total)

    medians = {gate: float(np.median(seconds[gate])) for gate in GATE_STEPS}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    titles = [
        ("no gate" if gate >= STEPS else f"gate {gate}/{STEPS}", f"{1e3 * medians[gate]:.0f} ms")
        for gate in GATE_STEPS
    ]
    rows = [
        (prompt.replace(" on ", "\non "), [images[gate][row] for gate in GATE_STEPS])
        for row, prompt in enumerate(PROMPTS)
    ]
    picture_grid(titles, rows).save(arguments.out)

    table = Table("gate step", "time per image", "speed-up", "PSNR to no gate")
    baseline = np.stack(images[STEPS])
    for gate in GATE_STEPS:
        error = float(np.mean((np.stack(images[gate]) - baseline) ** 2))
        table.add_row(
            f"{gate} of {STEPS}" if gate < STEPS else "none",
            f"{1e3 * medians[gate]:.0f} ms",
            f"{medians[STEPS] / medians[gate]:.2f}x",
            f"{-10 * np.log10(error):.1f} dB" if error else "same",
        )
    Console().print(table)
    print(f"The picture is {arguments.out.resolve()}")


if __name__ == "__main__":
    main()
