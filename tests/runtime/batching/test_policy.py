"""Who goes next, without engines."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from tgate_export.runtime.batching.policy import SLOWDOWN, CallCosts, choose, due
from tgate_export.runtime.batching.trajectory import Stage


@dataclass(eq=False)
class Image:
    due: float
    stage: Stage
    size: tuple[int, int] = (64, 64)


def chosen(flight: list[Image], largest: int = 8) -> tuple[Stage, list[float]]:
    stage, members = choose(flight, lambda _: largest)
    return stage, [member.due for member in members]


def test_first_due_chooses_the_phase_and_others_of_it_go_along() -> None:
    flight = [Image(4, "full"), Image(1, "gated"), Image(3, "full"), Image(2, "gated")]
    assert chosen(flight) == ("gated", [1, 2])
    flight[1].due = flight[3].due = 9
    assert chosen(flight) == ("full", [3, 4])


def test_batch_is_bounded_and_takes_those_due_first() -> None:
    assert chosen([Image(due, "full") for due in (5, 1, 4, 2, 3)], largest=3) == ("full", [1, 2, 3])


def test_encoding_goes_first_then_decoding() -> None:
    flight = [Image(1, "full"), Image(2, "decode"), Image(3, "encode"), Image(4, "decode")]
    assert chosen(flight) == ("encode", [3])
    assert chosen([image for image in flight if image.stage != "encode"]) == ("decode", [2, 4])


def test_sizes_are_not_mixed() -> None:
    flight = [Image(1, "full", (64, 32)), Image(2, "full"), Image(3, "full", (64, 32))]
    assert chosen(flight) == ("full", [1, 3])


def test_each_stage_has_its_own_bound() -> None:
    flight = [Image(due, "decode") for due in (1, 2, 3)]
    stage, members = choose(flight, lambda stage: {"decode": 2}.get(stage, 8))
    assert (stage, len(members)) == ("decode", 2)


def test_short_runs_are_due_before_long_ones_but_not_for_ever() -> None:
    long = due(arrived=0, alone=50, deadline=None)
    assert due(arrived=10, alone=5, deadline=None) < long
    assert due(arrived=SLOWDOWN * 50, alone=5, deadline=None) > long


def test_a_deadline_makes_it_due_while_it_can_still_be_met() -> None:
    assert due(arrived=0, alone=5, deadline=12) == 7
    assert due(arrived=0, alone=5, deadline=1000) == SLOWDOWN * 5


def test_nothing_starves() -> None:
    """A long run among an endless stream of short ones, one image a call, one second each."""
    arrivals = random.Random(0)
    steps = {"long": 50}
    moments = {"long": due(0, 50, None)}
    for now in range(2000):
        if arrivals.random() < 0.5:  # 5 steps each: more than twice what can be served
            steps[f"short {now}"] = 5
            moments[f"short {now}"] = due(now, 5, None)
        flight = [Image(moments[name], "full") for name in steps]
        _, (member,) = choose(flight, lambda _: 1)
        name = list(steps)[flight.index(member)]
        steps[name] -= 1
        if steps[name] == 0:
            del steps[name]
            if name == "long":
                # It was due at 200, and waits at most for those that were due before.
                assert 200 < now < 600
                return
    pytest.fail("the long run was never served")


def test_costs_bound_a_batch_by_a_target() -> None:
    costs = CallCosts()
    assert costs.largest("full", 8, target=1.0) == 8  # nothing known yet
    costs.record("full", 2, 0.5)
    assert costs.expected("full", 4) == pytest.approx(1.0)
    assert costs.largest("full", 8, target=1.0) == 4
    assert costs.largest("full", 8, target=0.01) == 1  # it has to go on
    assert costs.largest("full", 8, target=None) == 8
    assert costs.largest("gated", 8, target=0.01) == 8
    for _ in range(100):
        costs.record("full", 4, 0.1)
    assert costs.largest("full", 8, target=1.0) == 8
