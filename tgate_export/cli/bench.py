"""`tgate-export bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tgate_export.cli._backend_options import BACKENDS, BackendOption, RunOption
from tgate_export.cli._console import readable_warnings, spinner, stderr, stdout
from tgate_export.cli._reports import (
    check_reports,
    generate_command,
    print_table,
    progress_bar,
    write_report,
)
from tgate_export.cli._types import BackendName, BundlePath, SchedulerName

if TYPE_CHECKING:
    from tgate_export.bench.result import BenchResult
    from tgate_export.runtime.backends.base import RunPrecision


@click.command(name="bench")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True,
                type=BundlePath())  # fmt: skip
@click.option(
    "--backend",
    "backends",
    cls=BackendOption,
    type=BackendName(),
    multiple=True,
    default=("auto",),
    help=f"What runs the graphs; give it several times to compare: {BACKENDS}. Default: auto.",
)
@click.option("--precision", cls=RunOption, type=click.Choice(["fp32", "bf16"]))
@click.option("--steps", type=click.IntRange(min=2), help="Default: the first bundle's.")
@click.option(
    "--gate-steps", metavar="G,G,...", help="Default: a fifth, two and three fifths of the steps."
)
@click.option("--scheduler", type=SchedulerName(), help="Sampler. Default: each bundle's.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True,
              help="Pictures that a call makes.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(min=1), default=10, show_default=True,
              help="Rounds; each runs every row once, in random order.")  # fmt: skip
@click.option("--warmup", type=click.IntRange(min=1), default=2, show_default=True,
              help="Rounds to warm up, not counted.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32), default=0, show_default=True,
              help="Of pictures, of the order of runs, and of the bootstrap.")  # fmt: skip
@click.option(
    "--adherence-prompts",
    type=click.IntRange(min=0),
    default=128,
    show_default=True,
    help="Pictures that quality is judged by, for shapes: by adherence from 99 on, by SSIM below. "
    "0, and other models: those of the rounds, by SSIM.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result.")
@click.option("--markdown", "markdown_path", type=click.Path(path_type=Path), help="Write tables.")
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write a report.")
def command(
    bundles: tuple[Path, ...],
    backends: tuple[str, ...],
    precision: RunPrecision | None,
    steps: int | None,
    gate_steps: str | None,
    scheduler: str | None,
    batch: int,
    repeats: int,
    warmup: int,
    seed: int,
    adherence_prompts: int,
    json_path: Path | None,
    markdown_path: Path | None,
    html_path: Path | None,
) -> None:
    """Time bundles: ungated, gated at several steps, and with fewer plain steps; say what to use.

    All rows of all bundles and backends run interleaved in random order. Ctrl-C ends it early;
    what was measured is kept.
    """
    check_reports({"--json": json_path, "--markdown": markdown_path, "--html": html_path})
    from tgate_export.bench.compare import compare, open_setups, require_bench_extra
    from tgate_export.bench.measure import Plan
    from tgate_export.bench.rows import parse_gate_steps
    from tgate_export.bench.tables import markdown
    from tgate_export.bundle.integrity import read_manifest
    from tgate_export.runtime.backends.base import BackendOptions

    require_bench_extra("skimage", "scipy", *(("jinja2",) if html_path else ()))
    if steps is None:
        steps = read_manifest(bundles[0]).defaults.num_inference_steps
    gates = parse_gate_steps(gate_steps, steps)
    plan = Plan(steps, gates, scheduler, batch, repeats, warmup, seed)
    with readable_warnings():
        with spinner("opening"):
            setups = open_setups(
                bundles, backends, plan, adherence_prompts, BackendOptions(precision=precision)
            )
        with progress_bar() as advance:
            comparison = compare(setups, plan, advance, generate_command)
    result = comparison.result
    _show(result)
    if json_path:
        write_report(json_path, result.model_dump_json(indent=1) + "\n")
    if markdown_path:
        write_report(markdown_path, markdown(result))
    if html_path:
        from tgate_export.bench.report.bench import bench_page

        write_report(html_path, bench_page(comparison))
    if not result.complete:
        stderr().print("error: interrupted; what was measured is kept", soft_wrap=True)
        raise SystemExit(130)


def _show(result: BenchResult) -> None:
    """Print the tables for people; the JSON file is for programs."""
    from tgate_export.bench.tables import answers, settings_line, tables

    console = stdout()
    console.print(settings_line(result), soft_wrap=True)
    for content in tables(result):
        print_table(console, content)
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True)
    for sentence, answer in zip(answers(result), result.answers, strict=True):
        console.print(sentence, soft_wrap=True, style="bold", highlight=False)
        if answer.command:
            console.print(f"  {answer.command}", soft_wrap=True, highlight=False)
