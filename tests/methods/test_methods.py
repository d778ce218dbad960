"""What every method's file declares, and the graphs that a bundle's settings ask for."""

from __future__ import annotations

import importlib

import pytest

from tgate_export.methods import tgate, tgate_v2
from tgate_export.methods.method import Method
from tgate_export.parameters import PARAMETERS

SETTINGS = {"gate_step": 10, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}


@pytest.mark.parametrize("method", [tgate.METHOD, tgate_v2.METHOD])
def test_a_method_names_what_there_is(method: Method) -> None:
    assert importlib.import_module(f"tgate_export.{method.module}").METHOD is method
    assert {guard.phase for guard in method.rule} == set(method.phases)
    assert {*method.parameters, *method.numbers} <= set(PARAMETERS)
    for phase in method.phases.values():
        assert {*phase.reads, *phase.writes} <= set(method.caches)
        assert phase.interval is None or phase.interval in method.parameters
        assert {*phase.numbers} <= {"guidance_scale", *method.numbers}
    # What is read is written, and the other way round.
    reads = {kind for phase in method.phases.values() for kind in phase.reads}
    writes = {kind for phase in method.phases.values() for kind in phase.writes}
    assert reads == writes == set(method.caches)
    method.described()  # refuses a rule that reads what is no parameter, or leaves a step without


@pytest.mark.parametrize(
    ("changes", "phases", "caches"),
    [
        ({}, ("full", "gated"), ("cross_cache",)),
        (
            {"sp_interval": 2}, ("full", "full_reuse", "gated"), ("cross_cache", "self_passes"),
        ),
        (
            {"fi_interval": 3}, ("full", "gated", "gated_reuse"), ("cross_cache", "self_cache"),
        ),
        (
            {"sp_interval": 5, "fi_interval": 2},
            ("full", "full_reuse", "gated", "gated_reuse"),
            ("cross_cache", "self_passes", "self_cache"),
        ),
    ],
)  # fmt: skip
def test_a_bundle_has_no_more_than_its_settings_ask_for(
    changes: dict[str, int], phases: tuple[str, ...], caches: tuple[str, ...]
) -> None:
    found = tgate_v2.METHOD.phases_for(SETTINGS | changes)
    assert found == phases
    assert tgate_v2.METHOD.caches_for(found) == (*caches, "guidance_delta")
