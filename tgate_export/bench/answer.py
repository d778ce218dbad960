"""What to use, in a sentence: decided by the rows alone, by the rule of docs/choosing-a-gate.md."""

from __future__ import annotations

from collections.abc import Sequence

from tgate_export.bench.result import Answer, FewerSteps, Interval, Quality, Row
from tgate_export.bench.statistics import mean_difference, share_difference, speedup


def answer(target: str, rows: Sequence[Row], *, complete: bool) -> Answer:
    """Choose a row, and say what it gains and costs, and what fewer plain steps would do.

    Args:
        target: what the rows are of.
        rows: the baseline among them, all of one target, over the same rounds and pictures.
        complete: whether nothing was interrupted; nothing is recommended otherwise.
    """
    base = next((row for row in rows if row.kind == "baseline"), None)
    measured = [row for row in rows if row.quality and row.speedup]
    if not complete or base is None or base not in measured:
        return _nothing(target, "Interrupted: too little was measured to say what to use.")
    others = [row for row in measured if row is not base]
    if not any(row.speedup and row.speedup.low for row in others):
        return _nothing(
            target, "One round says nothing of noise: measure more to learn what to use."
        )
    faster = [row for row in others if _quality(row).meets_bound and _is_faster(row)]
    plain = [row for row in others if row.kind == "fewer_steps"]
    gate = _best([row for row in faster if row not in plain])
    beside: FewerSteps | None = None
    if gate is None:
        use = _fewest([row for row in faster if row in plain])
    else:
        compared = [(row, _beside(row, gate)) for row in plain]
        as_good = [row for row, found in compared if found.as_good]
        fewest = _fewest([row for row in as_good if row in faster] or as_good)
        use = fewest or gate
        rival = fewest or _nearest(plain, gate)
        beside = next((found for row, found in compared if row is rival), None)
    return Answer(
        target=target, sentence=_sentence(base, others, use, gate, beside),
        use=(use or base).id, gate=gate.id if gate else None, fewer_steps=beside,
    )  # fmt: skip


def _metric(row: Row) -> float:
    """Return the share that adheres where the bound goes by it, else the mean SSIM."""
    quality = _quality(row)
    return quality.adherence.share if quality.adherence else quality.similarity.ssim


def _nothing(target: str, sentence: str) -> Answer:
    return Answer(target=target, sentence=sentence, use=None, gate=None, fewer_steps=None)


def _quality(row: Row) -> Quality:
    if row.quality is None:
        raise ValueError(f"{row.id} has no pictures to judge")
    return row.quality


def _is_faster(row: Row) -> bool:
    return bool(row.speedup and row.speedup.low and row.speedup.low > 1)


def _best(rows: Sequence[Row]) -> Row | None:
    """Return the fastest; of those that are as fast within noise, the one of best quality."""
    if not rows:
        return None
    fastest = min(rows, key=lambda row: row.latency.p50)
    level = [row for row in rows if row is fastest or not _is_above_one(_ratio(row, fastest))]
    return max(
        level,
        key=lambda row: (
            _metric(row), _quality(row).similarity.ssim, -row.latency.p50,
        ),
    )  # fmt: skip


def _fewest(plain: Sequence[Row]) -> Row | None:
    """Return the fewest steps: of one graph, so that they take the least time for certain."""
    return min(plain, key=lambda row: row.num_inference_steps, default=None)


def _ratio(slower: Row, faster: Row) -> Interval:
    return speedup(slower.latencies_s, faster.latencies_s)


def _is_above_one(ratio: Interval) -> bool:
    return ratio.low is not None and ratio.low > 1


def _beside(plain: Row, gate: Row) -> FewerSteps:
    """Compare plain steps with a gate in time and quality.

    Steps are whole, so those nearest to the gate's time may take half a step longer.
    """
    ratio = _ratio(gate, plain)
    one, other = _quality(plain), _quality(gate)
    if one.adherence and other.adherence:
        difference = share_difference(one.adherence.each, other.adherence.each)
    else:
        difference = mean_difference(one.similarity.ssims, other.similarity.ssims)
    slower = ratio.high is not None and ratio.high < 1 - 0.5 / plain.num_inference_steps
    worse = difference.high is not None and difference.high < 0
    return FewerSteps(
        row=plain.id, speedup=ratio, quality=difference,
        as_good=one.meets_bound and not slower and not worse,
    )  # fmt: skip


def _nearest(plain: Sequence[Row], gate: Row) -> Row | None:
    """Return the plain steps whose time is nearest to the gate's."""
    return min(plain, key=lambda row: abs(row.latency.p50 - gate.latency.p50), default=None)


def _sentence(
    base: Row,
    others: Sequence[Row],
    use: Row | None,
    gate: Row | None,
    beside: FewerSteps | None,
) -> str:
    steps = base.num_inference_steps
    if use is None:
        return f"Use {steps} steps without a gate: {_why_not(others)}."
    gain = f"{_times(use)} as fast as {steps} plain steps ({_range(use.speedup)}), {_kept(use)}"
    if _quality(base).adherence:
        gain += f" ({_count(base)} at {steps} plain steps)"
    if use.kind == "fewer_steps":
        if gate is None:
            rest = "no gate that was tried keeps the quality and is faster beyond noise"
        else:
            seems = gate.latency.p50 < use.latency.p50 or _metric(gate) > _metric(use)
            noise = " beyond noise" * seems
            rest = f"{gate.label}, the best gate, does no better{noise}: "
            rest += f"{_times(gate)}, {_short(gate)}"
        return f"Use {use.label} without a gate: {gain}; {rest}."
    rest = "fewer plain steps were not tried"
    if beside:
        plain = next(row for row in others if row.id == beside.row)
        rest = f"{plain.label} do not do as well: {_times(plain)}, {_short(plain)}"
    return f"Use {use.label}: {gain}; {rest}."


def _why_not(others: Sequence[Row]) -> str:
    """Say why nothing faster is recommended."""
    keeping = [row for row in others if _quality(row).meets_bound]
    if keeping:
        row = max(keeping, key=lambda row: row.speedup.value if row.speedup else 0)
        return (
            f"what keeps the quality is not faster beyond noise ({row.label}: {_times(row)}, "
            f"{_range(row.speedup)})"
        )
    closest = max(others, key=lambda row: (_metric(row), _quality(row).similarity.ssim))
    return (
        f"nothing faster that was tried keeps the quality, {closest.label} comes closest with "
        f"{_short(closest)}"
    )


def _times(row: Row) -> str:
    return f"{row.speedup.value:.2f} times" if row.speedup else "as fast"


def _range(ratio: Interval | None) -> str:
    if ratio is None or ratio.low is None:
        return "one round"
    return f"95 %: {ratio.low:.2f} to {ratio.high:.2f}"


def _kept(row: Row) -> str:
    quality = _quality(row)
    if quality.adherence:
        count = quality.adherence.prompts
        return f"{_count(row)} of {count} pictures show what the prompt says"
    similar = quality.similarity
    plural = "s" if similar.images > 1 else ""
    return f"mean SSIM to their pictures {similar.ssim:.3f} ({similar.images} picture{plural})"


def _count(row: Row) -> int:
    found = _quality(row).adherence
    return sum(found.each) if found else 0


def _short(row: Row) -> str:
    if _quality(row).adherence:
        return f"{_count(row)} pictures"
    return f"SSIM {_quality(row).similarity.ssim:.3f}"
