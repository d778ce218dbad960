#!/usr/bin/env python
"""Measure better gates on `shapes`: blends of the cache and shares of guidance carried over.

Every row generates the same prompts from the same seeds. An independent checker says whether a
picture shows its prompt; the ungated picture of the same seed says how far it is from that. Results
are kept after every eight prompts, and a run that is started again goes on where it was.

The rule, stated before anything was measured: a setting's score is its lowest adherence over all
samplers and guidance scales, at the gates that the choice is for. Of the settings whose scores are
within one standard error of the best, that with the highest mean over those rows of the median
PSNR is chosen.
usage: scripts/evaluate_gates.py BUNDLE RESULTS.json [--pairs 256] [--markdown FILE] ...
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from tgate_export import TGatePipeline
from tgate_export.bench.adherence import adherence
from tgate_export.bench.machine import machine
from tgate_export.bench.similarity import as_bytes, psnr
from tgate_export.data.shapes_world import random_scene
from tgate_export.runtime import BackendOptions

STEPS, TOGETHER = 25, 8


@dataclass(frozen=True)
class Row:
    """One way to generate; without a gate it is of fewer steps, or the reference."""

    scheduler: str
    guidance_scale: float
    gate_step: int | None = None
    cache_blend: float = 0.5
    guidance_carry: float = 0.0
    steps: int = STEPS

    @property
    def setting(self) -> tuple[float, float]:
        """What is chosen."""
        return self.cache_blend, self.guidance_carry

    @property
    def key(self) -> str:
        """Return its name in the results."""
        way = (
            f"steps {self.steps}"
            if self.gate_step is None
            else f"gate {self.gate_step} blend {self.cache_blend:g} carry {self.guidance_carry:g}"
        )
        return f"{self.scheduler} guidance {self.guidance_scale:g} {way}"

    def call(self) -> dict[str, Any]:
        """Return the arguments of the pipeline."""
        gate = {
            "gate_step": self.gate_step, "cache_blend": self.cache_blend,
            "guidance_carry": self.guidance_carry,
        }  # fmt: skip
        return {
            "scheduler": self.scheduler, "guidance_scale": self.guidance_scale,
            "num_inference_steps": self.steps,
            **(gate if self.gate_step is not None else {"gate_step": self.steps}),
        }  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A row's pictures: whether each shows its prompt, and its PSNR to the ungated one."""

    shown: list[int]
    psnr_db: list[float]

    @property
    def adherence(self) -> float:
        """Share of pictures that show their prompts."""
        return sum(self.shown) / len(self.shown)

    @property
    def psnr(self) -> float:
        """Return the median."""
        return statistics.median(self.psnr_db)


Results = dict[str, Measured]


def ungated(row: Row) -> Row:
    """Return what a row is compared with."""
    return Row(row.scheduler, row.guidance_scale)


def measure(
    workers: ProcessPoolExecutor,
    rows: Sequence[Row],
    pairs: int,
    seed: int,
    results: Results,
    path: Path,
) -> None:
    """Measure what the results lack of the rows, and write them after every few prompts."""
    rng = np.random.default_rng(seed)
    captions = [random_scene(rng).caption for _ in range(pairs)]
    for row in rows:
        results.setdefault(row.key, Measured([], []))
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("pictures", total=len(rows) * pairs)
        for first in range(0, pairs, TOGETHER):
            part = captions[first : first + TOGETHER]
            lacking = [row for row in rows if len(results[row.key].shown) <= first]
            progress.advance(task, (len(rows) - len(lacking)) * len(part))
            columns = [
                [row for row in lacking if ungated(row) == base]
                for base in dict.fromkeys(map(ungated, lacking))
            ]
            work = [workers.submit(measure_column, each, part, seed + first) for each in columns]
            for column, future in zip(columns, work, strict=True):
                for row, found in zip(column, future.result(), strict=True):
                    results[row.key].shown.extend(found.shown)
                    results[row.key].psnr_db.extend(found.psnr_db)
                progress.advance(task, len(column) * len(part))
            if work:
                write(path, seed, results)


pipeline: TGatePipeline  # of a worker


def begin(bundle: Path, backend: str, threads: int) -> None:
    """Load a worker's pipeline: small graphs gain more from a process a core than from threads."""
    global pipeline
    options = BackendOptions(threads=threads)
    pipeline = TGatePipeline.from_bundle(bundle, backend, options=options)


def measure_column(rows: Sequence[Row], prompts: Sequence[str], seed: int) -> list[Measured]:
    """Measure rows of one sampler and guidance scale on some prompts; in a worker."""
    base = ungated(rows[0])
    reference = draw(base, prompts, seed)
    found = []
    for row in rows:
        pictures = reference if row == base else draw(row, prompts, seed)
        found.append(
            Measured(
                [round(adherence([p], [text])) for p, text in zip(pictures, prompts, strict=True)],
                [round(psnr(r, p), 2) for r, p in zip(reference, pictures, strict=True)],
            )
        )
    return found


def draw(row: Row, prompts: Sequence[str], seed: int) -> np.ndarray:
    """Return a row's pictures, 8 bits [N, H, W, 3], of seeds from `seed` on."""
    found = pipeline(list(prompts), seed=seed, output_type="np", **row.call())
    return as_bytes(np.asarray(found.images))


def read(path: Path, seed: int) -> Results:
    """Return what was measured with a seed so far."""
    if not path.exists():
        return {}
    kept = json.loads(path.read_text())
    if kept["seed"] != seed:
        raise SystemExit(f"{path} is of seed {kept['seed']}, not {seed}: name another file")
    return {
        key: Measured([int(each) for each in row["shown"]], row["psnr_db"])
        for key, row in kept["rows"].items()
    }


def write(path: Path, seed: int, results: Results) -> None:
    """Keep what was measured."""
    rows = {
        key: {"shown": "".join(map(str, row.shown)), "psnr_db": row.psnr_db}
        for key, row in results.items()
    }
    kept = {"seed": seed, "steps": STEPS, "machine": machine().model_dump(), "rows": rows}
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(kept).replace('}, "', '},\n"') + "\n")
    partial.replace(path)


def choose(
    results: Results, rows: Sequence[Row], gates: Sequence[int]
) -> tuple[tuple[float, float], str]:
    """Return the blend and the carry that the rule picks, and why."""
    by_setting: dict[tuple[float, float], list[Measured]] = {}
    for row in rows:
        if row.gate_step in gates:
            by_setting.setdefault(row.setting, []).append(results[row.key])
    scores = {each: min(r.adherence for r in found) for each, found in by_setting.items()}
    best = max(scores.values())
    pictures = min(len(r.shown) for found in by_setting.values() for r in found)
    error = math.sqrt(best * (1 - best) / pictures)
    tied = [each for each, score in scores.items() if score >= best - error]
    mean_psnr = {each: statistics.mean(r.psnr for r in by_setting[each]) for each in tied}
    chosen = max(tied, key=mean_psnr.__getitem__)
    return chosen, (
        f"lowest adherence {scores[chosen]:.1%}, the best is {best:.1%} with a standard error of "
        f"{error:.1%}; of {len(tied)} settings within it, its median PSNR is highest, "
        f"{mean_psnr[chosen]:.2f} dB"
    )


def table(results: Results, rows: Sequence[Row]) -> Iterator[str]:
    """Yield a Markdown table: a line a gate and setting, a column a sampler and guidance scale."""
    columns = sorted({(row.scheduler, row.guidance_scale) for row in rows})
    names = [f"{scheduler}, {scale:g}" for scheduler, scale in columns]
    yield f"| way | {' | '.join(names)} | lowest | PSNR |"
    yield "| --- |" + " ---: |" * (len(columns) + 2)
    ways = dict.fromkeys((row.gate_step, row.steps, *row.setting) for row in rows)
    for gate, steps, blend, carry in ways:
        found = [
            results[Row(scheduler, scale, gate, blend, carry, steps).key]
            for scheduler, scale in columns
        ]
        name = (
            f"{steps} steps" if gate is None else f"gate {gate}, blend {blend:g}, carry {carry:g}"
        )
        shares = " | ".join(f"{each.adherence:.1%}" for each in found)
        mean = statistics.mean(each.psnr for each in found)
        yield f"| {name} | {shares} | {min(e.adherence for e in found):.1%} | {mean:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("results", type=Path, help="JSON; goes on with what is there")
    parser.add_argument("--pairs", type=int, default=256, help="prompts, each with its seed")
    parser.add_argument("--seed", type=int, default=20000, help="of the first pair")
    parser.add_argument("--gates", type=int, nargs="+", default=[10, 5, 3, 2])
    parser.add_argument("--blends", type=float, nargs="+", default=[0.5, 0.75, 1, 1.25, 1.5])
    parser.add_argument("--carries", type=float, nargs="+", default=[0, 0.25, 0.5, 1])
    parser.add_argument("--schedulers", nargs="+", default=["ddim", "euler", "dpm++2m"])
    parser.add_argument("--guidance-scales", type=float, nargs="+", default=[3, 5, 7.5])
    parser.add_argument("--plain-steps", type=int, nargs="*", default=[8, 12, 16])
    parser.add_argument("--choose-for", type=int, nargs="+", default=[10, 5, 3], help="gates")
    parser.add_argument("--backend", default="onnxruntime:cpu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    args = parser.parse_args()

    columns = list(itertools.product(args.schedulers, args.guidance_scales))
    rows = [Row(*column, steps=steps) for steps in (STEPS, *args.plain_steps) for column in columns]
    rows += [
        Row(*column, gate_step=gate, cache_blend=blend, guidance_carry=carry)
        for gate in args.gates
        for blend, carry in itertools.product(args.blends, args.carries)
        for column in columns
    ]
    results = read(args.results, args.seed)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ProcessPoolExecutor(
        args.jobs, get_context("spawn"), begin, (args.bundle, args.backend, threads)
    ) as workers:
        measure(workers, rows, args.pairs, args.seed, results, args.results)
    results = {
        key: Measured(row.shown[: args.pairs], row.psnr_db[: args.pairs])
        for key, row in results.items()
    }
    lines = list(table(results, rows))
    (blend, carry), why = choose(results, rows, args.choose_for)
    lines += ["", f"Chosen for gates {args.choose_for}: blend {blend:g}, carry {carry:g} ({why})."]
    text = "\n".join(lines)
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
