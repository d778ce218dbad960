"""What to do about an error, as data: a front end has its own words for the calls that it names.

An error's message says what is wrong in words that everybody shares. What to change is an argument
of some call: an option to whoever typed a command, a keyword to whoever wrote a program.
`cli/_hints.py` writes the first, `in_python` the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath


@dataclass(frozen=True)
class Argument:
    """An argument of a public function or settings class, and a value to give it, if there is one.

    Attributes:
        name: as Python spells it.
        value: what to give it; None names the argument alone.
    """

    name: str
    value: object = None


@dataclass(frozen=True)
class Build:
    """A call of `build_bundle`.

    Attributes:
        arguments: by name; none to name the function alone.
        plans: arguments of the `PlanRequest` among them, if there is one.
    """

    arguments: Mapping[str, object] = field(default_factory=dict)
    plans: Mapping[str, object] = field(default_factory=dict)


Call = Argument | Build
Hint = tuple[str | Call, ...]


def worded(hint: Hint, words: Callable[[Call], str]) -> str:
    """Return a hint's text; `words` writes what it names in the way of a front end."""
    return "".join(part if isinstance(part, str) else words(part) for part in hint)


def in_python(call: Call) -> str:
    """Write what a hint names as Python code."""
    if isinstance(call, Argument):
        return call.name if call.value is None else _given(call.name, call.value)
    if not call.arguments:
        return "build_bundle"
    given = [_given(name, value) for name, value in call.arguments.items()]
    if call.plans:
        plans = ", ".join(_given(name, value) for name, value in call.plans.items())
        given.append(f"plans=[PlanRequest({plans})]")
    return f"build_bundle({', '.join(given)})"


def _given(name: str, value: object) -> str:
    code = f"Path({str(value)!r})" if isinstance(value, PurePath) else repr(value)
    return f"{name}={code}"
