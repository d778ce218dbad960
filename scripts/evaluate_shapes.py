#!/usr/bin/env python
"""Measure how well the demo pipeline `shapes` shows what its prompts say, with and without gating.

Gating is that of the official `tgate` package, run on the PyTorch pipeline with DDIM; an
independent checker names what the pictures show. Exits with 1 where a bar is missed.
"""

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from tgate import TgateSDLoader

from tgate_export.bench.adherence import Adherence, breakdown
from tgate_export.data import SHAPES_DIR
from tgate_export.data.shapes_world import Scene, random_scene, render

STEPS = 25
DEFAULT_GUIDANCE_SCALE = 5.0
BARS = {"ground truth": 0.99, "no gating": 0.95, "gate step 10": 0.90}
"""Least adherence, by row of the table."""


def load(directory: Path) -> StableDiffusionPipeline:
    """The pipeline in float32, with DDIM, and with the `tgate` method of the official package."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        directory, safety_checker=None, torch_dtype=torch.float32
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return TgateSDLoader(pipeline)


def generate(
    pipeline: StableDiffusionPipeline,
    captions: list[str],
    gate_step: int,
    guidance_scale: float,
    seed: int,
    batch: int = 64,
) -> NDArray[np.uint8]:
    """One picture a caption, `[N, 64, 64, 3]`; caption `i` starts from seed `seed + i`."""
    config = pipeline.unet.config
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    noise = torch.cat(
        [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed + index))
            for index in range(len(captions))
        ]
    )
    pictures: list[NDArray[np.float32]] = [
        pipeline.tgate(
            prompt=captions[start : start + batch],
            latents=noise[start : start + batch],
            num_inference_steps=STEPS,
            guidance_scale=guidance_scale,
            gate_step=gate_step,
            # Self-attention is computed in every step: only cross-attention is gated here.
            sp_interval=1,
            fi_interval=1,
            warm_up=0,
            output_type="np",
        ).images
        for start in range(0, len(captions), batch)
    ]
    return np.rint(np.concatenate(pictures) * 255.0).astype(np.uint8)


def random_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes whose captions are the prompts and whose renderings are the ground truth."""
    rng = np.random.default_rng(seed)
    return [random_scene(rng) for _ in range(count)]


def save_grid(pictures: NDArray[np.uint8], path: Path, columns: int = 16) -> None:
    """Write the first pictures, side by side, as one PNG."""
    rows = [
        np.concatenate(list(pictures[start : start + columns]), axis=1)
        for start in range(0, len(pictures) - columns + 1, columns)
    ]
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?", default=SHAPES_DIR)
    parser.add_argument("--pairs", type=int, default=256, help="prompt and seed pairs")
    parser.add_argument("--gates", type=int, nargs="+", default=[STEPS, 10, 5, 3, 1])
    parser.add_argument(
        "--guidance-scales", type=float, nargs="+", default=[DEFAULT_GUIDANCE_SCALE]
    )
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    parser.add_argument("--grid", type=Path, help="write pictures of each row to PREFIX-ROW.png")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(args.threads)

    scenes = random_scenes(args.pairs, args.seed)
    captions = [scene.caption for scene in scenes]
    truth = [render(scene) for scene in scenes]
    rows: list[tuple[str, float | None, Adherence]] = [
        ("ground truth", None, breakdown(truth, captions)),
        ("shuffled captions", None, breakdown(truth, captions[1:] + captions[:1])),
    ]
    pipeline = load(args.directory)
    for guidance_scale in args.guidance_scales:
        for gate in args.gates:
            name = "no gating" if gate >= STEPS else f"gate step {gate}"
            pictures = generate(pipeline, captions, gate, guidance_scale, args.seed)
            rows.append((name, guidance_scale, breakdown(pictures, captions)))
            if args.grid:
                label = f"{name.replace(' ', '-')}-{guidance_scale:g}"
                save_grid(pictures[:96], args.grid.with_name(f"{args.grid.name}-{label}.png"))

    table = Table(title=f"{args.pairs} pairs, DDIM, {STEPS} steps: {args.directory.name}")
    for column in ("row", "guidance", "adherence", "shape", "colour", "background", "bar"):
        table.add_column(column, justify="left" if column == "row" else "right")
    missed = False
    for name, scale, result in rows:
        bar = BARS.get(name)
        missed |= bar is not None and result.overall < bar
        table.add_row(
            name,
            "" if scale is None else f"{scale:g}",
            *(f"{share:.1%}" for share in asdict(result).values()),
            "" if bar is None else f"{bar:.0%} {'met' if result.overall >= bar else 'MISSED'}",
        )
    Console().print(table)
    if args.json:
        lines = [
            {"row": name, "guidance_scale": scale, "bar": BARS.get(name), **asdict(result)}
            for name, scale, result in rows
        ]
        args.json.write_text(json.dumps({"pairs": args.pairs, "steps": STEPS, "rows": lines}))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
