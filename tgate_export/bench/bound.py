"""Do pictures keep the quality of the ungated ones? A bound for both reports, and its judgement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tgate_export.bench.adherence import adherence
from tgate_export.bench.result import Adherence, Bound, Quality
from tgate_export.bench.similarity import similarity
from tgate_export.bench.statistics import upper_bound
from tgate_export.data.shapes_world import all_captions

MAX_LOST = 0.03
"""Share of pictures whose adherence may be lost, `shapes` only."""
MIN_SSIM = 0.84
"""Least mean SSIM to the ungated pictures, everywhere else.

Calibrated on `shapes` (25 DDIM steps, 128 captions), where the truth is known: the earliest gate
that meets the bound on adherence has 0.841, the last that breaks it 0.832.
"""


def choose_bound(prompts: Sequence[str], min_ssim: float | None = None) -> Bound:
    """Return adherence for captions of the `shapes` world, as many as can show it; else SSIM.

    With none lost of 98 captions one is not yet 95 % sure that at most 3 % are lost of all.
    """
    captions = bool(prompts) and set(prompts) <= set(all_captions())
    if min_ssim is None and captions and upper_bound(0, len(prompts)) <= MAX_LOST:
        text = (
            f"95 % sure that at most {100 * MAX_LOST:g} % of the pictures that show what the "
            "prompt says no longer do"
        )
        return Bound(metric="adherence", value=MAX_LOST, text=text)
    value = MIN_SSIM if min_ssim is None else min_ssim
    text = f"mean SSIM to the ungated pictures of at least {value:g}"
    return Bound(metric="ssim", value=value, text=text)


def judge(
    ungated: Sequence[np.ndarray],
    images: Sequence[np.ndarray],
    prompts: Sequence[str],
    bound: Bound,
) -> Quality:
    """Compare 8-bit pictures [H, W, 3] with the ungated ones of the same prompts and seeds."""
    similar = similarity(ungated, images)
    if bound.metric == "ssim":
        return Quality(
            similarity=similar, adherence=None, lost=None, lost_bound=None,
            meets_bound=similar.ssim >= bound.value,
        )  # fmt: skip
    before, after = (_adhering(side, prompts) for side in (ungated, images))
    lost = int((before & ~after).sum())
    limit = upper_bound(lost, len(prompts))
    share = Adherence(share=float(after.mean()), prompts=len(prompts), each=after.tolist())
    return Quality(
        similarity=similar, adherence=share, lost=lost, lost_bound=limit,
        meets_bound=limit <= bound.value,
    )  # fmt: skip


def _adhering(pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> np.ndarray:
    pairs = zip(pictures, prompts, strict=True)
    return np.array([adherence([picture], [prompt]) == 1 for picture, prompt in pairs])
