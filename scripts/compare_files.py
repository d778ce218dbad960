"""Compare final latents of every kind of file that people bring with diffusers' own of that file.

Small random checkpoints, LoRA files and embeddings in the layouts of those who publish them
(tests/support), built and run without a gate. diffusers reads the same files itself
(`from_single_file`, `load_lora_weights` and `fuse_lora`, `load_textual_inversion`). Writes
docs/results/files.json and, beside it, the Markdown table that it prints.

Usage: python scripts/compare_files.py [--only TEXT] [--out docs/results/files.json]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import diffusers
from brought_files import KINDS, Brought
from parity_report import versions, write_report

from tests.support import tiny
from tgate_export import TGatePipeline
from tgate_export.build.build import build_bundle
from tgate_export.build.fuse_loras import fuse_loras

STEPS, GUIDANCE, NEGATIVE = 8, 6.0, "a green square"
BOUND = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose title has this text")
    parser.add_argument("--out", type=Path, default=Path("docs/results/files.json"))
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for title, bring in KINDS.items():
            if arguments.only in title:
                rows.append(compare(title, bring, Path(folder) / str(len(rows))))
                print(rows[-1], file=sys.stderr)
    packages = ("diffusers", "peft", "torch", "onnxruntime")
    write_report(arguments.out, packages, STEPS, rows, markdown)
    if worst := [row["title"] for row in rows if not row["relative_error"] < BOUND]:
        raise SystemExit(f"not below {BOUND:g}: {', '.join(worst)}")


def markdown(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a page: what was compared, and a table of it."""
    yield "# What people bring, beside diffusers"
    yield ""
    yield (
        f"Final latents (of other VAEs: images) of small random pipelines of the true"
        f" architectures, {report['steps']} steps without a gate in fp32: the largest error,"
        " relative to the largest value. *Apart* is how far diffusers' result without the files is"
        " from that with them, of what is added to a model: the error of a row that ignored them."
        f" Seconds are of the build, from nothing, with one sampler. {versions(report)}."
    )
    yield ""
    yield "| what | built with | error | apart | seconds |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for row in report["rows"]:
        apart = "" if row["apart"] is None else f"{row['apart']:.1e}"
        yield (
            f"| {row['title']} | `{row['command']}` | {row['relative_error']:.1e} | {apart} | "
            f"{row['seconds']:.0f} |"
        )


def compare(title: str, bring: Callable[[Path], Brought], folder: Path) -> dict[str, Any]:
    """Make a row's files, build and run them, and let diffusers do the same."""
    folder.mkdir()
    brought = bring(folder)
    os.environ["TGATE_EXPORT_CACHE"] = str(folder / "cache")
    started = time.perf_counter()
    with tiny.only_samplers("euler"):
        built = build_bundle(
            str(brought.model), out=folder / "bundle", size=tiny.SIZE, batch=tiny.FIXED,
            **brought.options,
        )  # fmt: skip
    path = built.path
    if brought.fused:
        started = time.perf_counter()
        path = fuse_loras(path, brought.fused, out=folder / "fused").path
    seconds = time.perf_counter() - started
    pipeline = TGatePipeline.from_bundle(path)
    space = pipeline.manifest.latents
    shape = (2, space.channels, 16 // space.downscale, 16 // space.downscale)
    latents = np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
    kind = "np" if brought.of_images else "latent"
    run: dict[str, Any] = {"num_inference_steps": STEPS}
    guided = pipeline.manifest.guidance == "classifier-free"
    if guided:
        run |= {"guidance_scale": GUIDANCE, "negative_prompt": NEGATIVE}
    ours = pipeline(
        [brought.prompt] * 2, latents=latents, scheduler="euler", gate_step=STEPS, output_type=kind,
        **run,
    )  # fmt: skip
    found = np.asarray(ours.images)[:1]

    def theirs(pipe: Any) -> np.ndarray:
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        call: dict[str, Any] = {"guidance_scale": 1.0}
        if pipeline.manifest.guidance == "embedded":
            call["guidance_scale"] = pipeline.manifest.parameters["guidance_scale"].default
        if type(pipe).__name__.startswith("PixArt"):  # which would choose a size of a list
            call["use_resolution_binning"] = False
        images = pipe(
            brought.prompt, latents=torch.from_numpy(latents[:1]), output_type=kind, height=16,
            width=16, **(call | run),
        ).images  # fmt: skip
        return np.asarray(images)

    expected = theirs(brought.oracle())
    return {
        "title": title,
        "command": brought.words,
        "relative_error": _relative(found, expected),
        "apart": _relative(theirs(brought.plain()), expected) if brought.plain else None,
        "seconds": round(seconds, 1),
    }


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
