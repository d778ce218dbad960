"""Labels of random and of crowded points: none lies on another, on a point, or outside."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from tgate_export.bench.report.labels import CHARACTER, HEIGHT, Box, place_labels

INSIDE = Box(40, 30, 350, 290)
RADIUS = 8.0
SIZE = 12.0


def overlap(one: Box, other: Box) -> float:
    """Area that two boxes share."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    return max(0.0, width) * max(0.0, height)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_nothing_overlaps(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    points = [(60 + 270 * spread * x, 50 + 220 * spread * y) for x, y in rng.random((12, 2))]
    texts = [f"gate {index}" + ", cache blend 1" * (index % 4 == 0) for index in range(12)]
    placed = place_labels(points, texts, INSIDE, font_size=SIZE, radius=RADIUS)
    boxes = [label.box for label in placed if label]
    assert len(boxes) >= (12 if spread == 1 else 6)
    for one, other in combinations(boxes, 2):
        assert overlap(one, other) == 0
    for box in boxes:
        assert box.left >= INSIDE.left
        assert box.right <= INSIDE.right
        assert box.top >= INSIDE.top
        assert box.bottom <= INSIDE.bottom
        for x, y in points:
            assert overlap(box, Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)) == 0


def test_box_holds_its_text_and_lies_beside_its_point() -> None:
    (label,) = place_labels([(200, 150)], ["gate 5"], INSIDE, font_size=SIZE, radius=RADIUS)
    assert label is not None
    box = label.box
    assert box.right - box.left == pytest.approx(6 * CHARACTER * SIZE)
    assert box.bottom - box.top == pytest.approx(HEIGHT * SIZE)
    assert (label.far, box.bottom) == (False, pytest.approx(150 - RADIUS))


def test_first_chooses_first_and_the_last_may_find_no_room() -> None:
    narrow = Box(0, 0, 60, 40)
    placed = place_labels([(30, 30), (31, 30)], ["gate 5"] * 2, narrow, font_size=SIZE, radius=4)
    assert placed[0] is not None
    assert placed[1] is None
