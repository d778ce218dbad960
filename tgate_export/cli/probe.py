"""`tgate-export probe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tgate_export.cli._backend_options import backend_option
from tgate_export.cli._console import readable_warnings, spinner, stderr, stdout
from tgate_export.cli._reports import check_reports, generate_command, progress_bar, write_report
from tgate_export.cli._types import BundlePath, SchedulerName
from tgate_export.common.errors import InvalidRequestError

if TYPE_CHECKING:
    from tgate_export.bench.result import ProbeResult
    from tgate_export.runtime.pipeline import TGatePipeline

# With none lost of 128, one is 95 % sure that fewer than 2.4 % are lost of all; with fewer than
# 99 prompts no result would do.
SHAPES_PROMPTS = 128
GENERAL_PROMPTS = 4


@click.command(name="probe")
@click.argument("bundle", type=BundlePath())
@click.option(
    "--prompts",
    "prompts_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"UTF-8, one a line. Default: {SHAPES_PROMPTS} captions for shapes, "
    f"{GENERAL_PROMPTS} general ones otherwise.",
)
@click.option("--steps", type=click.IntRange(min=2), help="Default: the bundle's.")
@click.option("--scheduler", type=SchedulerName(), help="Sampler. Default: the bundle's.")
@backend_option
@click.option("--seed", type=click.IntRange(0, 2**32), default=0, show_default=True)
@click.option(
    "--min-ssim",
    type=click.FloatRange(0, 1),
    help="Least mean SSIM to the ungated pictures. Default: 0.84; for shapes, 95 % certainty "
    "that at most 3 % of pictures no longer show what the prompt says.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result.")
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write a report.")
def command(
    bundle: Path,
    prompts_path: Path | None,
    steps: int | None,
    scheduler: str | None,
    backend: str,
    seed: int,
    min_ssim: float | None,
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """Find where cross-attention converges; say which gate to use, or none.

    Generates images of the prompts without gating, at a few gates and those that a bisection asks
    for, and with as many plain steps as take the suggested gate's time; the convergence curves come
    from the caches that the full graph gives anyway.
    """
    check_reports({"--json": json_path, "--html": html_path})
    from tgate_export.bench.compare import require_bench_extra
    from tgate_export.bench.probe import Probe
    from tgate_export.bench.prompts import default_prompts, is_shapes, read_prompts
    from tgate_export.runtime.pipeline import TGatePipeline

    require_bench_extra("skimage", "scipy", *(("jinja2",) if html_path else ()))
    prompts = read_prompts(prompts_path) if prompts_path else None
    with readable_warnings():
        with spinner("loading"):
            pipeline = TGatePipeline.from_bundle(bundle, backend)
        if prompts is None:
            count = SHAPES_PROMPTS if is_shapes(pipeline.manifest) else GENERAL_PROMPTS
            prompts = default_prompts(pipeline.manifest, count)
        steps = steps or pipeline.manifest.defaults.num_inference_steps
        scheduler = scheduler or pipeline.manifest.defaults.scheduler
        _check(pipeline, steps, scheduler)
        with progress_bar() as advance:
            probe = Probe(
                pipeline, prompts, steps, scheduler, seed, advance, min_ssim, generate_command
            )
            result = probe.run()
    _show(result)
    if json_path:
        write_report(json_path, result.model_dump_json(indent=1) + "\n")
    if html_path:
        from tgate_export.bench.report.probe import probe_page

        write_report(html_path, probe_page(result, probe.pictures))
    if not result.complete:
        stderr().print("error: interrupted; what was generated is kept", soft_wrap=True)
        raise SystemExit(130)


def _check(pipeline: TGatePipeline, steps: int, scheduler: str) -> None:
    """Find out before anything runs what the bundle cannot do."""
    from tgate_export.bench.rows import baseline, binding_plan, gated

    samplers = pipeline.manifest.samplers
    if scheduler not in samplers:
        raise InvalidRequestError(
            f"unknown scheduler {scheduler!r}: this bundle has {', '.join(samplers)}"
        )
    if steps > (most := samplers[scheduler].max_steps):
        raise InvalidRequestError(f"steps must be 1 to {most}, got {steps}")
    for row in (baseline(steps), gated(steps, 1)):
        binding_plan(pipeline, row, pipeline.manifest.batch.opt, scheduler)


def _show(result: ProbeResult) -> None:
    """Print the gates and the suggestion for people; the JSON file is for programs."""
    from tgate_export.bench.tables import probe_tables
    from tgate_export.cli._reports import print_table

    console = stdout()
    for table in probe_tables(result):
        print_table(console, table)
    console.print(f"Keeps the quality: {result.bound.text}.", soft_wrap=True)
    console.print(result.answer.sentence, soft_wrap=True, style="bold", highlight=False)
    if result.answer.command:
        console.print(f"  {result.answer.command}", soft_wrap=True, highlight=False)
    if result.gate_command and result.gate_command != result.answer.command:
        console.print(
            f"With the earliest gate that keeps the quality:\n  {result.gate_command}",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
