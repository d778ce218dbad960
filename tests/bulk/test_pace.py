"""How long the rest should take."""

from __future__ import annotations

import pytest

from tgate_export.bulk.pace import Pace, spoken


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_images_that_come_eight_at_a_time() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.note(0)
    assert pace.rate is None
    assert pace.left(10) is None
    done = 0
    for _ in range(30):
        clock.now += 4
        for _ in range(8):
            pace.note(done := done + 1)
        assert pace.rate == pytest.approx(2, rel=0.15)
    assert pace.left(100) == pytest.approx(50, rel=0.15)


def test_what_came_before_the_first_does_not_count() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.note(0)
    clock.now += 1000  # engines load
    pace.note(0)
    clock.now += 2
    pace.note(4)
    assert pace.rate == 2


def test_the_last_minute_counts() -> None:
    clock = Clock()
    pace = Pace(clock)
    for done in range(100):  # one a second
        pace.note(done)
        clock.now += 1
    for done in range(100, 112):  # one in ten seconds
        pace.note(done)
        clock.now += 10
    assert pace.rate == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1.5 h"),
     (172799, "48.0 h"), (172800, "2.0 days")],
)  # fmt: skip
def test_times_for_people(seconds: float, text: str) -> None:
    assert spoken(seconds) == text
