"""Who goes next, without engines."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tgate_export.runtime.batching.policy import TIGHTNESS, CallCosts, choose, choose_fullest, due
from tgate_export.runtime.image_state import Stage


@dataclass(eq=False)
class Image:
    start_by: float
    stage: Stage
    size: tuple[int, int] = (64, 64)


def chosen(flight: list[Image], largest: int = 8) -> tuple[Stage, list[float]]:
    stage, members = choose(flight, lambda _: largest, lambda image: image.start_by)
    return stage, [member.start_by for member in members]


def test_who_can_wait_least_chooses_the_phase_and_others_of_it_go_along() -> None:
    flight = [Image(4, "full"), Image(1, "gated"), Image(3, "full"), Image(2, "gated")]
    assert chosen(flight) == ("gated", [1, 2])
    flight[1].start_by = flight[3].start_by = 9
    assert chosen(flight) == ("full", [3, 4])


def test_batch_is_bounded_and_takes_those_that_can_wait_least() -> None:
    assert chosen([Image(moment, "full") for moment in (5, 1, 4, 2, 3)], largest=3) == (
        "full",
        [1, 2, 3],
    )


def test_encoding_goes_first_then_decoding() -> None:
    flight = [Image(1, "full"), Image(2, "decode"), Image(3, "encode"), Image(4, "decode")]
    assert chosen(flight) == ("encode", [3])
    assert chosen([image for image in flight if image.stage != "encode"]) == ("decode", [2, 4])


def test_sizes_are_not_mixed() -> None:
    flight = [Image(1, "full", (64, 32)), Image(2, "full"), Image(3, "full", (64, 32))]
    assert chosen(flight) == ("full", [1, 3])


def test_each_stage_has_its_own_bound() -> None:
    flight = [Image(moment, "decode") for moment in (1, 2, 3)]
    stage, members = choose(
        flight, lambda stage: {"decode": 2}.get(stage, 8), lambda image: image.start_by
    )
    assert (stage, len(members)) == ("decode", 2)


def test_due() -> None:
    assert due(arrived=10, needed=8, deadline=None) == 10 + TIGHTNESS * 8
    assert due(arrived=0, needed=8, deadline=1) == 1
    assert due(arrived=0, needed=8, deadline=1000) == TIGHTNESS * 8


Arrivals = dict[str, tuple[float, int]]  # when, and evaluations


def served(arrivals: Arrivals, seconds: int, batch: int) -> dict[str, float]:
    """Serve for so many seconds, a call a second; return when each was done."""
    left = {name: count for name, (_, count) in arrivals.items()}
    needed = dict(left)
    done: dict[str, float] = {}
    for now in range(seconds):
        flight = {
            name: Image(due(arrivals[name][0], needed[name], None) - count, "full")
            for name, count in left.items()
            if arrivals[name][0] <= now
        }
        if not flight:
            continue
        _, members = choose(list(flight.values()), lambda _: batch, lambda image: image.start_by)
        for name in [name for name, image in flight.items() if image in members]:
            left[name] -= 1
            if left[name] == 0:
                del left[name]
                done[name] = now + 1.0
    return done


def arriving(kinds: dict[int, int], seconds: int) -> Arrivals:
    """Make arrivals: of runs of so many evaluations, so many."""
    rng = random.Random(0)
    return {
        f"{number} of {count}": (rng.uniform(0, seconds), count)
        for count, number_of in kinds.items()
        for number in range(number_of)
    }


def test_nothing_starves() -> None:
    """Three times what can be served: who is not done came later than those who are."""
    arrivals = arriving({5: 900, 50: 90}, seconds=3000)
    done = served(arrivals, 3000, batch=1)
    latest = max(arrivals[name][0] for name in done)
    for name, (arrived, count) in arrivals.items():
        # Its own length decides by how much one may go before the other.
        assert name in done or arrived + TIGHTNESS * count > latest - 50


def test_short_runs_are_not_stuck_behind_long_ones() -> None:
    """80 % of what a batch of 8 can serve, nearly all of it long runs."""
    arrivals = arriving({5: 50, 50: 250}, seconds=2000)
    latencies = {
        batch: [
            moment - arrivals[name][0]
            for name, moment in served(arrivals, 20_000, batch).items()
            if arrivals[name][1] == 5
        ]
        for batch in (1, 8)
    }
    assert len(latencies[8]) == 50
    assert sorted(latencies[8])[47] < 50  # less than one long run takes alone
    assert sorted(latencies[1])[47] > 5 * 50


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


@dataclass(eq=False)
class Waiting(Image):
    left: Counter[str] = field(default_factory=Counter)


def fullest(flight: list[Waiting], largest: int = 3) -> tuple[Stage, list[int]]:
    stage, members = choose_fullest(flight, lambda _: largest)
    return stage, [member.left.total() for member in members]


def waiting(stage: Stage, *left: int, size: tuple[int, int] = (64, 64)) -> list[Waiting]:
    return [Waiting(0, stage, size, Counter(full=count)) for count in left]


def test_the_fullest_call_is_chosen() -> None:
    flight = [*waiting("encode", 9), *waiting("full", 8, 7), *waiting("decode", 0)]
    assert fullest(flight) == ("full", [7, 8])
    assert fullest([*flight, *waiting("encode", 9, 9)]) == ("encode", [9, 9, 9])
    assert fullest([*waiting("gated", 2, 2, size=(64, 32)), *waiting("gated", 1)]) == (
        "gated", [2, 2],
    )  # fmt: skip


def test_of_full_calls_the_one_that_is_furthest() -> None:
    flight = [*waiting("full", 9, 8, 7, 6), *waiting("gated", 5, 4, 3), *waiting("encode", 9, 9, 9)]
    assert fullest(flight) == ("gated", [3, 4, 5])
    assert fullest(flight[:4]) == ("full", [6, 7, 8])
    assert fullest([*flight, *waiting("decode", 0, 0, 0)]) == ("decode", [0, 0, 0])


def test_calls_are_full_as_long_as_enough_is_in_flight() -> None:
    """Whatever the mix: with `n` stages and a batch of `b`, `n * (b - 1) + 1` images."""
    batch, choice = 4, random.Random(0)
    queue = [[choice.randint(1, 9), choice.randint(0, 9)] for _ in range(200)]
    flight: list[Waiting] = []
    calls: list[int] = []
    while queue or flight:
        while queue and len(flight) < 4 * (batch - 1) + 1:
            full, gated = queue.pop()
            flight.append(Waiting(0, "encode", left=Counter(full=full, gated=gated)))
        if queue:
            assert len(fullest(flight, batch)[1]) == batch
        stage, members = choose_fullest(flight, lambda _: batch)
        calls.append(len(members))
        for member in members:
            if stage == "decode":
                flight.remove(member)
                continue
            if stage != "encode":
                member.left[stage] -= 1
            phases = [phase for phase in ("full", "gated") if member.left[phase]]
            member.stage = phases[0] if phases else "decode"
    assert sum(calls) > 200 * 5
