#!/usr/bin/env python
"""Measure how well the demo pipeline `shapes` shows what its prompts say, with and without gating.

Gating is that of the official `tgate` package, run on the PyTorch pipeline with DDIM; gates that
keep more of guidance are hooks on diffusers' pipeline (tests/oracle/plain_gates.py). An independent
checker names what the pictures show. Exits with 1 where a bar is missed.
"""

import argparse
import json
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from tgate import TgateSDLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.oracle import plain_gates
from tgate_export.bench.adherence import Adherence, breakdown
from tgate_export.bench.rows import BETTER, OFFICIAL
from tgate_export.data import SHAPES_DIR
from tgate_export.data.shapes_world import Scene, random_scene, render

STEPS = 25
DEFAULT_GUIDANCE_SCALE = 5.0
BARS = {"ground truth": 0.99, "no gating": 0.95, "gate step 10": 0.90}
"""Least adherence, by row of the table."""


@dataclass(frozen=True)
class Gate:
    """How pictures are generated.

    Attributes:
        step: the gate step; `STEPS` for no gate.
        blend: `cache_blend`.
        carry: `guidance_carry`.
    """

    step: int
    blend: float = OFFICIAL["cache_blend"]
    carry: float = OFFICIAL["guidance_carry"]

    @property
    def official(self) -> bool:
        """Whether the official package can do it."""
        return self == Gate(self.step)

    @property
    def name(self) -> str:
        """Return the row's name."""
        if self.step >= STEPS:
            return "no gating"
        numbers = "" if self.official else f", blend {self.blend:g}, carry {self.carry:g}"
        return f"gate step {self.step}{numbers}"


@dataclass(frozen=True)
class Pipelines:
    """The same pipeline twice, in float32, with DDIM.

    Attributes:
        official: patched by the official package.
        plain: diffusers' own.
    """

    official: TgateSDLoader
    plain: StableDiffusionPipeline

    def run(self, gate: Gate, *, guidance_scale: float, **call: Any) -> Any:
        """Call the one that can do it; cross-attention alone is gated."""
        if gate.official:
            return self.official.tgate(
                gate_step=gate.step, sp_interval=1, fi_interval=1, warm_up=0,
                guidance_scale=guidance_scale, **call,
            )  # fmt: skip
        settings = {"scale": guidance_scale, "blend": gate.blend, "carry": gate.carry}
        with plain_gates.gated(self.plain, gate_step=gate.step, **settings):
            return self.plain(guidance_scale=guidance_scale, **call)


def load(directory: Path) -> Pipelines:
    """Load both."""
    found = []
    for _ in range(2):
        pipeline = StableDiffusionPipeline.from_pretrained(
            directory, safety_checker=None, torch_dtype=torch.float32
        )
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        found.append(pipeline)
    return Pipelines(TgateSDLoader(found[0]), found[1])


def generate(
    pipelines: Pipelines,
    captions: list[str],
    gate: Gate,
    guidance_scale: float,
    seed: int,
    batch: int = 64,
) -> NDArray[np.uint8]:
    """One picture a caption, `[N, 64, 64, 3]`; caption `i` starts from seed `seed + i`."""
    config = pipelines.plain.unet.config
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    noise = torch.cat(
        [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed + index))
            for index in range(len(captions))
        ]
    )
    pictures: list[NDArray[np.float32]] = [
        pipelines.run(
            gate,
            prompt=captions[start : start + batch],
            latents=noise[start : start + batch],
            num_inference_steps=STEPS,
            guidance_scale=guidance_scale,
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
        "--numbers", type=float, nargs=2, action="append", metavar=("BLEND", "CARRY"),
        help="what gates keep of guidance, beside the official 0.5 0; default: "
        + " ".join(f"{value:g}" for value in BETTER.values()),
    )  # fmt: skip
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
    pipelines = load(args.directory)
    numbers = [OFFICIAL.values(), *(args.numbers or [BETTER.values()])]
    gates = dict.fromkeys(
        Gate(step, *each) if step < STEPS else Gate(step) for step in args.gates for each in numbers
    )
    for guidance_scale in args.guidance_scales:
        for gate in gates:
            pictures = generate(pipelines, captions, gate, guidance_scale, args.seed)
            rows.append((gate.name, guidance_scale, breakdown(pictures, captions)))
            if args.grid:
                label = f"{gate.name.replace(', ', '-').replace(' ', '-')}-{guidance_scale:g}"
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
        report = {"pairs": args.pairs, "steps": STEPS, "rows": lines}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
