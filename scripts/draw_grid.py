"""Draw prompts by gate step as one labelled picture, and print how long each column took.

Usage: python scripts/draw_grid.py engines/shapes [--out build/demo.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
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
CELL, LABEL, HEADER = 128, 290, 60


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
    for prompt in track(PROMPTS, "drawing", console=Console(stderr=True), transient=True):
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
    draw(images, medians).save(arguments.out)

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


def draw(images: dict[int, list[np.ndarray]], medians: dict[int, float]) -> Image.Image:
    """Lay out one row a prompt and one column a gate step, with labels."""
    width = LABEL + (CELL + 8) * len(GATE_STEPS)
    height = HEADER + (CELL + 8) * len(PROMPTS)
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(15)
    for column, gate in enumerate(GATE_STEPS):
        x = LABEL + column * (CELL + 8)
        title = "no gate" if gate >= STEPS else f"gate {gate}/{STEPS}"
        pen.text((x + 2, 10), title, "black", font)
        pen.text((x + 2, 32), f"{1e3 * medians[gate]:.0f} ms", "gray", font)
        for row, image in enumerate(images[gate]):
            tile = Image.fromarray((image * 255).round().astype(np.uint8))
            position = (x, HEADER + row * (CELL + 8))
            canvas.paste(tile.resize((CELL, CELL), Image.Resampling.LANCZOS), position)
    for row, prompt in enumerate(PROMPTS):
        text = prompt.replace(" on ", "\non ")
        pen.text((8, HEADER + row * (CELL + 8) + CELL // 2 - 18), text, "black", font)
    return canvas


if __name__ == "__main__":
    main()
