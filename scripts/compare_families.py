"""Compare final latents of every family and gating with the official package and diffusers.

Small random pipelines of the true architectures, in fp32. Gates that keep more of guidance than the
official ones are compared with diffusers and hooks (tests/oracle/plain_gates.py). Writes
docs/results/families.json and, beside it, the Markdown table that it prints.

Usage: python scripts/compare_families.py [FAMILY ...] [--out docs/results/families.json]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_report import versions, write_report
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.oracle import hooked_diffusers
from tests.oracle.families import (
    as_diffusers,
    diffusers_embeds,
    diffusers_run,
    diffusers_video,
    gated_run,
    official_latents,
    official_video,
)
from tests.support import tiny
from tgate_export import TGatePipeline
from tgate_export.families.tiny import TinyPipeline
from tgate_export.runtime.noise import IMAGE_NOISE, standard_normal

STEPS, SIDE, PROMPT, NEGATIVE, GUIDANCE, SEED = 8, 16, "a red circle", "a green square", 6.0, 3
FIRST_GUIDANCE = 1.5  # of a video's first frame; the last has all of it
GATES = (1, 4, STEPS - 1)
# (gate step, sp_interval, fi_interval, warm_up)
GATINGS = (*((gate, 1, 1, 0) for gate in GATES), (5, 3, 1, 1), (4, 2, 2, 1))
# What gates keep of guidance: `cache_blend` and `guidance_carry`.
OFFICIAL = {"cache_blend": 0.5, "guidance_carry": 0.0}
OTHERS = [
    {"cache_blend": blend, "guidance_carry": carry} for blend, carry in ((1.0, 0.25), (0.75, 1.0))
]
# The gatings that are compared with those, too: attention between texts and images alone, or all.
OF_OTHERS = ((4, 1, 1, 0), (4, 2, 2, 1))
FAMILIES = {kind.title: kind for kind in tiny.PIPELINES.values() if not kind.refiner}
BOUND = 1e-5


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
    write_report(arguments.out, packages, STEPS, rows, markdown)
    if worst := [row for row in rows if not row["relative_error"] < BOUND]:
        raise SystemExit(f"{len(worst)} rows are not below {BOUND:g}")


def markdown(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a page: what was compared, and a table of it."""
    yield "# Every family beside the official package and diffusers"
    yield ""
    yield (
        f"Final latents of small random pipelines of the true architectures, in fp32, {STEPS} steps"
        f" of Euler at guidance {GUIDANCE:g} (of one pass a step: DDIM): the largest error,"
        f" relative to the largest latent. {versions(report)}."
    )
    yield ""
    yield (
        "`blend, carry` are [what gates keep of guidance](../methods.md#what-is-kept-of-guidance):"
        " 0.5, 0 is the official method. Other numbers are compared with diffusers, whose attention"
        " is hooked; *apart* is how far latents of the official numbers are from those, the error"
        " of a row that ignored its numbers."
    )
    yield ""
    yield "| family | gate step | sp, fi, warm-up | blend, carry | against | error | apart |"
    yield "| --- | --- | --- | --- | --- | ---: | ---: |"
    for row in report["rows"]:
        gate = "none" if row["gate_step"] >= STEPS else f"{row['gate_step']} of {STEPS}"
        intervals = f"{row['sp_interval']}, {row['fi_interval']}, {row['warm_up']}"
        numbers = [f"{row[name]:g}" for name in OFFICIAL if name in row]
        apart = f"{row['official_apart']:.1e}" if "official_apart" in row else ""
        cells = (
            row["family"], gate, intervals, ", ".join(numbers), row["against"],
            f"{row['relative_error']:.1e}", apart,
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


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
    for gating in ((STEPS, 1, 1, 0), *gatings):
        # Numbers of guidance's two passes, which not every model has.
        settings = _settings(gating) | ({} if single or gating[0] >= STEPS else OFFICIAL)
        found, expected, against = run(pipeline, folder, settings)
        error = _relative(found, expected)
        yield {"family": kind.title, **settings, "against": against, "relative_error": error}
    if single:
        return
    beside = _video_with_hooks if kind.video else _guided_with_hooks
    for gating in OF_OTHERS:
        for numbers in OTHERS:
            settings = _settings(gating) | numbers
            found, expected, official = beside(pipeline, folder, settings)
            yield {
                "family": kind.title, **settings, "against": "diffusers with hooks",
                "relative_error": _relative(found, expected),
                "official_apart": _relative(official, expected),
            }  # fmt: skip


def _settings(gating: tuple[int, int, int, int]) -> dict[str, Any]:
    names = ("gate_step", "sp_interval", "fi_interval", "warm_up")
    return dict(zip(names, gating, strict=True))


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _gates(settings: dict[str, Any], scale: Any) -> dict[str, Any]:
    """Return what the oracle takes for a run's settings."""
    short = {"cache_blend": "blend", "guidance_carry": "carry"}
    return {short.get(name, name): value for name, value in settings.items()} | {"scale": scale}


def _latents(pipeline: TGatePipeline) -> np.ndarray:
    space, (batch, side) = pipeline.manifest.latents, (2, SIDE // 2)
    shape = (batch, space.channels, side, side)
    if space.frames is not None:
        shape = (batch, space.frames, space.channels // space.frames, side, side)  # type: ignore[assignment]
    return np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)


def _guided(pipeline: TGatePipeline, folder: Path, settings: dict[str, Any]) -> Any:
    latents = _latents(pipeline)
    run = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "negative_prompt": NEGATIVE}
    ours = pipeline([PROMPT] * 2, latents=latents, scheduler="euler", output_type="latent",
                    **run, **settings)  # fmt: skip
    oracle = {"latents": latents[:1], "scheduler": "euler", "prompt": PROMPT, **run}
    found = np.asarray(ours.images)[:1]
    if settings["gate_step"] >= STEPS:
        return found, diffusers_run(folder, output_type="latent", **oracle), "diffusers"
    return found, official_latents(folder, **oracle, **_without_numbers(settings)), "tgate"


def _without_numbers(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in OFFICIAL}


def _guided_with_hooks(
    pipeline: TGatePipeline, folder: Path, settings: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return our latents, the oracle's, and the oracle's of the official numbers."""
    latents = _latents(pipeline)
    embeds, negatives = diffusers_embeds(folder, (PROMPT,) * 2, NEGATIVE)
    # Two texts' embeddings are alike with random weights: the numbers would not matter.
    shape = embeds["prompt_embeds"].shape
    embeds["prompt_embeds"] = np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)
    run = {
        "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "scheduler": "euler",
        "output_type": "latent",
    }  # fmt: skip
    ours = pipeline(prompt_embeds=embeds, negative_prompt_embeds=negatives, latents=latents,
                    **run, **settings)  # fmt: skip
    expected, official = (
        gated_run(
            diffusers_run, folder, _gates(each, GUIDANCE), latents=latents[:1], **run,
            **as_diffusers(embeds, negatives, 0),
        )
        for each in (settings, settings | OFFICIAL)
    )  # fmt: skip
    return np.asarray(ours.images)[:1], expected, official


def _video(pipeline: TGatePipeline, folder: Path, settings: dict[str, Any]) -> Any:
    found, oracle = _video_of_ours(pipeline, settings)
    if settings["gate_step"] >= STEPS:
        return found, np.asarray(diffusers_video(folder, **oracle)), "diffusers"
    return found, official_video(folder, **oracle, **_without_numbers(settings)), "tgate"


def _video_with_hooks(
    pipeline: TGatePipeline, folder: Path, settings: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return our latents, the oracle's, and the oracle's of the official numbers."""
    found, oracle = _video_of_ours(pipeline, settings)
    scale = torch.linspace(FIRST_GUIDANCE, GUIDANCE, found.shape[1]).reshape(1, -1, 1, 1, 1)
    expected, official = (
        # The pictures' half of the batch: the other one has zeros in place of the image.
        gated_run(diffusers_video, folder, _gates(each, scale) | {"half": 1}, **oracle)
        for each in (settings, settings | OFFICIAL)
    )
    return found, expected, official


def _video_of_ours(
    pipeline: TGatePipeline, settings: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return our latents of a video, and what diffusers is asked for the same one."""
    latents = _latents(pipeline)
    image = np.random.default_rng(SEED).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    run = {
        "num_inference_steps": STEPS, "min_guidance_scale": FIRST_GUIDANCE, "output_type": "latent",
    }  # fmt: skip
    ours = pipeline(image=[Image.fromarray(image)] * 2, latents=latents, seed=SEED,
                    guidance_scale=GUIDANCE, **run, **settings)  # fmt: skip
    noise = standard_normal((3, SIDE, SIDE), SEED, 0, IMAGE_NOISE)[None]
    oracle = {"image": image, "noise": noise, "latents": latents[:1], **run}
    oracle["max_guidance_scale"] = GUIDANCE
    return np.asarray(ours.images)[:1], oracle


def _single_pass(pipeline: TGatePipeline, folder: Path, settings: dict[str, Any]) -> Any:
    latents = _latents(pipeline)
    embedded = pipeline.manifest.guidance == "embedded"
    run = {"num_inference_steps": STEPS, "latents": latents}
    scale = {"guidance_scale": 8.5} if embedded else {}
    ours = pipeline(
        [PROMPT] * 2, scheduler="ddim", output_type="latent", **run, **scale, **settings
    )
    expected = hooked_diffusers.gated_latents(
        hooked_diffusers.load(folder), prompt=[PROMPT] * 2, gate_step=settings["gate_step"],
        **run, **({"guidance_scale": 1.0} | scale),
    )  # fmt: skip
    return np.asarray(ours.images), expected, "diffusers with hooks"


if __name__ == "__main__":
    main()
