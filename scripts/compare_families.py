"""Compare final latents of every family and gating with the official package and diffusers.

Small random pipelines of the true architectures, in fp32. Writes docs/results/families.json and
prints a Markdown table.

Usage: python scripts/compare_families.py [FAMILY ...] [--out docs/results/families.json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.oracle import hooked_diffusers
from tests.oracle.families import diffusers_run, diffusers_video, official_latents, official_video
from tests.support import tiny
from tgate_export import TGatePipeline
from tgate_export.families.tiny import TinyPipeline
from tgate_export.runtime.noise import IMAGE_NOISE, standard_normal

STEPS, SIDE, PROMPT, NEGATIVE, GUIDANCE, SEED = 8, 16, "a red circle", "a green square", 6.0, 3
GATES = (1, 4, STEPS - 1)
# (gate step, sp_interval, fi_interval, warm_up)
GATINGS = (*((gate, 1, 1, 0) for gate in GATES), (5, 3, 1, 1), (4, 2, 2, 1))
FAMILIES = {kind.title: kind for kind in tiny.PIPELINES.values()}
BOUND = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", choices=[*FAMILIES, []])
    parser.add_argument("--out", type=Path, default=Path("docs/results/families.json"))
    arguments = parser.parse_args()
    wanted = arguments.families or list(FAMILIES)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, family in enumerate(wanted):
            print(f"{family} ...", file=sys.stderr)
            for row in compare(FAMILIES[family], Path(folder) / str(number)):
                print(f"  {row}", file=sys.stderr)
                rows.append(row)
    packages = ("tgate", "diffusers", "torch", "onnxruntime")
    report = {
        "date": date.today().isoformat(),
        "versions": {name: metadata.version(name) for name in packages},
        "steps": STEPS,
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("| family | gate step | sp, fi, warm-up | against | largest relative error |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        gate = "none" if row["gate_step"] >= STEPS else f"{row['gate_step']} of {STEPS}"
        intervals = f"{row['sp_interval']}, {row['fi_interval']}, {row['warm_up']}"
        cells = (row["family"], gate, intervals, row["against"], f"{row['relative_error']:.1e}")
        print(f"| {' | '.join(cells)} |")
    if worst := [row for row in rows if not row["relative_error"] < BOUND]:
        raise SystemExit(f"{len(worst)} rows are not below {BOUND:g}")


def compare(kind: TinyPipeline, folder: Path) -> Iterator[dict[str, Any]]:
    """Build a small pipeline, and measure every gating."""
    kind.save(folder)
    # One pass a step, which the official package's loader of Stable Diffusion cannot run.
    single = kind.guidance != "classifier-free"
    out = folder.with_name(f"{folder.name}-bundle")
    reuse = {} if single else {"sp_interval": 2, "fi_interval": 2}
    bundle = tiny.build(kind.name, folder, out, batch=tiny.FIXED, **reuse)
    pipeline = TGatePipeline.from_bundle(bundle.path)
    run = _single_pass if single else _video if kind.video else _guided
    gatings = [row for row in GATINGS if not single or row[1:] == (1, 1, 0)]
    for gate, *intervals in ((STEPS, 1, 1, 0), *gatings):
        settings = dict(zip(("sp_interval", "fi_interval", "warm_up"), intervals, strict=True))
        found, expected, against = run(pipeline, folder, {"gate_step": gate, **settings})
        yield {
            "family": kind.title, "gate_step": gate, **settings, "against": against,
            "relative_error": float(np.abs(found - expected).max() / np.abs(expected).max()),
        }  # fmt: skip


def _latents(pipeline: TGatePipeline) -> np.ndarray:
    space, (batch, side) = pipeline.manifest.latents, (2, SIDE // 2)
    shape = (batch, space.channels, side, side)
    if space.frames is not None:
        shape = (batch, space.frames, space.channels // space.frames, side, side)  # type: ignore[assignment]
    return np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)


def _guided(pipeline: TGatePipeline, folder: Path, gating: dict[str, int]) -> Any:
    latents = _latents(pipeline)
    run = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "negative_prompt": NEGATIVE}
    ours = pipeline([PROMPT] * 2, latents=latents, scheduler="euler", output_type="latent",
                    **run, **gating)  # fmt: skip
    oracle = {"latents": latents[:1], "scheduler": "euler", "prompt": PROMPT, **run}
    found = np.asarray(ours.images)[:1]
    if gating["gate_step"] >= STEPS:
        return found, diffusers_run(folder, output_type="latent", **oracle), "diffusers"
    return found, official_latents(folder, **oracle, **gating), "tgate"


def _video(pipeline: TGatePipeline, folder: Path, gating: dict[str, int]) -> Any:
    latents = _latents(pipeline)
    image = np.random.default_rng(SEED).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    run = {"num_inference_steps": STEPS, "min_guidance_scale": 1.5, "output_type": "latent"}
    ours = pipeline(image=[Image.fromarray(image)] * 2, latents=latents, seed=SEED,
                    guidance_scale=GUIDANCE, **run, **gating)  # fmt: skip
    noise = standard_normal((3, SIDE, SIDE), SEED, 0, IMAGE_NOISE)[None]
    oracle = {"image": image, "noise": noise, "latents": latents[:1], **run}
    oracle["max_guidance_scale"] = GUIDANCE
    found = np.asarray(ours.images)[:1]
    if gating["gate_step"] >= STEPS:
        return found, np.asarray(diffusers_video(folder, **oracle)), "diffusers"
    return found, official_video(folder, **oracle, **gating), "tgate"


def _single_pass(pipeline: TGatePipeline, folder: Path, gating: dict[str, int]) -> Any:
    latents = _latents(pipeline)
    embedded = pipeline.manifest.guidance == "embedded"
    run = {"num_inference_steps": STEPS, "latents": latents}
    scale = {"guidance_scale": 8.5} if embedded else {}
    ours = pipeline([PROMPT] * 2, scheduler="ddim", output_type="latent", **run, **scale, **gating)
    expected = hooked_diffusers.gated_latents(
        hooked_diffusers.load(folder), prompt=[PROMPT] * 2, gate_step=gating["gate_step"],
        **run, **({"guidance_scale": 1.0} | scale),
    )  # fmt: skip
    return np.asarray(ours.images), expected, "diffusers with hooks"


if __name__ == "__main__":
    main()
