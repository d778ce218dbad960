"""A comparison as tables of text: what the terminal, Markdown and HTML show, formatted once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tgate_export.bench.result import (
    BenchResult,
    BenchRow,
    Interval,
    Machine,
    ProbeResult,
    Quantiles,
    Row,
    Target,
)

NONE = "-"
NOTE = (
    "Beside the run of all steps without a gate: ratio of median times, pictures of the same "
    "prompts and seeds."
)
Namer = Callable[[BenchRow], str]


@dataclass(frozen=True)
class Table:
    """A titled table; every row has as many cells as there are columns, the first is a name."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def milliseconds(seconds: float) -> str:
    """Write seconds as ms, with three digits that count."""
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def interval(ratio: Interval | None) -> str:
    """Write a ratio and its interval."""
    if ratio is None:
        return NONE
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f}x"
    return f"{ratio.value:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"


def size(count: int | None) -> str:
    """Write bytes."""
    if count is None:
        return NONE
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def short_name(row: Row) -> str:
    """Write a row's label for a chart, where the number of steps is known."""
    if row.kind in ("baseline", "fewer_steps"):
        return f"{row.num_inference_steps} steps"
    return row.label.replace(f" of {row.num_inference_steps}", "")


def gmacs(count: float) -> str:
    """Write multiply-accumulates in units of 10^9."""
    return f"{count / 1e9:,.2f}"


def tables(result: BenchResult) -> list[Table]:
    """Return every table of a comparison."""
    several = len(result.targets) > 1
    rows = result.rows

    def name(row: BenchRow) -> str:
        return f"{row.target}: {row.label}" if several else row.label

    batch = result.settings.batch
    note = (
        f"{NOTE} Time: of a call, which makes {batch} picture{'s' * (batch > 1)}, median; "
        "all stages count."
    )
    found = [summary([(name(row), row) for row in rows], note), _speed(result, rows, name)]
    found += [_stages(rows, name), _work(rows, name)]
    return [*found, _targets(result.targets), *_attribution(result.targets)]


def summary(rows: Sequence[tuple[str, Row]], note: str) -> Table:
    """Return the table that both reports have: what each row gains and costs, what counts first."""
    judged = any(row.quality and row.quality.adherence for _, row in rows)
    columns: tuple[str, ...] = ("row", "times as fast (95 %)")
    columns += ("adherence",) * judged
    columns += ("SSIM", "keeps the quality", "time, ms", "PSNR, dB")
    columns += ("lost",) * judged + ("pictures",)
    return Table("Rows", columns, tuple((name, *_summary(row, judged)) for name, row in rows), note)


def _summary(row: Row, judged: bool) -> tuple[str, ...]:
    time = milliseconds(row.latency.p50)
    quality = row.quality
    if quality is None:
        adherence = (NONE,) * judged
        return (interval(row.speedup), *adherence, NONE, NONE, time, NONE, *adherence, NONE)
    share = quality.adherence
    plain = row.kind == "baseline"
    kept = NONE if plain else "yes" if quality.meets_bound else "no"
    lost = NONE
    if quality.lost_bound is not None and not plain:
        lost = f"{quality.lost} (up to {quality.lost_bound:.1%})"
    return (
        interval(row.speedup), *(f"{share.share:.1%}" if share else NONE,) * judged,
        f"{quality.similarity.ssim:.3f}", kept, time, f"{quality.similarity.psnr_db:.1f}",
        *(lost,) * judged, str(quality.similarity.images),
    )  # fmt: skip


def _speed(result: BenchResult, rows: Sequence[BenchRow], name: Namer) -> Table:
    several = len(result.targets) > 1
    columns: tuple[str, ...] = ("row", "p50, ms", "p90, ms", "p99, ms", "images/s")
    columns += ("over first",) * several + ("expected", "of expected", "rounds")
    cells = []
    for row in rows:
        latency = [milliseconds(v) for v in (row.latency.p50, row.latency.p90, row.latency.p99)]
        expected = row.expected_speedup
        over_first = (interval(row.speedup_over_first),) * several
        cells.append(
            (
                name(row), *latency, f"{row.images_per_second:.3g}", *over_first,
                f"{expected.all_stages:.2f}x" if expected else NONE,
                f"{row.efficiency:.0%}" if row.efficiency else NONE, str(len(row.latencies_s)),
            )
        )  # fmt: skip
    note = "Expected: speed-up by multiply-accumulates, all stages counted."
    return Table("Speed", columns, tuple(cells), note)


def _stages(rows: Sequence[BenchRow], name: Namer) -> Table:
    phases = list(dict.fromkeys(phase for row in rows for phase in row.phases))
    stages = list(dict.fromkeys(stage for row in rows for stage in row.stages))

    def cell(entry: Quantiles | None) -> str:
        return milliseconds(entry.p50) if entry else NONE

    columns = (
        "row",
        *(f"{phase} step" for phase in phases),
        *(s.replace("_", " ") for s in stages),
    )
    cells = tuple(
        (
            name(row),
            *(cell(row.phases.get(phase)) for phase in phases),
            *(cell(row.stages.get(stage)) for stage in stages),
        )
        for row in rows
    )
    note = "Medians in ms: of one step's denoiser, and of each stage in a call."
    return Table("Where the time goes", columns, cells, note)


def _work(rows: Sequence[BenchRow], name: Namer) -> Table:
    cells = tuple(
        (name(row), NONE, NONE, NONE, NONE)
        if row.macs is None
        else (
            name(row), gmacs(row.macs.total), gmacs(row.macs.papers),
            gmacs(row.macs.denoiser_total), gmacs(row.macs.denoiser_papers),
        )
        for row in rows
    )  # fmt: skip
    columns = ("row", "all stages", "papers' convention", "denoiser", "denoiser, papers'")
    note = "10^9 multiply-accumulates of a picture; the papers count linear and convolution layers."
    return Table("Work", columns, cells, note)


def _targets(targets: Sequence[Target]) -> Table:
    cells = tuple(
        (
            target.id, target.precision, f"{target.load_s:.2f}", size(target.peak_host_bytes),
            device_total(target), size(target.weights_bytes), size(target.cache_bytes),
        )
        for target in targets
    )  # fmt: skip
    columns = (
        "bundle", "precision", "load, s", "peak host memory", "device memory", "weights", "caches",
    )  # fmt: skip
    note = "Peak host memory: of a process that loads the bundle and makes one batch."
    return Table("Memory", columns, cells, note)


def device_total(target: Target) -> str:
    """Write the device memory that the backend reports."""
    total = (target.device_memory or {}).get("total_bytes")
    return size(total) if isinstance(total, int) else NONE


def _attribution(targets: Sequence[Target]) -> list[Table]:
    cells = tuple(
        (
            target.id, name, write(part.full), write(part.without_guidance), write(part.gated),
            f"{part.guidance:.2f}x", f"{part.cache:.2f}x", f"{part.guidance * part.cache:.2f}x",
        )
        for target in targets
        for name, write, part in (
            ("10^9 MACs", gmacs, target.attribution),
            ("measured, ms", milliseconds, target.measured_attribution),
        )
        if part
    )  # fmt: skip
    columns = (
        "bundle", "of a step", "full", "guidance dropped, no cache", "gated", "by guidance",
        "by the cache", "together",
    )  # fmt: skip
    note = (
        "gated, making twice the pictures, evaluates as many samples as full: what it takes less "
        "is what the cache gains, the rest of the speed-up is guidance."
    )
    return [Table("What a gated step saves", columns, cells, note)] if cells else []


def probe_tables(result: ProbeResult) -> list[Table]:
    """Return the table of a probe's rows."""
    note = (
        f"{NOTE} Time: of a picture, by the median step of each phase in calls of "
        f"{result.settings.batch}; bench times whole calls."
    )
    return [summary([(row.label, row) for row in result.rows], note)]


def facts(machine: Machine) -> list[tuple[str, str]]:
    """Return what a report says about where it was made."""
    found = [
        ("processor", f"{machine.processor}, {machine.cores} cores"),
        ("memory", size(machine.memory_bytes)),
        ("GPU", machine.gpu or "none"),
        ("system", machine.system),
        ("Python", machine.python),
        ("packages", ", ".join(f"{n} {v}" for n, v in machine.packages.items())),
    ]
    if machine.environment:
        variables = ", ".join(f"{name}={value}" for name, value in machine.environment.items())
        found.append(("environment", variables))
    return found


def markdown(result: BenchResult) -> str:
    """Write a comparison as Markdown."""
    lines = [f"# {' and '.join(target.id for target in result.targets)}", ""]
    if not result.complete:
        lines += ["**Incomplete: interrupted.**", ""]
    lines += [line for answer in answers(result) for line in (f"**{answer}**", "")]
    lines += [f"{result.created}. {settings_line(result)}", ""]
    for table in tables(result):
        lines += [f"## {table.title}", "", _markdown_row(table.columns)]
        lines += [_markdown_row(["---"] * len(table.columns))]
        lines += [_markdown_row(cells) for cells in table.rows]
        lines += ["", table.note, ""]
    lines += ["## Machine", "", *(f"* {name}: {value}" for name, value in facts(result.machine))]
    if result.notes:
        lines += ["", "## Notes", "", *(f"* {note}" for note in result.notes)]
    return "\n".join(lines) + "\n"


def answers(result: BenchResult) -> list[str]:
    """Return the sentence of each target, which it begins with where there are several."""
    several = len(result.targets) > 1
    return [f"{each.target}: " * several + each.sentence for each in result.answers]


def settings_line(result: BenchResult) -> str:
    """Say in a sentence how it was measured."""
    settings = result.settings
    return (
        f"{settings.num_inference_steps} steps, {settings.scheduler or 'default scheduler'}, "
        f"batch {settings.batch}; {settings.repeats} rounds of all rows in random order "
        f"(seed {settings.seed}) after {settings.warmup} to warm up. Intervals: "
        f"{settings.confidence:.0%}, {settings.method}."
    )


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
