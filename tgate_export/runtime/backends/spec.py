"""What a backend's module says of itself, which is all that the registry and front ends know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.plans import Library
from tgate_export.runtime.backends.base import Backend, BackendOptions

# The values that an option may have; None for any.
Values = tuple[object, ...] | None


def _nothing() -> None:
    """Find nothing to object to."""


@dataclass(frozen=True)
class BackendSpec:
    """One name that a caller can ask for; a module of this folder has them in `SPECS`.

    Reading it imports nothing that is heavy: `module` is imported when the name is asked for.

    Attributes:
        name: what callers ask for, such as "openvino:bf16".
        summary: what runs the graphs where, for a list of backends; equal ones next to each other
            are listed as one.
        module: Python module that has to be there.
        extras: of this package, each of which installs it.
        make: returns the backend for a bundle, after every check below. Raises `BackendError` for
            what depends on the bundle or the options.
        check: raises `BackendError`, with a hint, where the machine cannot run it: no driver, a
            CPU that lacks something.
        options: fields of `BackendOptions` that it takes -> the values that they may have.
        auto: its place in the order in which "auto" tries backends, fastest first; None if it is
            used only when it is named.
        device: what it needs; None where it takes what there is. "auto" neither tries nor mentions
            what needs an NVIDIA GPU on a machine without a driver, unless the bundle has plans.
        plans: the library whose plans the bundle needs; "auto" passes over it without a word for
            a bundle that has none.
    """

    name: str
    summary: str
    module: str
    extras: tuple[str, ...]
    make: Callable[[Bundle, BackendOptions], Backend]
    check: Callable[[], None] = _nothing
    options: Mapping[str, Values] = field(default_factory=dict)
    auto: int | None = None
    device: Literal["cpu", "gpu"] | None = None
    plans: Library | None = None

    def takes(self, option: str, value: object) -> bool:
        """Whether an option may be given that value."""
        if option not in self.options:
            return False
        values = self.options[option]
        return values is None or value in values
