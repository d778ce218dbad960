"""Rows of a report with figures that a test chooses."""

from __future__ import annotations

from collections.abc import Sequence

from tgate_export.bench.result import Adherence, Kind, Number, Quality, Row, Similarity
from tgate_export.bench.statistics import quantiles, speedup

ROUNDS = (1.0, 1.02, 0.98, 1.01, 0.99, 1.0)
BASE_S = 1.0


def row(
    kind: Kind,
    label: str,
    seconds: float,
    *,
    lost: int | None = None,
    ssims: Sequence[float] = (0.9, 0.9, 0.9, 0.9),
    keeps: bool = True,
    noise: Sequence[float] = ROUNDS,
    steps: int = 25,
    parameters: dict[str, Number] | None = None,
) -> Row:
    """Return a row of 128 judged pictures of which some are lost, or of SSIMs where `lost` is None.

    Args:
        noise: what each round's time is multiplied by; the baseline's rounds are all as long.
    """
    latencies = [seconds * factor for factor in noise]
    adherence = None
    if lost is not None:
        shown = [index >= lost for index in range(128)]
        adherence = Adherence(share=1 - lost / 128, prompts=128, each=shown)
        ssims = [ssims[index % len(ssims)] for index in range(128)]
    mean = sum(ssims) / len(ssims)
    similarity = Similarity(psnr_db=20.0, ssim=mean, images=len(ssims), ssims=list(ssims))
    return Row(
        id=f"x/{label}", kind=kind, label=label, num_inference_steps=steps,
        parameters=parameters or {}, evaluations={"full": steps}, latencies_s=latencies,
        latency=quantiles(latencies), speedup=speedup([BASE_S] * len(latencies), latencies),
        quality=Quality(
            similarity=similarity, adherence=adherence, lost=lost,
            lost_bound=None if lost is None else lost / 128 + 0.023, meets_bound=keeps,
        ),
    )  # fmt: skip


def baseline(*, judged: bool = False, rounds: int = len(ROUNDS)) -> Row:
    """The run of 25 steps without a gate, a second long."""
    lost = 0 if judged else None
    return row(
        "baseline", "25 steps, no gate", BASE_S, lost=lost, ssims=[1.0] * 4, noise=[1.0] * rounds
    )


def gated(gate: int, seconds: float, **options: object) -> Row:
    """A gate, and other parameters under `parameters`."""
    others: dict[str, Number] = options.pop("parameters", {})  # type: ignore[assignment]
    words = "".join(f", {name.replace('_', ' ')} {value:g}" for name, value in others.items())
    return row(
        "gated", f"gate {gate} of 25{words}", seconds,
        parameters={"gate_step": gate, **others}, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def plain(steps: int, seconds: float, **options: object) -> Row:
    """Fewer plain steps."""
    return row("fewer_steps", f"{steps} plain steps", seconds, steps=steps, **options)  # type: ignore[arg-type]
