"""The bound that both reports judge by, on pictures of which is known what they show."""

from __future__ import annotations

import numpy as np
import pytest

from tgate_export.bench.bound import MIN_SSIM, choose_bound, judge
from tgate_export.bench.result import Bound
from tgate_export.bench.similarity import ssim
from tgate_export.data.shapes_world import Scene, all_captions, render

ADHERENCE = Bound(metric="adherence", value=0.03, text="")


def test_pictures_that_are_lost_are_counted() -> None:
    captions = [Scene("circle", "red", "blue").caption] * 4
    circle, square = (render(Scene(shape, "red", "blue")) for shape in ("circle", "square"))
    # One was wrong before: it is not lost, and one that comes right does not pay for another.
    found = judge(
        [circle, circle, circle, square], [circle, square, circle, circle], captions, ADHERENCE
    )
    assert found.lost == 1
    assert found.adherence is not None
    assert (found.adherence.share, found.adherence.prompts) == (0.75, 4)
    assert found.adherence.each == [True, False, True, True]
    assert found.meets_bound is False


def test_ssim_is_of_every_picture() -> None:
    rng = np.random.default_rng(0)
    one, two, three = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    bound = Bound(metric="ssim", value=0.4, text="")
    found = judge([one, one], [one, two], (), bound)
    assert found.similarity.ssims == [ssim(one, one), ssim(one, two)]
    assert found.meets_bound is True
    assert (found.adherence, found.lost, found.lost_bound) == (None, None, None)
    assert judge([one, one], [three, two], (), bound).meets_bound is False


@pytest.mark.parametrize(("count", "metric"), [(3, "ssim"), (98, "ssim"), (99, "adherence")])
def test_adherence_needs_as_many_captions_as_can_show_it(count: int, metric: str) -> None:
    # 0.97^98 is 5.05 %, 0.97^99 is 4.9 %.
    assert choose_bound(all_captions()[:count]).metric == metric


def test_other_bounds() -> None:
    assert choose_bound(all_captions()[:128], 0.7).value == 0.7
    general = choose_bound((*all_captions()[:128], "a fox"))
    assert (general.metric, general.value) == ("ssim", MIN_SSIM)
    assert choose_bound(()).metric == "ssim"
