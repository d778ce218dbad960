"""A method's rule as data: which phase a step runs. Every runtime evaluates this one form."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

Operator = Literal["<", "<=", "==", "!=", ">=", ">"]
_OPERATORS: Mapping[str, Callable[[int, int], bool]] = {
    "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne,
    ">=": operator.ge, ">": operator.gt,
}  # fmt: skip
_LARGEST = 2**31 - 1


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Comparison(_Model):
    """`step OP parameter + constant`, or `step % modulo OP parameter + constant`.

    The remainder has the sign of the divisor: it is never negative.

    Attributes:
        modulo: the parameter that the step is divided by, at least 1.
        op: how the two are compared.
        parameter: what it is compared with; 0 without one.
        constant: what is added to that.
    """

    modulo: str | None = None
    op: Operator
    parameter: str | None = None
    constant: Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)] = 0

    @model_serializer(mode="wrap")
    def _brief(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not said."""
        usual: dict[str, Any] = {"modulo": None, "parameter": None, "constant": 0}
        return {
            name: value
            for name, value in serialize(self).items()
            if name not in usual or value != usual[name]
        }

    def holds(self, step: int, values: Mapping[str, int]) -> bool:
        """Say whether it does at a step."""
        left = step if self.modulo is None else step % values[self.modulo]
        right = self.constant + (0 if self.parameter is None else values[self.parameter])
        return _OPERATORS[self.op](left, right)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Those that it reads."""
        return tuple(name for name in (self.modulo, self.parameter) if name is not None)


class Guard(_Model):
    """A phase, and all that has to hold for a step to run it."""

    phase: str
    all: tuple[Comparison, ...]


Rule = Sequence[Guard]  # the first whose comparisons all hold; the last has none


def phase_of(rule: Rule, step: int, values: Mapping[str, int]) -> str:
    """Return the phase of a step; the extra evaluations before step 0 are -1, -2, ..."""
    return next(
        guard.phase
        for guard in rule
        if all(comparison.holds(step, values) for comparison in guard.all)
    )


def at_least_fault(name: str, value: int, other: str, least: int) -> str:
    """Return what is wrong with a value that is below another one."""
    return (
        f"{name} {value} is below {other} {least}: give a {name} of at least {least}, or a {other} "
        f"of at most {value}"
    )
