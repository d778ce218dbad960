"""What may be bound to a plan's tensors: every way not to fit is refused, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tgate_export.runtime.backends.base import BackendError
from tgate_export.runtime.backends.bindings import Port, View, check_bindings

PORTS = {
    "sample": Port("input", "float32", (-1, 4, 8, 8)),
    "cross_cache_0": Port("input", "float16", (2, 5, 64, 32)),
    "noise_pred": Port("output", "float32", (2, 4, 8, 8)),
}
INPUTS = {
    "sample": View("float32", (2, 4, 8, 8), 0x1000),
    "cross_cache_0": View("float16", (2, 5, 64, 32), 0x2000),
}
OUTPUTS = {"noise_pred": View("float32", (2, 4, 8, 8), 0x3000)}


def bind(inputs: dict[str, View], outputs: dict[str, View]) -> dict[str, int]:
    return check_bindings("gated", PORTS, {"input": inputs, "output": outputs})


def test_addresses_by_tensor() -> None:
    assert bind(INPUTS, OUTPUTS) == {
        "sample": 0x1000, "cross_cache_0": 0x2000, "noise_pred": 0x3000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float32"}, "the plan has float16, the buffer float32"),
        ({"shape": (2, 5, 64, 64)}, "has shape [2, 5, 64, 32], the buffer [2, 5, 64, 64]"),
        ({"shape": (2, 5, 64)}, "has shape [2, 5, 64, 32], the buffer [2, 5, 64]"),
        ({"address": 0}, "address 0x0 is not a multiple of 256 above 0"),
        ({"address": 0x2004}, "address 0x2004 is not a multiple of 256"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], reason: str) -> None:
    wrong = INPUTS | {"cross_cache_0": replace(INPUTS["cross_cache_0"], **change)}
    with pytest.raises(BackendError) as caught:
        bind(wrong, OUTPUTS)
    assert str(caught.value).startswith("graph 'gated': tensor 'cross_cache_0' cannot be bound: ")
    assert reason in str(caught.value)


def test_direction_is_checked() -> None:
    cache = {"cross_cache_0": INPUTS["cross_cache_0"]}
    with pytest.raises(BackendError, match=r"'cross_cache_0' .* an input of the plan, not an out"):
        bind({"sample": INPUTS["sample"]}, OUTPUTS | cache)


def test_every_tensor_is_bound_and_no_other() -> None:
    with pytest.raises(BackendError, match="'noise_pred' cannot be bound: nothing is bound"):
        bind(INPUTS, {})
    with pytest.raises(BackendError, match="'mask' cannot be bound: the plan has no tensor"):
        bind(INPUTS | {"mask": INPUTS["sample"]}, OUTPUTS)
